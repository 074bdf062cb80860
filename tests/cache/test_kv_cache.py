"""The cache against a plain reference, against its plan to the byte, and against an independent witness of memory."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from driving import compare_with_witness, moments, reference, run, steps, tensors
from methods import OddSegments, PerHead, Remembering, TwoBudgets

from live_bytes import LiveBytes
from scalekv.cache import KVCache
from scalekv.errors import BudgetError
from scalekv.planning import CacheGeometry, Profile, Schedule
from scalekv.policies import (
    CAKE,
    H2O,
    Full,
    Policy,
    PyramidKV,
    Random,
    ScaleKV,
    SlidingWindow,
    SnapKV,
    StreamingLLM,
)
from strategies import geometries, policies, profiles

SCHEDULE = Schedule.from_sides([1, 2, 3, 5, 6])
GEOMETRY = CacheGeometry(3, 2, 8, SCHEDULE, batch=2, guidance=2, element_bytes=4)


COMPRESSING = [
    ScaleKV(),
    ScaleKV(scorer="projection", pooling="max"),
    ScaleKV(pooling="none", centered=True),
    SlidingWindow(),
    StreamingLLM(),
    Random(),
    PerHead(),
    PerHead(timing="before"),
    ScaleKV(queries="all"),
    ScaleKV(queries="uniform:7", timing="before"),
    SlidingWindow(timing="before"),
    TwoBudgets(read=30),
    TwoBudgets(read=300, queries="all"),
    Remembering(),
    Remembering(timing="before"),
    SnapKV(),
    PyramidKV(beta=5.0),
    H2O(),
    CAKE(),
    CAKE(queries="all"),
]


@settings(max_examples=40)
@given(geometries())
def test_full_cache_is_plain_attention(geometry):
    outputs, _ = run(Full(), geometry)
    for place, expected in reference(geometry).items():
        torch.testing.assert_close(outputs[place].double(), expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=60)
@given(st.data())
def test_any_policy_at_100_percent_is_the_full_cache_bit_for_bit(data):
    geometry = data.draw(geometries())
    policy = data.draw(policies(budget="100%"))
    outputs, cache = run(policy, geometry, data.draw(profiles(geometry)))
    expected, _ = run(Full(), geometry)
    assert all(torch.equal(outputs[place], expected[place]) for place in expected)
    assert cache.report().kept_bytes >= geometry.lossless_bytes


@pytest.mark.parametrize("policy", COMPRESSING, ids=str)
def test_twice_is_the_same_bit_for_bit(policy):
    first, _ = run(policy, GEOMETRY)
    again, _ = run(policy, GEOMETRY)
    assert all(torch.equal(first[place], again[place]) for place in first)


@settings(max_examples=80)
@given(st.data())
def test_allocated_bytes_are_the_planned_bytes_at_every_moment(data):
    geometry = data.draw(geometries())
    policy = data.draw(policies(budget=data.draw(st.floats(0.02, 1.0)), strict=data.draw(st.booleans())))
    try:
        plan = policy.plan(geometry, data.draw(profiles(geometry)))
    except BudgetError:
        return
    with KVCache(plan, policy, dtype=torch.float32) as cache:
        check_every_moment(cache, geometry)
    report = cache.report()
    assert report.kept_bytes == plan.nominal_bytes
    assert report.measured_peak_bytes == plan.peak_bytes
    assert cache.live_bytes == 0


@pytest.mark.parametrize("codec", ["none", "int8"])
@pytest.mark.parametrize("sides", [[1, 1, 1, 1], [1, 2, 3], [1, 1, 2, 2, 3]], ids=str)
def test_sums_of_attention_count_while_they_are_added_up(sides, codec):
    """Also where that takes more than choosing does, as with few candidates."""
    geometry = CacheGeometry(1, 2, 64, Schedule.from_sides(sides), element_bytes=4)
    policy = H2O("90%", codec=codec)
    with KVCache(policy.plan(geometry), policy, dtype=torch.float32) as cache:
        check_every_moment(cache, geometry)


def check_every_moment(cache: KVCache, geometry: CacheGeometry) -> None:
    planned = moments(cache)
    cache.ledger.mark()
    for segment, layer, _ in steps(cache, geometry):
        moment = planned[segment.index, layer]
        assert cache.ledger.recent_peak == moment.peak
        assert cache.live_bytes == moment.after
        cache.ledger.mark()


@pytest.mark.parametrize("policy", [Full(), OddSegments(), *COMPRESSING], ids=str)
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("head_dim", "dtype"), [(4, torch.float32), (4, torch.bfloat16), (32, torch.float32)])
def test_an_independent_witness_sees_no_more_than_planned(policy, strict, head_dim, dtype):
    """Counts tensors that really live, scoring scratch included; only the attention call's result comes on top.

    With 4 channels the scratch of scoring and choosing is most of the peak, with 32 the keys and values are.
    """
    sides = [1, 3, 6, 12, 16, 20]
    geometry = CacheGeometry(3, 4, head_dim, Schedule.from_sides(sides), batch=2, element_bytes=dtype.itemsize)
    budget = "100%" if type(policy) in (Full, OddSegments) else "20%"
    if strict:
        budget = replace(policy, budget=budget).plan(geometry).peak_bytes
    policy = replace(policy, budget=budget, strict=strict)
    with LiveBytes() as witness, KVCache(policy.plan(geometry), policy, dtype=dtype) as cache:
        planned = moments(cache)
        for segment in geometry.schedule:
            cache.begin(segment)
            ambient = witness.live - cache.live_bytes
            for layer in range(geometry.layers):
                compare_with_witness(witness, cache, ambient, segment, layer, planned[segment.index, layer])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keys_are_held_in_half_precision(dtype):
    geometry = CacheGeometry(2, 2, 8, SCHEDULE, element_bytes=2)
    _, cache = run(SlidingWindow(budget="50%"), geometry, dtype=dtype)
    assert cache.report().kept_bytes <= geometry.lossless_bytes // 2


def test_rounding_the_key_at_write_equals_rounding_at_read():
    generator = torch.Generator().manual_seed(0)
    key = torch.randn(1, 2, 6, 8, generator=generator)
    halves = torch.cat([key[:, :, :3].bfloat16(), key[:, :, 3:].bfloat16()], dim=2)
    assert torch.equal(halves, key.bfloat16())


def test_sliding_window_keeps_exactly_the_newest():
    geometry = CacheGeometry(1, 1, 4, Schedule.from_sides([1, 2, 3, 4]), guidance=1, element_bytes=4)
    policy = SlidingWindow(budget="6 tokens")
    _, kept = last_history(policy, geometry)
    every = [tensors(geometry, segment, 0)[1] for segment in geometry.schedule][:3]
    assert torch.equal(kept, torch.cat(every, dim=2)[:, :, -6:])


def test_streaming_llm_keeps_sinks_and_the_newest_segment():
    geometry = CacheGeometry(1, 1, 4, Schedule.from_sides([1, 2, 3, 4]), guidance=1, element_bytes=4)
    _, kept = last_history(StreamingLLM(budget="13 tokens"), geometry)
    every = torch.cat([tensors(geometry, segment, 0)[1] for segment in geometry.schedule][:3], dim=2)
    assert torch.equal(kept, torch.cat([every[:, :, :5], every[:, :, -8:]], dim=2))


def last_history(policy: Policy, geometry: CacheGeometry) -> tuple[KVCache, torch.Tensor]:
    """The cache and the first layer's keys when the last segment begins."""
    cache = KVCache(policy.plan(geometry), policy, dtype=torch.float32)
    seen: list[torch.Tensor] = []
    cache.watch = lambda layer, segment, query, key, value: seen.append(key[:, :, : -segment.tokens].clone())
    for _ in steps(cache, geometry):
        pass
    return cache, seen[-1]


def test_random_sets_are_nested_and_independent_of_the_batch():
    """A larger budget keeps every key a smaller one keeps; another batch keeps the same positions."""
    kept = {}
    for tokens in (4, 9):
        for batch in (1, 3):
            geometry = CacheGeometry(
                1, 2, 4, Schedule.from_sides([1, 2, 3, 4]), batch=batch, guidance=1, element_bytes=4
            )
            plan = Random(budget=f"{1.25 * tokens} tokens").plan(geometry)
            origins = trace_origins(plan, Random(budget=f"{1.25 * tokens} tokens"), geometry)
            kept[tokens, batch] = [set(head.tolist()) for head in origins]
    assert all(small < large for small, large in zip(kept[4, 1], kept[9, 1], strict=True))
    assert kept[4, 1] == kept[4, 3]
    assert kept[4, 1][0] != kept[4, 1][1]


def trace_origins(plan, policy, geometry) -> torch.Tensor:
    cache = KVCache(plan, policy, dtype=torch.float32)
    for segment, _, _ in steps(cache, geometry):
        if segment.index == len(geometry.schedule) - 2:
            return cache._stores[0][0].origin[0].clone()
    raise AssertionError("no segment before the last")


def test_a_salient_key_survives_every_trim():
    geometry = CacheGeometry(1, 2, 8, Schedule.from_sides([1, 3, 6, 8, 10, 11]), guidance=1, element_bytes=4)
    policy = ScaleKV(budget="25 tokens", pooling="none")
    cache = KVCache(policy.plan(geometry), policy, dtype=torch.float32)
    direction = torch.nn.functional.normalize(torch.ones(8), dim=0)
    marked = 30 * direction
    found = []
    cache.watch = lambda layer, segment, query, key, value: found.append((key == marked).all(-1).any(-1).all())
    for segment in geometry.schedule:
        cache.begin(segment)
        query, key, value, _ = tensors(geometry, segment, 0)
        query = query * 0.1 + direction
        if segment.index == 2:
            key[:, :, 7] = marked
        cache.attend(0, query, key, value)
    assert len(found) == 6
    assert all(found[2:])


def test_window_tokens_always_survive():
    geometry = CacheGeometry(2, 3, 8, Schedule.from_sides([1, 4, 8, 9]), element_bytes=4)
    policy = ScaleKV(budget="20 tokens")
    cache = KVCache(policy.plan(geometry), policy, dtype=torch.float32)
    histories = {}
    cache.watch = lambda layer, segment, query, key, value: histories.setdefault((segment.index, layer), key.clone())
    for _ in steps(cache, geometry):
        pass
    for layer in range(2):
        window = tensors(geometry, geometry.schedule[2], layer)[1][:, :, list(policy.observation(geometry.schedule[2]))]
        kept = histories[3, layer][:, :, :-81]
        matches = (kept[:, :, :, None] == window[:, :, None]).all(-1).any(2)
        assert matches.all()


def test_rows_are_independent():
    """Each row of a batch keeps and returns what it does alone."""
    many = CacheGeometry(2, 2, 8, SCHEDULE, batch=3, guidance=1, element_bytes=4)
    one = CacheGeometry(2, 2, 8, SCHEDULE, batch=1, guidance=1, element_bytes=4)
    policy = ScaleKV(budget="30%")
    together, _ = run(policy, many)
    for row in range(3):
        with KVCache(policy.plan(one), policy, dtype=torch.float32) as cache:
            for segment in one.schedule:
                cache.begin(segment)
                for layer in range(one.layers):
                    parts = [tensor[row : row + 1] for tensor in tensors(many, segment, layer)[:3]]
                    alone = cache.attend(layer, *parts)
                    torch.testing.assert_close(alone[0], together[segment.index, layer][row], atol=1e-6, rtol=1e-5)


def test_head_groups_equal_a_masked_oracle():
    """Heads of unequal length: the same as dense attention with dropped keys masked out."""
    geometry = CacheGeometry(1, 3, 8, Schedule.from_sides([1, 2, 3, 4]), guidance=1, element_bytes=4)
    policy = PerHead(budget="50%")
    outputs, _ = run(policy, geometry)
    capacity = {head: group.capacity for group in policy.plan(geometry).layers[0] for head in group.heads}
    keys, values = [], []
    for segment in geometry.schedule:
        query, key, value, _ = tensors(geometry, segment, 0)
        keys.append(key)
        values.append(value)
        all_keys, all_values = torch.cat(keys, 2), torch.cat(values, 2)
        start = geometry.schedule.start(segment.index)
        for head in range(3):
            visible = slice(start - capacity[head][segment.index], None)
            weights = torch.softmax(query[:, head] @ all_keys[:, head, visible].mT, -1)
            torch.testing.assert_close(
                outputs[segment.index, 0][:, head], weights @ all_values[:, head, visible], atol=1e-5, rtol=1e-5
            )


def test_a_failed_generation_frees_everything():
    policy = SlidingWindow(budget="50%")
    with pytest.raises(ZeroDivisionError), KVCache(policy.plan(GEOMETRY), policy, dtype=torch.float32) as cache:
        for segment, layer, _ in steps(cache, GEOMETRY):
            if (segment.index, layer) == (3, 1):
                assert cache.live_bytes > 0
                raise ZeroDivisionError
    gc.collect()
    assert cache.live_bytes == 0
    assert all(store.key is None and store.value is None for stores in cache._stores for store in stores)
    again, _ = run(policy, GEOMETRY)
    fresh, _ = run(policy, GEOMETRY)
    assert all(torch.equal(again[place], fresh[place]) for place in fresh)


def test_the_last_segment_is_never_stored_and_history_drains_layer_by_layer():
    policy = Full()
    with KVCache(policy.plan(GEOMETRY), policy, dtype=torch.float32) as cache:
        held = [cache.live_bytes for segment, _, _ in steps(cache, GEOMETRY) if SCHEDULE.is_last(segment)]
    per_layer = GEOMETRY.lossless_bytes // 3
    assert held == [2 * per_layer, per_layer, 0]


class TestMisuse:
    """A network or driver that breaks the contract is told so at once."""

    def opened(self, policy: Policy = Full()) -> KVCache:  # noqa: B008
        return KVCache(policy.plan(GEOMETRY), policy, dtype=torch.float32)

    def test_attend_before_begin(self):
        with pytest.raises(RuntimeError, match="begin"):
            self.opened().attend(0, *tensors(GEOMETRY, SCHEDULE[0], 0)[:3])

    def test_layers_out_of_order(self):
        cache = self.opened()
        cache.begin(SCHEDULE[0])
        with pytest.raises(RuntimeError, match="expected layer 0, got 1"):
            cache.attend(1, *tensors(GEOMETRY, SCHEDULE[0], 0)[:3])

    def test_segments_out_of_order(self):
        with pytest.raises(RuntimeError, match="not the next"):
            self.opened().begin(SCHEDULE[1])

    def test_a_segment_that_was_not_finished(self):
        cache = self.opened()
        cache.begin(SCHEDULE[0])
        with pytest.raises(RuntimeError, match="layer 0 has not attended"):
            cache.begin(SCHEDULE[1])

    def test_another_segment_than_planned(self):
        with pytest.raises(RuntimeError, match="not the next"):
            self.opened().begin(Schedule.from_sides([2])[0])

    def test_wrong_shape_or_dtype(self):
        cache = self.opened()
        cache.begin(SCHEDULE[0])
        query, key, value, _ = tensors(GEOMETRY, SCHEDULE[0], 0)
        with pytest.raises(RuntimeError, match="value is"):
            cache.attend(0, query, key, value[:1])
        with pytest.raises(RuntimeError, match="key is"):
            cache.attend(0, query, key.double(), value)

    def test_dtype_of_another_size_than_planned(self):
        with pytest.raises(ValueError, match="4 bytes per element"):
            KVCache(Full().plan(GEOMETRY), Full(), dtype=torch.bfloat16)

    def test_projection_scorer_without_projections(self):
        policy = ScaleKV(budget="10%", scorer="projection")
        cache = KVCache(policy.plan(GEOMETRY), policy, dtype=torch.float32)
        with pytest.raises(RuntimeError, match="does not offer"):
            for segment in SCHEDULE:
                cache.begin(segment)
                for layer in range(3):
                    cache.attend(layer, *tensors(GEOMETRY, segment, layer)[:3])


def test_roles_decide_who_keeps_more():
    profile = Profile("m", 3, 2, SCHEDULE, roles=dict.fromkeys(range(5), (1,)))
    _, cache = run(ScaleKV(budget="70%"), GEOMETRY, profile)
    refiner, drafter, other = cache.report().tokens_per_layer
    assert drafter == SCHEDULE.history_tokens
    assert refiner == pytest.approx(other, abs=1)
