"""Bytes of codecs, and from when on a plan codes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalekv.errors import BudgetError, InvalidInput
from scalekv.planning import VECTOR_CODECS, CacheGeometry, CachePlan, Codec, HeadGroup, Profile, Schedule
from scalekv.policies import POLICIES, Full, HeatKV, ScaleKV, SlidingWindow, make_policy
from strategies import codecs, geometries, policies, profiles

INFINITY = CacheGeometry(32, 16, 128, Profile.builtin("infinity-2b").schedule)


@pytest.mark.parametrize(
    ("name", "taken"), [("none", 256), ("int8", 132), ("int6", 100), ("int4", 68), ("fp8", 130), ("int8/int4", 100)]
)
def test_bytes_of_a_token(name, taken):
    """Of 128 channels: codes, and a scale and a minimum (fp8: a scale) in two bytes each."""
    assert Codec.parse(name).token_bytes(128, 2) == 2 * taken


def test_bytes_of_a_coded_plan_worked_by_hand():
    """One head of 8 channels in 2 bytes on 2 rows: 64 bytes a token, in int4 16 a vector and row pair."""
    geometry = CacheGeometry(1, 1, 8, Schedule.from_sides([1, 2, 3]), element_bytes=2)
    group = HeadGroup((0,), (0, 1, 5), codec=Codec.parse("int4"), coded_from=2)
    plan = CachePlan(geometry, "test", 0, ((group,),))
    assert [plan.held_bytes(segment) for segment in range(3)] == [0, 64, 5 * 32]
    assert (plan.codec, plan.coded_from, plan.nominal_bytes, plan.mean_tokens) == ("int4", 2, 160, 5)
    first, trim, last = plan.moments()
    assert (first.before, first.after) == (0, 64)
    encoding, decoding = 10 * 8 + 64, 9 * 8 + 32
    assert trim.peak == 5 * 64 + 5 * 16 + 2 * 5 * encoding
    assert (last.before, last.after) == (160, 0)
    assert last.peak == 160 + 14 * 32 + 5 * decoding, "one of two rows is decoded, as 14 tokens are more than 9"


def test_history_cannot_be_coded_before_there_is_any():
    group = HeadGroup((0,), (0, 1), codec=Codec.parse("int8"), coded_from=0)
    with pytest.raises(ValueError, match="coded"):
        CachePlan(CacheGeometry(1, 1, 8, Schedule.from_sides([1, 2])), "test", 0, ((group,),))


@pytest.mark.parametrize("name", ["int8", "int6", "int4", "fp8"])
def test_the_same_bytes_hold_more_tokens(name):
    plain, coded = (SlidingWindow("10%", codec=one).plan(INFINITY) for one in ("none", name))
    ratio = 256 / VECTOR_CODECS[name].vector_bytes(128, 2)
    assert coded.mean_tokens == pytest.approx(ratio * plain.mean_tokens, rel=2e-3)
    assert coded.nominal_bytes <= coded.limit_bytes
    assert plain.codec == "none"
    assert coded.codec == name


@pytest.mark.parametrize("budget", ["20%", "10%", "4%"])
def test_precision_falls_at_the_first_boundary_that_does_not_fit(budget):
    plan = SlidingWindow(budget, codec="int8").plan(INFINITY)
    start, schedule = plan.coded_from, INFINITY.schedule
    assert INFINITY.token_bytes * schedule.start(start - 1) <= plan.limit_bytes
    assert INFINITY.token_bytes * schedule.start(start) > plan.limit_bytes
    assert plan.held_bytes(start - 1) == INFINITY.token_bytes * schedule.start(start - 1)


@pytest.mark.parametrize("budget", ["10%", "4%"])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", ["int8", "int6", "int4", "fp8", "int8/int4"])
@pytest.mark.parametrize("method", ["scalekv", "sliding_window", "snapkv", "h2o"])
def test_the_peak_is_below_that_of_16_bits(method, name, batch, budget):
    """At the same budget, though more tokens are held: decoding takes less than growing in 16 bits does."""
    profile, geometry = Profile.builtin("infinity-2b"), replace(INFINITY, batch=batch)
    plain, coded = (make_policy(method, budget, codec=one).plan(geometry, profile) for one in ("none", name))
    assert coded.peak_bytes < plain.peak_bytes
    assert coded.drift_bytes <= coded.limit_bytes


def test_full_in_a_codec_holds_everything_in_less():
    plan = Full("55%", codec="int8").plan(INFINITY)
    assert plan.mean_tokens == INFINITY.schedule.history_tokens
    assert plan.nominal_bytes <= 0.55 * INFINITY.lossless_bytes
    with pytest.raises(BudgetError, match="smallest feasible"):
        Full("50%", codec="int8").plan(INFINITY)


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "bytewise"])
def test_none_changes_nothing(name):
    profile = Profile.builtin("infinity-2b") if name == "scalekv" else None
    budget = "100%" if name == "full" else "10%"
    plain, none = (make_policy(name, budget, **one).plan(INFINITY, profile) for one in ({}, {"codec": "none"}))
    assert plain == none
    assert all(group.codec is None for groups in plain.layers for group in groups)


@settings(max_examples=60)
@given(st.data())
def test_budgets_hold_with_codecs(data):
    geometry = data.draw(geometries(longest=6))
    limit, strict = data.draw(st.integers(1, 2 * geometry.lossless_bytes + 1)), data.draw(st.booleans())
    policy, profile = (
        data.draw(policies(budget=limit, strict=strict, codec=data.draw(codecs()))),
        data.draw(profiles(geometry)),
    )
    try:
        plan = policy.plan(geometry, profile)
    except BudgetError as refusal:
        assert "feasible one" in str(refusal)
        return
    if strict:
        assert plan.peak_bytes <= limit
    elif limit < geometry.lossless_bytes:
        assert plan.nominal_bytes <= limit
        assert plan.drift_bytes <= limit or not policy.bounded
    else:
        assert plan.coded_from is None


def test_strict_names_a_budget_that_then_works():
    policy = SlidingWindow("1%", strict=True, codec="int6")
    geometry = CacheGeometry(4, 2, 8, Schedule.from_sides([1, 2, 4, 8]), element_bytes=4)
    with pytest.raises(BudgetError) as caught:
        policy.plan(geometry)
    named = int(str(caught.value).split(" B (")[0].split()[-1])
    assert replace(policy, budget=named).plan(geometry).peak_bytes <= named


def test_whole_segments_are_coded_too():
    plan = HeatKV("10%", codec="int4").plan(INFINITY)
    assert plan.mean_tokens > 3 * HeatKV("10%").plan(INFINITY).mean_tokens
    assert plan.drift_bytes <= plan.limit_bytes


def test_a_codec_that_does_not_suit_is_refused_when_planning():
    with pytest.raises(InvalidInput, match="packs 4 channels together, but this model has 6 per head; use int8"):
        ScaleKV(codec="int6").plan(replace(INFINITY, head_dim=6))
