"""ScaleKV's division of the pool against the published capacities, and its general rules as properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalekv.planning import CONVENTIONS, CacheGeometry, Profile, Schedule
from scalekv.policies import ScaleKV
from scalekv.policies.roles import PoolSplit, choose_drafters, share_evenly, z_scores
from strategies import geometries, profiles

SHAPES = {"infinity-2b": (32, 16, 128), "infinity-8b": (40, 28, 128)}
FLOOR = {"infinity-2b": 0, "infinity-8b": 200}


def published_plan(model: str, **settings):
    profile = Profile.builtin(model)
    assert profile is not None
    geometry = CacheGeometry(*SHAPES[model], schedule=profile.schedule)
    return ScaleKV(budget="650 tokens", **settings).plan(geometry, profile)


@pytest.mark.parametrize("model", SHAPES)
def test_all_published_capacities(model, published):
    plan = published_plan(model, exact_division=True, refiner_floor=FLOOR[model])
    layers = range(SHAPES[model][0])
    for scale, row in published["models"][model]["scales"].items():
        segment = int(scale) - 1
        for layer in layers:
            kind = "drafter_capacity" if layer in row["drafter_layers"] else "refiner_capacity"
            assert plan.layers[layer][0].capacity[segment] == row[kind]
        drafter = row["drafter_layers"][0]
        before = plan.layers[drafter][0].capacity[segment - 1] + plan.geometry.schedule.tokens[segment - 1]
        assert before == row["limit"]
    assert plan.mean_tokens == 650


@pytest.mark.parametrize(
    ("model", "resident", "working"), [("infinity-2b", 24075, 26379), ("infinity-8b", 32438, 34742)]
)
def test_published_tables_peak_above_their_nominal_total(model, resident, working):
    """Layers are trimmed one after another; the figures are those derived from the published tables."""
    plan = published_plan(model, exact_division=True, refiner_floor=FLOOR[model])
    token = plan.geometry.layer_token_bytes
    tokens = plan.geometry.schedule.tokens
    last = len(tokens) - 1
    held = [moment for moment in plan.moments() if moment.segment < last]
    assert max(moment.after for moment in held) == resident * token
    assert max(moment.before + tokens[moment.segment] * token for moment in held) == working * token


@pytest.mark.parametrize(("tokens", "megabytes"), [(1300, "7800.0"), (650, "3900.0"), (265, "1590.0")])
def test_plans_in_the_convention_of_the_paper(tokens, megabytes):
    """The paper's memory column of Infinity-2B at batch 8."""
    profile = Profile.builtin("infinity-2b")
    geometry = CacheGeometry(*SHAPES["infinity-2b"], schedule=profile.schedule, batch=8)
    plan = ScaleKV(budget=f"{tokens} tokens").plan(geometry, profile)
    assert f"{plan.nominal_in(CONVENTIONS['scalekv']) / 2**20:.1f}" == megabytes
    assert plan.nominal_in(CONVENTIONS["16bit"]) == plan.nominal_bytes
    with_last = plan.nominal_in(CONVENTIONS["stock"])
    assert with_last == plan.nominal_in(CONVENTIONS["scalekv"]) + CONVENTIONS["scalekv"].cache_bytes(geometry, 4096)


def test_without_exact_division_drafters_are_lossless():
    plan = published_plan("infinity-8b")
    capacity = [plan.layers[layer][0].capacity[8] for layer in range(40)]
    assert capacity[:3] == [921, 921, 921]
    assert set(capacity[3:]) <= {581, 582}, "628 or 629, less the room that the next drafters grow into"
    assert max(plan.held_bytes(segment) for segment in range(13)) <= 26000 * 28 * plan.head_token_bytes
    assert plan.drift_bytes <= 26000 * 28 * plan.head_token_bytes


def test_first_trimmed_segment_follows_from_the_budget():
    profile = Profile.builtin("infinity-2b")
    geometry = CacheGeometry(*SHAPES["infinity-2b"], schedule=profile.schedule)
    for tokens, first in ((265, 7), (650, 8), (1300, 9)):
        capacity = ScaleKV(budget=f"{tokens} tokens").plan(geometry, profile).layers[5][0].capacity
        untouched = [profile.schedule.start(index) for index in range(13)]
        assert capacity[:first] == tuple(untouched[:first])
        assert capacity[first] < untouched[first]


@given(st.data())
def test_capacities_never_exceed_pool_or_holdings(data):
    geometry = data.draw(geometries())
    profile = data.draw(profiles(geometry))
    policy = data.draw(
        st.builds(
            ScaleKV,
            budget=st.floats(0.3, 1.0),
            exact_division=st.booleans(),
            refiner_floor=st.integers(0, 40),
            drafter_share=st.floats(0, 1),
        )
    )
    history = geometry.schedule.history_tokens
    if int(policy.budget * history) < 1:
        return
    plan = policy.plan(geometry, profile)  # CachePlan itself refuses capacities above holdings
    pool = int(policy.budget * geometry.lossless_bytes)
    assert all(plan.held_bytes(index) <= pool for index in range(len(geometry.schedule)))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(0, 400))
def test_even_shares(available, pool):
    shares = share_evenly(available, pool)
    assert sum(shares) == min(pool, sum(available))
    assert all(share <= tokens for share, tokens in zip(shares, available, strict=True))
    short = [share for share, tokens in zip(shares, available, strict=True) if share < tokens]
    if short:
        assert max(shares) <= min(short) + 1


@given(st.data())
def test_more_pool_never_means_less_in_total(data):
    available = data.draw(st.lists(st.integers(1, 60), min_size=2, max_size=8))
    drafters = tuple(data.draw(st.sets(st.integers(0, len(available) - 1))))
    floor = data.draw(st.integers(0, 20))
    totals = [sum(PoolSplit(pool, floor)(available, drafters)) for pool in range(0, sum(available) + 2, 3)]
    assert totals == sorted(totals)


def test_drafters_come_first_but_leave_refiners_their_floor():
    assert PoolSplit(100, 10)([60, 60, 60], (0,)) == [60, 20, 20]
    assert PoolSplit(70, 10)([60, 60, 60], (0,)) == [50, 10, 10]
    assert PoolSplit(29, 10)([60, 60, 60], (0,)) == [11, 9, 9]
    assert PoolSplit(500, 10)([60, 60, 60], (0,)) == [60, 60, 60]
    assert PoolSplit(91, 10)([60, 60, 60], ()) == [31, 30, 30]
    assert PoolSplit(91, 10)([60, 60, 60], (0, 1, 2)) == [31, 30, 30]


def test_a_refiner_that_becomes_a_drafter_gets_what_it_holds():
    assert PoolSplit(100, 5)([90, 20, 60], (1,)) == [40, 20, 40]


def test_drafters_are_the_least_selective_pairs():
    asi = [[0.0] * 4, [9.0, 1.0, 9.0, 9.0], [9.0, 9.0, 0.5, 0.6]]
    assert choose_drafters(asi, [1, 2], 2 / 8) == {1: (1,), 2: (2,)}
    assert choose_drafters(asi, [2], 0.5) == {2: (2, 3)}
    assert choose_drafters(asi, [1, 2], 0.0) == {}
    assert choose_drafters(asi, [], 1.0) == {}


def test_ties_go_to_the_earlier_segment_and_layer():
    assert choose_drafters([[1.0, 1.0, 1.0]] * 3, [1, 2], 4 / 6) == {1: (0, 1, 2), 2: (0,)}


def test_z_score_does_not_care_whether_the_first_factor_is_a_sum_or_a_mean():
    row = [0.2, 0.5, 0.9, 0.4]
    assert z_scores(row) == pytest.approx(z_scores([16 * value for value in row]), rel=1e-4)


def test_refiners_keep_room_for_their_window_where_drafters_would_take_all():
    schedule = Schedule.from_sides([1, 4, 8, 9])
    profile = Profile("m", 3, 2, schedule, roles={3: (0,)})
    plan = ScaleKV(budget="30 tokens").plan(CacheGeometry(3, 2, 4, schedule), profile)
    assert [groups[0].capacity[3] for groups in plan.layers] == [90 - 2 * 16, 16, 16]


def test_without_a_profile_it_says_that_all_layers_are_equal():
    geometry = CacheGeometry(3, 2, 4, Schedule.from_sides([1, 3, 6, 9]))
    with pytest.warns(UserWarning, match="without a profile"):
        plan = ScaleKV(budget="40%").plan(geometry)
    assert len({groups[0].capacity[-1] for groups in plan.layers}) <= 2
