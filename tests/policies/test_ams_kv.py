"""AMS-KV: whole scales per layer, against the published rule word by word."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalekv.errors import BudgetError, InvalidInput, ProfileError
from scalekv.planning import CacheGeometry, Profile, Schedule
from scalekv.policies import AMSKV, Full
from strategies import geometries, measured

TEN_SCALES = Schedule.from_sides([1, 2, 3, 4, 5, 6, 8, 10, 13, 16])
DEPTH_30 = CacheGeometry(30, 30, 64, TEN_SCALES, batch=50)


def similar(geometry: CacheGeometry, rows) -> Profile:
    """``rows[layer]`` at every segment."""
    table = tuple(tuple(rows) for _ in geometry.schedule)
    return Profile("made", geometry.layers, geometry.heads, geometry.schedule, statistics={"scale_similarity": table})


def test_published_capacities():
    """C_max = 5 + 100 + 169 and C_min = 5 + 169, with a sixth of the layers expanding."""
    policy = AMSKV("190.67 tokens")
    slots = policy.plan(DEPTH_30, similar(DEPTH_30, range(30))).limit_bytes // DEPTH_30.head_token_bytes
    assert policy.capacities(DEPTH_30, slots, 5) == (174, 274)
    plan = policy.plan(DEPTH_30, similar(DEPTH_30, range(30)))
    last = [group.sources[-1] for (group,) in plan.layers]
    assert last == [(0, 1, 7, 8)] * 5 + [(0, 1, 8)] * 25
    assert plan.mean_tokens == pytest.approx(190.67, abs=0.01)


@pytest.mark.parametrize(
    ("tokens", "small", "last"),
    [
        (642, 405, [(0, 1, 10), (0, 1, 7)]),
        (1285, 1029, [(0, 1, 11), (0, 1, 9)]),
        (257, 249, [(0, 1, 6), (0, 1, 3, 4, 5)]),
    ],
)
def test_small_layers_hold_a_run_that_lasts(tokens, small, last):
    """521 tokens would be 16 + 36 + 64 + 144 + 256 beside the first two, until 400 arrive and leave only themselves."""
    schedule = Schedule.from_sides([1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64])
    geometry = CacheGeometry(40, 28, 128, schedule)
    plan = AMSKV(f"{tokens} tokens").plan(geometry, similar(geometry, range(40)))
    assert AMSKV().capacities(geometry, tokens * 40 * 28, 7)[0] == small
    assert [group.sources[-1] for (group,) in plan.layers] == [last[0]] * 7 + [last[1]] * 33


def test_layers_of_low_similarity_expand():
    order = [(7 * layer) % 30 for layer in range(30)]
    plan = AMSKV("190.67 tokens").plan(DEPTH_30, similar(DEPTH_30, [-value for value in order]))
    long = {layer for layer, (group,) in enumerate(plan.layers) if group.capacity[-1] == 274}
    assert long == {layer for layer, value in enumerate(order) if value >= 25}


def test_equal_layers_expand_by_number():
    plan = AMSKV("190.67 tokens").plan(DEPTH_30, similar(DEPTH_30, [0.0] * 30))
    assert [group.capacity[-1] for (group,) in plan.layers] == [274] * 5 + [174] * 25


def naive(tokens, condensed: int, small: int, large: int, similarity, theta: float) -> list[tuple[int, ...]]:
    """The rule as llm_baselines states it, a scale counted with the condensed ones beside it."""
    capacity, stored, lists = small, [], [()]
    size = lambda scales: sum(tokens[scale] for scale in scales)  # noqa: E731
    base = size(range(condensed))
    for scale in range(len(tokens) - 1):
        if scale < condensed or base + tokens[scale] <= large:
            stored = [*stored, scale]
            if size(stored) > capacity:
                if capacity == small and similarity[scale] <= theta:
                    capacity = large
                if scale >= condensed and base + tokens[scale] > capacity:
                    stored = stored[:-1]
                while size(stored) > capacity:
                    del stored[condensed]
        lists.append(tuple(stored))
    return lists


@given(geometry=geometries(side=6), data=st.data())
def test_every_layer_follows_the_rule_with_one_threshold(geometry, data):
    profile = Profile(
        "drawn", geometry.layers, geometry.heads, geometry.schedule, **measured(geometry, data.draw(st.integers(0, 99)))
    )
    condensed = data.draw(st.integers(1, 3))
    policy = AMSKV(
        data.draw(st.floats(0.05, 0.99)), expanding_share=data.draw(st.floats(0, 1)), condensed_scales=condensed
    )
    try:
        plan = policy.plan(geometry, profile)
    except BudgetError:
        return
    slots = plan.limit_bytes // geometry.head_token_bytes
    if slots >= geometry.layers * geometry.heads * geometry.schedule.history_tokens:
        return
    count = max(1, round(policy.expanding_share * geometry.layers)) if policy.expanding_share else 0
    small, large = policy.capacities(geometry, slots, count)
    assert (geometry.layers - count) * small + count * large <= slots // geometry.heads
    table = profile.layer_table("scale_similarity")
    assert sum(group.capacity[-1] > small for (group,) in plan.layers) <= count
    rows = [[table[segment][layer] for segment in range(len(geometry.schedule))] for layer in range(geometry.layers)]
    found = [list(group.sources) for (group,) in plan.layers]
    thresholds = [-1.0, *sorted({value for row in rows for value in row})] if count else [-1.0]
    held = [
        [naive(geometry.schedule.tokens, condensed, small, large, row, theta) for row in rows] for theta in thresholds
    ]
    assert found in held
    assert plan.drift_bytes <= plan.limit_bytes


def test_a_scale_larger_than_the_room_is_skipped():
    geometry = CacheGeometry(1, 1, 4, Schedule.from_shapes([(1, 1), (1, 2), (1, 3), (1, 20), (1, 4), (1, 9)]))
    plan = AMSKV("10 tokens", expanding_share=0.0).plan(geometry, similar(geometry, [0.0]))
    assert plan.layers[0][0].sources == ((), (0,), (0, 1), (0, 1, 2), (0, 1, 2), (0, 1, 2, 4))


def test_without_a_profile_all_layers_are_equal():
    geometry = replace(DEPTH_30, layers=6)
    with pytest.warns(UserWarning, match="AMS-KV runs without a profile"):
        plan = AMSKV("190 tokens").plan(geometry)
    assert {group.sources[-1] for (group,) in plan.layers} == {(0, 1, 8)}
    with pytest.raises(ProfileError, match="'scale_similarity'"):
        AMSKV("190 tokens").plan(geometry, Profile("old", 6, 30, TEN_SCALES))


def test_below_the_condensed_scales_the_smallest_budget_is_named():
    with pytest.raises(BudgetError, match=f"smallest feasible .* is {5 * DEPTH_30.token_bytes} B"):
        AMSKV("4.9 tokens").plan(DEPTH_30)
    plan = AMSKV("5 tokens").plan(DEPTH_30, similar(DEPTH_30, range(30)))
    assert {group.sources[-1] for (group,) in plan.layers} == {(0, 1)}


def test_everything_is_kept_at_100_percent():
    assert AMSKV("100%").plan(DEPTH_30).layers == Full().plan(DEPTH_30).layers


@pytest.mark.parametrize("settings", [{"timing": "before"}, {"expanding_share": 2}, {"condensed_scales": 0}])
def test_nonsense_is_refused_in_one_sentence(settings):
    with pytest.raises(InvalidInput) as caught:
        AMSKV(**settings)
    assert "\n" not in str(caught.value)
