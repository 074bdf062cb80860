"""What tokens are worth to heads, and how heads share a pool by it."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalekv.errors import ProfileError
from scalekv.planning import CacheGeometry, Profile, Schedule
from scalekv.planning.curves import curve_ranks
from scalekv.planning.worth import head_losses, shared_pool
from strategies import MEASURED_FOR_MERGING, geometries, measured

SCHEDULE = Schedule.from_sides([1, 2, 3, 4])
GEOMETRY = CacheGeometry(2, 3, 4, SCHEDULE, element_bytes=4)


def profile_of(geometry: CacheGeometry, seed: int = 0, **changes) -> Profile:
    tables = {**measured(geometry, seed, MEASURED_FOR_MERGING), **changes}
    return Profile("drawn", geometry.layers, geometry.heads, geometry.schedule, **tables)


def mapped(table, change):
    return tuple(mapped(part, change) for part in table) if isinstance(table, tuple) else change(table)


def loss_at(curve, tokens: float) -> float:
    """A curve between its points; nothing is lost beyond the last."""
    for (low, more), (high, less) in pairwise(curve):
        if tokens <= high:
            return more + (less - more) * (tokens - low) / (high - low)
    return curve[-1][1]


def summed(losses, counts) -> float:
    return sum(loss_at(curve, count) for curve, count in zip(losses, counts, strict=True))


@st.composite
def convex_curves(draw):
    """Points from one token on, at whole numbers, falling less and less to 0."""
    steps = draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9)), max_size=3))
    tokens, points, slope = 1 + sum(step for step, _ in steps), [], 0.0
    loss = 0.0
    points.append((float(tokens), loss))
    for step, steeper in steps:
        slope += steeper
        tokens -= step
        loss += step * slope
        points.append((float(tokens), loss))
    return tuple(reversed(points))


@st.composite
def pools(draw, heads: int = 3):
    losses = draw(st.lists(convex_curves(), min_size=1, max_size=heads))
    available = [draw(st.integers(1, 8)) for _ in losses]
    least = draw(st.integers(1, 3))
    pool = draw(st.integers(least * len(losses), 8 * len(losses) + 2))
    return losses, pool, least, available


@settings(max_examples=100)
@given(pools())
def test_no_other_division_loses_less(drawn):
    losses, pool, least, available = drawn
    found = shared_pool(losses, pool, least, available)
    floors = [min(least, most) for most in available]
    ranges = [range(low, most + 1) for low, most in zip(floors, available, strict=True)]
    best = min(summed(losses, counts) for counts in itertools.product(*ranges) if sum(counts) <= pool)
    assert summed(losses, found) == pytest.approx(best, abs=1e-9)


@settings(max_examples=100)
@given(pools(heads=6))
def test_the_pool_is_filled_between_floor_and_available(drawn):
    losses, pool, least, available = drawn
    found = shared_pool(losses, pool, least, available)
    assert sum(found) == min(pool, sum(available))
    assert all(min(least, most) <= count <= most for count, most in zip(found, available, strict=True))


@settings(max_examples=30)
@given(st.data())
def test_measured_curves_are_divided_to_within_a_token_each(data):
    geometry = data.draw(geometries(longest=4, side=3))
    profile = profile_of(geometry, data.draw(st.integers(0, 999)))
    boundary = data.draw(st.integers(0, max(0, len(geometry.schedule) - 2)))
    if len(geometry.schedule) < 2:
        return
    losses, tokens = head_losses(profile, boundary), geometry.schedule.start(boundary + 1)
    pool = data.draw(st.integers(len(losses), len(losses) * tokens))
    found = shared_pool(losses, pool, 1, [tokens] * len(losses))
    assert sum(found) == pool
    others = random.Random(0)
    for _ in range(10):
        counts = [1] * len(losses)
        for _ in range(pool - len(losses)):
            room = [head for head, count in enumerate(counts) if count < tokens]
            counts[others.choice(room)] += 1
        more = [min(tokens, count + 1) for count in found]
        assert summed(losses, more) <= summed(losses, counts) * (1 + 1e-9)


@settings(max_examples=60)
@given(geometries(longest=5), st.integers(0, 999))
def test_losses_are_convex_and_fall_to_nothing(geometry, seed):
    profile = profile_of(geometry, seed)
    for boundary in range(len(geometry.schedule) - 1):
        losses = head_losses(profile, boundary)
        assert len(losses) == geometry.layers * geometry.heads
        for curve in losses:
            slopes = [(less - more) / (high - low) for (low, more), (high, less) in pairwise(curve)]
            assert all(high > low and less < more for (low, more), (high, less) in pairwise(curve))
            assert slopes == sorted(slopes)
            assert curve[0][0] == 1
            assert curve[-1][0] <= geometry.schedule.start(boundary + 1)


def with_ends(profile: Profile) -> Profile:
    """Merging curves as they are measured: nothing is lost at the last point."""
    cells = tuple(mapped_curves(cell, lambda curve: (*curve[:-1], 0.0)) for cell in profile.curves["merging"])
    return replace(profile, curves={"merging": cells})


def mapped_curves(cell, change):
    return tuple(tuple(change(curve) for curve in layer) for layer in cell)


@settings(max_examples=30)
@given(geometries(longest=5), st.integers(0, 999))
def test_losses_end_at_nothing_where_all_is_kept(geometry, seed):
    profile = with_ends(profile_of(geometry, seed))
    for boundary in range(len(geometry.schedule) - 1):
        assert all(curve[-1][1] == 0 for curve in head_losses(profile, boundary))


def test_losses_are_the_formula():
    """One boundary, at the measured ranks; the hull may pass below those in the middle."""
    tokens, boundary = SCHEDULE.start(2), 1
    ranks = curve_ranks(tokens)
    curve = tuple(5.0 / rank - 5.0 / tokens for rank in ranks)
    profile = profile_of(GEOMETRY, 4)
    cells = list(profile.curves["merging"])
    cells[boundary] = ((curve,) * 3,) * 2
    profile = replace(profile, curves={"merging": tuple(cells)})
    mass, sensitivity = profile.source_statistics["mass"], profile.head_statistics["sensitivity"]
    for index, found in enumerate(head_losses(profile, boundary)):
        layer, head = divmod(index, 3)
        seen = {later: mass[later][0][layer][head] + mass[later][1][layer][head] for later in (2, 3)}
        weight = 9 * sensitivity[2][layer][head] + 16 * sensitivity[3][layer][head] * (seen[3] / seen[2]) ** 2
        assert found[0] == (1, pytest.approx(weight * curve[0], rel=1e-6))
        assert found[-1] == (tokens, 0)
        assert all(loss_at(found, rank) <= weight * loss + 1e-6 for rank, loss in zip(ranks, curve, strict=True))


def test_a_loss_scales_with_the_sensitivity_of_its_head():
    profile = with_ends(profile_of(GEOMETRY, 2))
    doubled = tuple(
        tuple(tuple(2 * one if head == 1 else one for head, one in enumerate(row)) for row in cell)
        for cell in profile.head_statistics["sensitivity"]
    )
    other = replace(profile, head_statistics={"sensitivity": doubled})
    for boundary in range(len(SCHEDULE) - 1):
        pairs = zip(head_losses(profile, boundary), head_losses(other, boundary), strict=True)
        for index, (before, after) in enumerate(pairs):
            factor = 2 if index % 3 == 1 else 1
            assert [tokens for tokens, _ in after] == pytest.approx([tokens for tokens, _ in before])
            assert [loss for _, loss in after] == pytest.approx([factor * loss for _, loss in before])


def test_heads_without_any_loss_get_no_more_than_the_floor():
    curves = [((1.0, 0.0),), ((1.0, 8.0), (4.0, 2.0), (9.0, 0.0))]
    assert shared_pool(curves, 8, 2, [9, 9]) == [2, 6]
    assert shared_pool(curves, 13, 2, [9, 9]) == [4, 9]
    assert shared_pool(curves, 40, 2, [9, 9]) == [9, 9]


@pytest.mark.parametrize("kind", list(MEASURED_FOR_MERGING))
def test_a_missing_table_is_named(kind):
    profile = profile_of(GEOMETRY, **{kind: {}})
    with pytest.raises(ProfileError, match=f"no table '{MEASURED_FOR_MERGING[kind][0]}'.*scalekv calibrate"):
        head_losses(profile, 1)
