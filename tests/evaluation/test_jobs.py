"""Specs, keys and the division of work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalekv.errors import BudgetError, InvalidInput
from scalekv.evaluation import Grid, PolicySpec, Share, parse_budgets, parse_specs
from scalekv.evaluation.info import RunInfo
from scalekv.evaluation.jobs import FULL, Cell, Unit, spaced_seeds
from scalekv.evaluation.subjects import Subject, merged, places
from scalekv.policies import POLICIES, ScaleKV


def test_specs_are_read_as_they_are_written() -> None:
    specs = parse_specs(["scalekv:pooling=max,strict=true,random", "Sliding-Window"])
    assert [spec.label for spec in specs] == ["scalekv:pooling=max,strict=true", "random", "sliding_window"]
    assert specs[0].policy("20%") == ScaleKV(budget="20%", pooling="max", strict=True)
    assert PolicySpec.parse("scalekv: strict = true , pooling=max") == specs[0]
    assert [PolicySpec.parse(spec.label) for spec in specs] == list(specs)
    assert {spec.name for spec in parse_specs(["all"])} == POLICIES.keys() - {"full"}
    assert PolicySpec.parse("scalekv:pooling=none").policy(None).pooling == "none"
    assert parse_specs(["random,random"]) == (PolicySpec("random"),)
    assert PolicySpec.parse("scalekv:drafter_share=0.5").policy(None).drafter_share == 0.5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no policy to evaluate"),
        ("nothing", "Unknown policy 'nothing'"),
        ("scalekv:", "Cannot read the policy"),
        ("scalekv:pooling", "Cannot read the policy 'scalekv:pooling'"),
        ("scalekv:pooling=", "Cannot read the policy"),
        ("scalekv:colour=red", "does not take these settings"),
        ("scalekv:pooling=none,pool_width=4", "pool_width must be odd"),
        ("random:budget=10%", "Leave the budget out"),
    ],
)
def test_bad_specs(text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        parse_specs([text])


def test_budgets() -> None:
    assert parse_budgets(["50%, 0.1,10%", "650 tokens"]) == ("50%", "10%", "650 tokens")
    with pytest.raises(BudgetError, match="10"):
        parse_budgets(["10"])
    with pytest.raises(InvalidInput, match="no budget"):
        parse_budgets([" , "])


def test_the_full_cache_is_measured_once() -> None:
    grid = Grid(parse_specs(["full,random"]), ("10%", "0.1"))
    assert grid.cells == (FULL, Cell(PolicySpec("random"), "10%"))


def test_folders_of_cells_differ() -> None:
    specs = parse_specs(["scalekv,scalekv:strict=true,random"])
    cells = [Cell(spec, budget) for spec in specs for budget in ("10%", "10 tokens", "10 KiB")]
    folders = {cell.folder for cell in cells}
    assert len(folders) == len(cells)
    assert not [folder for folder in folders if set(folder) & set(':%\\*?"<>| ')]


@given(units=st.integers(0, 40), count=st.integers(1, 7))
def test_every_unit_belongs_to_one_process(units: int, count: int) -> None:
    whole = [Unit(index, index + 1, 0) for index in range(units)]
    parts = [list(Share(rank, count).of(whole)) for rank in range(count)]
    assert sorted((unit for part in parts for unit in part), key=lambda unit: unit.start) == whole
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_what_a_launcher_says() -> None:
    assert Share.of_environment({}) == Share(0, 1, 0)
    assert Share.of_environment({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == Share(3, 4, 1)
    for wrong in ({"RANK": "4", "WORLD_SIZE": "4"}, {"RANK": "x"}, {"WORLD_SIZE": ""}):
        with pytest.raises(InvalidInput):
            Share.of_environment(wrong)


def test_seeds_never_share_noise() -> None:
    assert spaced_seeds(5, 3) == (5, 1_000_005, 2_000_005)


texts = st.lists(st.sampled_from("abc"), max_size=8)


@given(known=texts, wanted=texts)
def test_prompts_only_grow(known: list[str], wanted: list[str]) -> None:
    old, new = [Subject(text) for text in known], [Subject(text) for text in wanted]
    both = merged(old, new)
    assert list(both[: len(old)]) == old
    assert merged(both, new) == both
    found = places(both, new)
    assert [both[index] for index in found] == new
    assert len(set(found)) == len(found)


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), batch=st.integers(1, 4))
def test_batches_never_change(sizes: list[int], batch: int) -> None:
    info, total = None, 0
    for size in sizes:
        total += size
        subjects = [Subject(str(index)) for index in range(total)]
        grown = (
            RunInfo.begin({"batch": batch}, subjects, {})
            if info is None
            else info.continued({"batch": batch}, subjects, {})
        )
        assert grown.windows[: len(info.windows) if info else 0] == (info.windows if info else ())
        info = RunInfo.from_dict(grown.to_dict(), "run.json")
        assert info == grown
    assert info is not None
    assert [index for window in info.windows for index in range(*window)] == list(range(total))
    assert all(0 < stop - start <= batch for start, stop in info.windows)
