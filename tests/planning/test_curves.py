"""Quotas of heads from sorted scores."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalekv.planning.curves import curve_ranks, head_quotas, resampled

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "baseline_vectors.json").read_text())


def sampled(scores) -> list[float]:
    """A curve of plain scores."""
    falling = np.sort(scores)[::-1]
    return [float(falling[rank - 1]) for rank in curve_ranks(len(falling))]


def counts_of_the_best(scores: np.ndarray, pool: int, floor: int) -> list[int]:
    """The definition: every head its best ``floor``, then the best of all that is left."""
    taken = np.zeros(scores.shape, bool)
    for head, row in enumerate(scores):
        taken[head, np.argsort(-row, kind="stable")[:floor]] = True
    order = np.argsort(np.where(taken, -np.inf, scores).ravel())[::-1]
    taken.ravel()[order[: pool - taken.sum()]] = True
    return taken.sum(1).tolist()


def test_ranks():
    assert curve_ranks(1) == (1,)
    assert curve_ranks(8) == (1, 2, 4, 8)
    assert curve_ranks(10521)[-3:] == (4096, 8192, 10521)


def test_log_linear_curves_are_divided_as_their_tokens_would_be():
    """Scores whose logarithm is a straight line are known exactly from a few points."""
    tokens = 200
    slopes, heights = np.array([0.01, 0.05, 0.02]), np.array([0.0, 1.5, -0.4])
    scores = np.exp(heights[:, None] - slopes[:, None] * np.arange(1, tokens + 1))
    for pool, share in ((30, 0.0), (150, 0.2), (300, 0.5), (450, 0.0)):
        expected = counts_of_the_best(scores, pool, math.floor(share * pool / 3))
        found = head_quotas([sampled(row) for row in scores], tokens, pool, share)
        assert sum(found) == pool
        assert np.abs(np.subtract(found, expected)).max() <= 1


def test_near_the_published_rule_on_its_check_vector():
    case = VECTORS["adakv"]
    scores = np.array(case["scores"])
    pool = case["B"] * len(scores)
    found = head_quotas([sampled(row) for row in scores], scores.shape[1], pool, case["alpha"])
    assert sum(found) == pool
    assert np.abs(np.subtract(found, [len(kept) for kept in case["kept"]])).max() <= 1


def test_a_share_of_one_is_even_and_a_large_pool_is_everything():
    curves = [[9.0, 8.0, 7.0, 6.0], [3.0, 2.0, 1.0, 0.0]]
    assert head_quotas(curves, 8, 10, 1.0) == [5, 5]
    assert head_quotas(curves, 8, 8, 0.0) == [8, 0]
    assert head_quotas(curves, 8, 100, 0.0) == [8, 8]
    assert head_quotas(curves, 8, 8, 0.0, available=[3, 8]) == [3, 5]


@given(
    heads=st.integers(1, 6),
    tokens=st.integers(1, 300),
    pool=st.integers(0, 2000),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
    ties=st.booleans(),
)
def test_quotas_add_up_and_stay_between_floor_and_held(heads, tokens, pool, share, seed, ties):
    random = np.random.default_rng(seed)
    scores = random.integers(0, 3, (heads, tokens)) if ties else random.exponential(size=(heads, tokens))
    available = random.integers(0, tokens + 1, heads).tolist()
    found = head_quotas([sampled(row) for row in scores], tokens, pool, share, available)
    assert sum(found) == min(pool, sum(available))
    assert all(0 <= count <= most for count, most in zip(found, available, strict=True))
    if pool < sum(available):
        floor = math.floor(share * pool / heads)
        assert all(count >= min(floor, most) for count, most in zip(found, available, strict=True))


def test_a_curve_over_another_number_of_tokens_keeps_its_shape():
    curve = sampled(np.exp(-0.05 * np.arange(100)))
    assert resampled(curve, 100, 100) == tuple(curve)
    longer = resampled(curve, 100, 400)
    assert len(longer) == len(curve_ranks(400))
    assert list(longer) == sorted(longer, reverse=True)
    ranks = curve_ranks(400)
    assert longer[ranks.index(256)] == pytest.approx(math.exp(-0.05 * 63) / 4, rel=1e-6)
