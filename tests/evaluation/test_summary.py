"""Means, intervals and differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalekv.evaluation import differences, summarize
from scalekv.evaluation.intervals import bootstrap, stratified
from scalekv.evaluation.summary import PSNR_CAP
from scalekv.evaluation.tables import markdown, table

numbers = st.lists(st.floats(-100, 100), min_size=1, max_size=30)


@given(numbers)
def test_an_interval_holds_its_mean_and_stays_within_the_values(values: list[float]) -> None:
    found = bootstrap(values, resamples=200)
    assert found.mean == pytest.approx(float(np.mean(values)))
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert found.prompts == len(values)
    assert bootstrap(values, resamples=200) == found


@given(numbers, st.floats(-10, 10))
def test_an_interval_moves_with_its_values(values: list[float], by: float) -> None:
    found, moved = bootstrap(values, resamples=200), bootstrap([value + by for value in values], resamples=200)
    assert (moved.low, moved.high) == (
        pytest.approx(found.low + by, abs=1e-6),
        pytest.approx(found.high + by, abs=1e-6),
    )


def test_intervals_of_equal_values_and_of_many() -> None:
    assert (bootstrap([2.0] * 9).low, bootstrap([2.0] * 9).high) == (2, 2)
    random = np.random.default_rng(0)
    widths = []
    for count in (25, 400):
        values = random.normal(5, 2, count)
        found = bootstrap(list(values))
        widths.append(found.high - found.low)
        assert widths[-1] == pytest.approx(2 * 1.96 * values.std() / count**0.5, rel=0.15)
    assert widths[0] > 3 * widths[1]


def test_intervals_cover_as_often_as_they_say() -> None:
    random = np.random.default_rng(1)
    covered = [not bootstrap(list(random.exponential(1, 60)), resamples=300).excludes(1) for _ in range(300)]
    assert 0.88 < np.mean(covered) < 0.99


def test_overall_is_the_mean_of_the_categories() -> None:
    found = stratified({"a": [1.0] * 30, "b": [0.0, 1.0]})
    assert found.mean == 0.75
    assert (found.low, found.high) == (0.5, 1)


def result(
    label: str, prompt: int, psnr: float | None, budget: str = "10%", seed: int = 0, **more: Any
) -> dict[str, Any]:
    figures = {"kept_bytes": 1000, "tokens": 5.0}
    named = {"label": label, "policy": label, "budget": budget, "prompt_index": prompt, "seed": seed, "batch": 2}
    measured = {"psnr": psnr, "identical": psnr is None, "ssim": 0.5, "mse": 0.1, "agreement": [1.0, 0.5]}
    return {"key": f"{label}/{budget}/{prompt}/{seed}", **named, **measured, **figures, **more}


def test_seeds_are_averaged_before_prompts() -> None:
    records = [result("a", 0, 10, seed=seed) for seed in range(9)] + [result("a", 1, 20)]
    (row,) = summarize(records)
    assert row.metrics["psnr"].mean == 15
    assert (row.metrics["psnr"].prompts, row.pictures) == (2, 10)
    assert row.metrics["agreement"].mean == 0.75


def test_identical_pictures_count_a_hundred_decibels() -> None:
    (row,) = summarize([result("a", 0, None), result("a", 1, 20), result("a", 2, 140)])
    assert row.metrics["psnr"].mean == pytest.approx((2 * PSNR_CAP + 20) / 3)
    assert row.metrics["identical"].mean == pytest.approx(1 / 3)
    assert not row.identical


def test_bytes_are_those_of_full_batches() -> None:
    short = {"batch": 1, "kept_bytes": 400}
    (row,) = summarize([result("a", 0, 10), result("a", 1, 10), result("a", 2, 10, **short)])
    assert row.figures["kept_bytes"] == 1000


def test_rows_are_ordered_and_infeasible_ones_stay() -> None:
    records = [
        {**result("b", 0, 1, "2%"), "infeasible": "too small"},
        result("b", 0, 1, "20%"),
        result("b", 0, 1, "100%"),
        result("a", 0, 1),
        result("full", 0, None, "100%"),
    ]
    rows = summarize(records)
    assert [(row.label, row.budget) for row in rows] == [
        ("full", "100%"),
        ("a", "10%"),
        ("b", "100%"),
        ("b", "20%"),
        ("b", "2%"),
    ]
    assert (rows[-1].infeasible, rows[-1].pictures, rows[-1].metrics) == ("too small", 0, {})
    heads, body = table(rows)
    assert heads == ["method", "budget", "kept", "PSNR dB", "SSIM", "equal"]
    assert body[0][3] == "identical"
    assert body[-1] == ["b", "2%", "-", "does not fit", "-", "-"]
    assert "b at 2%: too small" in markdown(rows)


def test_prompts_followed() -> None:
    judged = [("colours", True), ("colours", False), ("position", True)]
    records = [
        result("a", prompt, 10, following={"category": category, "right": right})
        for prompt, (category, right) in enumerate(judged)
    ]
    (row,) = summarize(records)
    assert {name: interval.mean for name, interval in row.following.items()} == {"colours": 0.5, "position": 1}
    assert row.following_overall is not None
    assert row.following_overall.mean == 0.75
    assert table([row])[1][0][-1] == "75.0%"
    assert "| colours | position | overall |" in markdown([row])


def test_differences_are_paired() -> None:
    random = np.random.default_rng(0)
    hard = random.normal(0, 10, 40)
    records = [result("a", prompt, 30 + float(level)) for prompt, level in enumerate(hard)]
    records += [result("b", prompt, 29 + float(level)) for prompt, level in enumerate(hard)]
    records += [result("b", 99, 90), result("full", 0, None, "100%"), {**result("c", 0, 1), "infeasible": "x"}]
    (found,) = differences(records)
    assert (found.label, found.other, found.budget) == ("a", "b", "10%")
    assert found.interval.mean == pytest.approx(1)
    assert found.interval.excludes(0)  # unpaired, a spread of 10 dB over prompts would hide it
    assert found.interval.prompts == 40


def test_scorers_of_ones_own_are_columns() -> None:
    (row,) = summarize([result("a", 0, 10, scores={"clip": 0.25}, ms_ssim=0.9)])
    assert row.metrics["clip"].mean == 0.25
    assert "| PSNR dB | SSIM | MS-SSIM | equal | clip |" in markdown([row])


def test_fid_has_a_column() -> None:
    rows = summarize([result("a", 0, 10), result("full", 0, None, "100%")], {"a/10%": 2.5})
    assert [line[-1] for line in table(rows)[1]] == ["-", "2.50"]
    assert "| FID |" in markdown(rows)
