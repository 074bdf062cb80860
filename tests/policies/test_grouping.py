"""Groups of like tokens and their means, against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalekv.planning import Schedule
from scalekv.planning.token_merging import MERGING_BLOCK, SEARCH_BLOCK
from scalekv.policies import grouping
from scalekv.policies.grouping import candidate_heights, group_means, nearest_groups


def drawn(seed: int, rows: int, heads: int, tokens: int, channels: int = 4):
    """Keys, values of another size, and counts, some of them none."""
    generator = torch.Generator().manual_seed(seed)
    key, value = torch.randn(2, rows, heads, tokens, channels, generator=generator)
    count = torch.randint(0, 4, (rows, heads, tokens), generator=generator).float()
    return key, value * 30, count


def spread_of(vectors) -> float:
    centre = [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]
    squares = [sum((one - mean) ** 2 for one, mean in zip(vector, centre, strict=True)) for vector in vectors]
    return max(math.sqrt(sum(squares) / len(squares)), 1e-12)


def oracle(key, value, count, kept: int, rounds: int) -> list[int]:
    """One head of one row, by lists of numbers."""
    tokens = len(key)
    seeds = [index * (tokens - 1) // max(1, kept - 1) for index in range(kept)]
    scales = [spread_of([vectors[seed] for seed in seeds]) for vectors in (key, value)]
    points = [
        [number / scales[0] for number in one] + [number / scales[1] for number in other]
        for one, other in zip(key, value, strict=True)
    ]
    centres = [points[seed] for seed in seeds]
    for step in range(rounds + 1):
        distances = [[math.dist(point, centre) for centre in centres] for point in points]
        groups = [row.index(min(row)) for row in distances]
        if step == 0:
            for group, seed in enumerate(seeds):
                groups[seed] = group
        if step < rounds:
            for group in range(kept):
                weight = sum(count[token] for token in range(tokens) if groups[token] == group)
                members = [token for token in range(tokens) if groups[token] == group]
                if weight:
                    columns = zip(
                        *([count[token] * number for number in points[token]] for token in members), strict=True
                    )
                    centres[group] = [sum(column) / weight for column in columns]
    return groups


@settings(max_examples=60)
@given(st.data())
def test_everyone_joins_the_nearest_centre(data):
    tokens = data.draw(st.integers(1, 24))
    kept, rounds = data.draw(st.integers(1, tokens)), data.draw(st.integers(0, 2))
    key, value, count = drawn(data.draw(st.integers(0, 9999)), 2, 2, tokens)
    found = nearest_groups(key, value, count, kept, rounds)
    assert found.shape == count.shape
    assert found.dtype == torch.int64
    for row in range(2):
        for head in range(2):
            lists = (part[row, head].tolist() for part in (key, value, count))
            assert found[row, head].tolist() == oracle(*lists, kept, rounds)


@pytest.mark.parametrize("kept", [1, 2, 7, 299, 300])
@pytest.mark.parametrize("rounds", [0, 2])
def test_groups_of_many_tokens_are_in_range_over_all_blocks(kept, rounds):
    tokens = 300
    assert tokens > SEARCH_BLOCK
    key, value, count = drawn(1, 2, 1, tokens)
    found = nearest_groups(key, value, count, kept, rounds)
    assert found.min() >= 0
    assert found.max() < kept
    seeds = torch.arange(kept) * (tokens - 1) // max(1, kept - 1)
    if not rounds:
        assert torch.equal(found[..., seeds], torch.arange(kept).expand(2, 1, -1)), "a centre is nearest to itself"


def test_equal_tokens_join_the_earlier_group():
    key = torch.tensor([1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0]).view(1, 1, -1, 1)
    found = nearest_groups(key, key, torch.ones(1, 1, 7), 4)
    assert found.tolist() == [[[0, 0, 1, 0, 2, 1, 3]]], "tokens 0, 2, 4 and 6 are centres, though two and two are equal"


def test_nothing_but_one_token_is_one_group_once_centres_have_moved():
    key = torch.full((1, 2, 9, 3), 7.0)
    assert not nearest_groups(key, key, torch.ones(1, 2, 9), 4, rounds=1).any()


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 40))
def test_no_group_is_empty(tokens, kept, reach):
    kept = min(tokens, kept)
    key, value, count = drawn(tokens, 1, 2, tokens)
    key[:, :, ::2] = 0
    found = nearest_groups(key, value * 0, count, kept, heights=torch.linspace(0, 1, tokens), reach=reach)
    assert all(set(head.tolist()) == set(range(kept)) for head in found[0])


def test_keys_and_values_count_alike_whatever_their_size():
    key, value, count = drawn(3, 1, 2, 50)
    expected = nearest_groups(key, value, count, 9)
    assert torch.equal(nearest_groups(key * 1024, value / 4096, count, 9), expected)
    assert not torch.equal(nearest_groups(key, torch.zeros_like(value), count, 9), expected)
    assert not torch.equal(nearest_groups(torch.zeros_like(key), value, count, 9), expected)


def spaced_by_height(heights: torch.Tensor, kept: int) -> list[int]:
    """The evenly spaced tokens from the top of the picture down."""
    tokens = len(heights)
    seeds = [index * (tokens - 1) // max(1, kept - 1) for index in range(kept)]
    return sorted(seeds, key=lambda seed: (float(heights[seed]), seed))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_with_heights_and_a_long_reach_only_the_order_of_groups_changes(data):
    tokens = data.draw(st.integers(1, 30))
    kept = data.draw(st.integers(1, tokens))
    key, value, count = drawn(data.draw(st.integers(0, 9999)), 1, 2, tokens)
    heights = torch.tensor(
        data.draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=tokens, max_size=tokens))
    )
    plain = nearest_groups(key, value, count, kept)
    seeds = [index * (tokens - 1) // max(1, kept - 1) for index in range(kept)]
    place = torch.tensor([spaced_by_height(heights, kept).index(seed) for seed in seeds])
    found = nearest_groups(key, value, count, kept, heights=heights, reach=kept)
    assert torch.equal(found, place[plain])


@pytest.mark.parametrize("reach", [0, 1, 5])
def test_tokens_look_at_the_groups_of_their_height_and_some_more(reach):
    tokens, kept = 3 * SEARCH_BLOCK, 40
    key, value, count = drawn(4, 1, 1, tokens)
    heights = torch.linspace(0, 1, tokens)
    found = nearest_groups(key, value, count, kept, heights=heights, reach=reach)[0, 0]
    levels = heights[spaced_by_height(heights, kept)]
    looked, seeds = 0, set(spaced_by_height(heights, kept))
    others = torch.tensor([token for token in range(tokens) if token not in seeds])
    for block in others.split(SEARCH_BLOCK):
        inside = torch.nonzero((levels >= heights[block].min()) & (levels <= heights[block].max()))[:, 0]
        low, high = int(inside[0]) - reach, int(inside[-1]) + reach
        assert found[block].min() >= low
        assert found[block].max() <= high
        looked += len(set(found[block].tolist()) - set(inside.tolist()))
    assert (looked > 0) == (reach > 0)


def test_a_block_between_two_groups_joins_one_of_them():
    key, value, count = drawn(6, 1, 1, 2 * SEARCH_BLOCK)
    heights = torch.linspace(0, 1, 2 * SEARCH_BLOCK).sqrt()
    found = nearest_groups(key, value, count, 1, heights=heights)
    assert not found.any()


def test_heights_of_whole_and_of_merged_history():
    schedule = Schedule.from_shapes([(1, 1), (2, 3), (4, 2)])
    whole = candidate_heights(schedule, schedule[2], 7).tolist()
    assert whole == [0.0, *[0.25] * 3, *[0.75] * 3, *[0.125] * 2, *[0.375] * 2, *[0.625] * 2, *[0.875] * 2]
    merged = candidate_heights(schedule, schedule[2], 4).tolist()
    assert merged == [0.0, 0.375, 0.625, 0.875, *whole[7:]]


def test_heights_may_be_of_any_type():
    key, value, count = drawn(3, 1, 2, 90)
    heights = torch.linspace(0, 1, 90)
    found = nearest_groups(key, value, count, 20, heights=heights.double())
    assert torch.equal(found, nearest_groups(key, value, count, 20, heights=heights))


def test_heights_belong_to_the_caller():
    schedule = Schedule.from_shapes([(1, 1), (2, 3), (4, 2)])
    whole = candidate_heights(schedule, schedule[2], 7)
    kept = whole.clone()
    whole.zero_()
    assert torch.equal(candidate_heights(schedule, schedule[2], 7), kept)


@given(st.integers(1, 12), st.integers(1, 40))
def test_the_first_token_is_the_first_group_for_ever(history, kept):
    schedule = Schedule.from_sides([1, 2, 3, 4, 5])
    heights = candidate_heights(schedule, schedule[4], history)
    key, value, count = drawn(0, 1, 1, len(heights))
    kept = min(kept, len(heights))
    assert spaced_by_height(heights, kept)[0] == 0
    assert nearest_groups(key, value, count, kept, heights=heights, reach=kept)[0, 0, 0] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("near", [1, 30_000, 2**20])
@pytest.mark.parametrize("tokens", [5, 1100])
def test_means_are_those_of_a_loop(tokens, near, dtype, monkeypatch):
    """One head at a time, some heads, or all at once; in one block of tokens or two."""
    assert 5 < MERGING_BLOCK < 1100
    monkeypatch.setattr(grouping, "NEAR_BYTES", near)
    kept = tokens // 2 + 1
    source, _, count = drawn(5, 2, 3, tokens)
    source = source.to(dtype)
    groups = torch.randint(0, kept, count.shape, generator=torch.Generator().manual_seed(0))
    sums = torch.zeros(2, 3, kept)
    expected = torch.zeros(2, 3, kept, 4, dtype=torch.float64)
    for row in range(2):
        for head in range(3):
            for token in range(tokens):
                group, weight = groups[row, head, token], count[row, head, token]
                sums[row, head, group] += weight
                expected[row, head, group] += weight.double() * source[row, head, token].double()
    expected /= sums.clamp(min=1)[..., None]
    found = group_means(source, count, groups, sums)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    assert not found[sums == 0].any()


@pytest.mark.parametrize("rounds", [0, 2])
@pytest.mark.parametrize(("tokens", "kept"), [(7, 3), (90, 40), (300, 130)])
def test_rows_get_what_they_get_alone_bit_for_bit(tokens, kept, rounds):
    key, value, count = drawn(8, 3, 2, tokens, 16)
    groups = nearest_groups(key, value, count, kept, rounds)
    sums = torch.zeros(3, 2, kept).scatter_add_(2, groups, count)
    means = group_means(key, count, groups, sums)
    for row in range(3):
        own = slice(row, row + 1)
        alone = nearest_groups(key[own], value[own], count[own], kept, rounds)
        assert torch.equal(alone, groups[own])
        assert torch.equal(group_means(key[own], count[own], alone, sums[own]), means[own])
