import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalekv.errors import BudgetError
from scalekv.planning import CacheGeometry, CachePlan, HeadGroup, Profile, Schedule
from scalekv.policies import Full, ScaleKV, SlidingWindow
from strategies import geometries, policies, profiles

GEOMETRY = CacheGeometry(2, 2, 4, Schedule.from_sides([1, 2, 3]), element_bytes=2)


def plan_of(*layers, **fields) -> CachePlan:
    return CachePlan(GEOMETRY, "test", 0, tuple(layers), **fields)


@pytest.mark.parametrize(
    "layers",
    [
        ((HeadGroup((0, 1), (0, 1, 5)),),),
        ((HeadGroup((0,), (0, 1, 5)),),) * 2,
        ((HeadGroup((0, 1), (0, 1, 6)),),) * 2,
        ((HeadGroup((0, 1), (0, 2, 4)),),) * 2,
        ((HeadGroup((0, 1), (1, 1, 4)),),) * 2,
        ((HeadGroup((0, 1), (0, 1)),),) * 2,
        ((HeadGroup((0, 1), (0, 1, -1)),),) * 2,
        ((HeadGroup((0, 1), (0, 1, 5)), HeadGroup((1,), (0, 1, 5))),) * 2,
    ],
)
def test_impossible_plans_are_refused(layers):
    with pytest.raises(ValueError, match="plan|head groups|capacity"):
        plan_of(*layers)


def test_bytes_of_a_plan_worked_by_hand():
    """Two heads of 4 channels in 2 bytes on 2 rows: a token is 64 bytes per layer, half of it keys."""
    plan = plan_of((HeadGroup((0, 1), (0, 1, 5)),), (HeadGroup((0, 1), (0, 1, 2)),))
    assert [plan.held_bytes(index) for index in range(3)] == [0, 2 * 64, 7 * 64]
    assert plan.nominal_bytes == 7 * 64
    moments = list(plan.moments())
    assert [(moment.before, moment.after) for moment in moments] == [
        (0, 64),
        (64, 128),
        (128, 384),
        (384, 448),
        (448, 128),
        (128, 0),
    ]
    assert moments[0].peak == 64
    assert moments[2].peak == 64 + 5 * 64 + 32
    assert moments[4].peak == 2 * 64 + 14 * 64 + 5 * 32


def test_groups_of_unequal_length_are_counted_apart():
    one = plan_of(*((HeadGroup((0,), (0, 1, 5)), HeadGroup((1,), (0, 1, 1))),) * 2)
    assert one.held_bytes(2) == 2 * (5 + 1) * 32
    assert one.layer_tokens(0, 2) == 3
    assert one.mean_tokens == 3


def test_full_plan_is_the_lossless_size():
    plan = Full().plan(GEOMETRY)
    assert plan.nominal_bytes == GEOMETRY.lossless_bytes


def test_a_schedule_of_one_segment_needs_no_cache():
    plan = Full().plan(CacheGeometry(2, 2, 4, Schedule.from_sides([4])))
    assert plan.nominal_bytes == 0
    assert plan.peak_bytes == 0


@given(st.data())
def test_nominal_budget_holds_for_every_policy(data):
    geometry = data.draw(geometries())
    policy = data.draw(policies(budget=data.draw(st.floats(0.01, 1.0))))
    limit = int(policy.budget * geometry.lossless_bytes)
    try:
        plan = policy.plan(geometry, data.draw(profiles(geometry)))
    except BudgetError as refusal:
        assert "smallest feasible" in str(refusal)
        assert limit < policy.fewest_slots(geometry) * (geometry.head_token_bytes + 4 * geometry.rows)
        return
    if policy.budget < 1:
        assert plan.nominal_bytes <= limit
    assert plan.nominal_bytes <= plan.peak_bytes


@settings(max_examples=60)
@given(st.data())
def test_strict_budget_holds_at_the_worst_moment(data):
    geometry = data.draw(geometries(longest=6))
    limit = data.draw(st.integers(1, 2 * geometry.lossless_bytes + 1))
    policy = data.draw(policies(budget=limit, strict=True))
    profile = data.draw(profiles(geometry))
    try:
        plan = policy.plan(geometry, profile)
    except BudgetError as refusal:
        assert "feasible one" in str(refusal)
        return
    assert plan.peak_bytes <= limit


def test_strict_names_a_budget_that_then_works():
    geometry = CacheGeometry(4, 2, 8, Schedule.from_sides([1, 2, 4, 8]), element_bytes=4)
    with pytest.raises(BudgetError) as caught:
        SlidingWindow(budget="2%", strict=True).plan(geometry)
    named = int(re.search(r"is (\d+) B", str(caught.value))[1])
    assert SlidingWindow(budget=named, strict=True).plan(geometry).peak_bytes == named
    with pytest.raises(BudgetError):
        SlidingWindow(budget=named - 1, strict=True).plan(geometry)


@pytest.mark.parametrize("strict", [False, True])
def test_the_pool_holds_while_drafters_in_front_grow_before_refiners_behind_shrink(strict):
    profile = Profile.builtin("infinity-8b")
    geometry = CacheGeometry(40, 28, 128, profile.schedule)
    limit = int(0.15 * geometry.lossless_bytes)
    plan = ScaleKV(budget="15%", strict=strict).plan(geometry, profile)
    published = ScaleKV(budget="15%", exact_division=True).plan(geometry, profile)
    assert plan.drift_bytes <= limit < published.drift_bytes
    assert published.nominal_bytes <= limit
    assert plan.peak_bytes <= limit or not strict


def test_full_refuses_a_smaller_budget_and_names_what_it_needs():
    with pytest.raises(BudgetError, match="smallest feasible"):
        Full(budget="50%").plan(GEOMETRY)


def test_bytes_beyond_the_lossless_size_mean_everything():
    assert SlidingWindow(budget="1TB").plan(GEOMETRY).layers == Full().plan(GEOMETRY).layers
