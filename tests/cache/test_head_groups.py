"""Heads of unequal length: groups against one dense attention with a mask, and their bytes at every moment."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from driving import compare_with_witness, moments, steps, tensors
from methods import PerHead

from live_bytes import LiveBytes
from scalekv.cache import KVCache, kv_cache
from scalekv.cache.attention import attention
from scalekv.cache.stores import HeadIndex
from scalekv.errors import BudgetError
from scalekv.planning import CacheGeometry, Profile, Schedule
from scalekv.policies import AMSKV, AdaKV, Hack, HackPP, HeatKV, Policy, SelectionView
from strategies import codecs, geometries, measured, next_scale_rivals

SCHEDULE = Schedule.from_sides([1, 2, 3, 5, 6, 8])
GEOMETRY = CacheGeometry(3, 4, 8, SCHEDULE, batch=2, guidance=2, element_bytes=4)
PROFILE = Profile("drawn", 3, 4, SCHEDULE, **measured(GEOMETRY, 11))
GROUPED = [
    PerHead("30%"),
    AdaKV("30%", alpha=0.0),
    Hack("30%", alpha=0.4),
    Hack("30%", alpha=0.4, timing="after"),
    Hack("60%", alpha=0.6, contextual_share=0.3),
    HackPP("30%", alpha=0.4, tau=2.0, attention_share=0.5),
    HackPP("30%", alpha=0.4, attention_share=1.0, queries="uniform:1"),
    HeatKV("40%"),
    HeatKV("40%", allocation="density", sink_scales=2),
]


@pytest.mark.parametrize("batch", [1, 40])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("contiguous", [True, False])
def test_heads_are_found_wherever_they_are(batch, parts, contiguous):
    geometry = CacheGeometry(1, 3 * parts, 4, SCHEDULE, batch=batch, guidance=1, element_bytes=2, parts=parts)
    heads = [0, 2, 3 * parts - 2]
    drawn = torch.randn(parts * batch, 5, 3, 4).bfloat16().transpose(1, 2)
    tensor = drawn.contiguous() if contiguous else drawn
    index, written = HeadIndex(heads, geometry, torch.device("cpu")), torch.zeros_like(tensor)
    own = index.take(tensor)
    index.put(written, own)
    for place, head in enumerate(heads):
        rows = slice(head // 3 * batch, (head // 3 + 1) * batch)
        assert torch.equal(own[:, place], tensor[rows, head % 3])
        assert torch.equal(written[rows, head % 3], tensor[rows, head % 3])
        written[rows, head % 3] = 0
    assert not written.any()


@pytest.mark.parametrize("policy", [*GROUPED, AMSKV("30%")], ids=str)
def test_groups_are_one_dense_attention_with_a_mask(policy, monkeypatch):
    """The mask lets every head see what its group read; the dense call sees the union, which is everything so far."""
    read: list[torch.Tensor] = []

    def spy(query, key, value):
        read.append(key)
        return attention(query, key, value)

    monkeypatch.setattr(kv_cache, "attention", spy)
    plan = policy.plan(GEOMETRY, PROFILE)
    assert type(policy) is AMSKV or max(map(len, plan.layers)) > 1
    lengths = set()
    with KVCache(plan, policy, dtype=torch.float32) as cache:
        for segment, layer, output in steps(cache, GEOMETRY):
            seen = [tensors(GEOMETRY, one, layer)[:3] for one in SCHEDULE.segments[: segment.index + 1]]
            keys, values = (torch.cat([one[part] for one in seen], 2) for part in (1, 2))
            mask = torch.zeros(*keys.shape[:3], dtype=torch.bool)
            for group, found in zip(plan.layers[layer], read, strict=True):
                heads = list(group.heads)
                assert found.shape[2] == plan.attended(group, segment.index)
                same = (keys[:, heads, :, None] == found[:, :, None]).all(-1)
                assert (same.sum(2) == 1).all(), "every key that is read was seen, once"
                mask[:, heads] = same.any(-1)
                lengths.add((segment.index, found.shape[2]))
            read.clear()
            logits = (seen[-1][0] @ keys.mT).masked_fill(~mask[:, :, None], -torch.inf)
            torch.testing.assert_close(output, torch.softmax(logits, -1) @ values, atol=1e-5, rtol=1e-4)
    assert len(lengths) > len(SCHEDULE), "some heads read more than others"


@settings(max_examples=150)
@given(st.data())
def test_the_pool_holds_at_every_moment(data):
    geometry = data.draw(geometries(layers=6, heads=4))
    policy = data.draw(next_scale_rivals())
    settings = {"budget": data.draw(st.floats(0.02, 0.999)), "strict": data.draw(st.booleans())}
    policy = replace(policy, codec=data.draw(codecs()), **settings)
    sizes = geometry.layers, geometry.heads, geometry.schedule
    try:
        plan = policy.plan(geometry, Profile("drawn", *sizes, **measured(geometry, data.draw(st.integers(0, 99)))))
    except BudgetError:
        return
    assert plan.drift_bytes <= plan.limit_bytes
    assert not policy.strict or plan.peak_bytes <= plan.limit_bytes


@pytest.mark.parametrize("policy", GROUPED, ids=str)
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("head_dim", "dtype"), [(4, torch.float32), (4, torch.bfloat16), (32, torch.float32)])
def test_an_independent_witness_sees_no_more_than_planned(policy: Policy, strict: bool, head_dim: int, dtype):
    sides = [1, 3, 6, 12, 16, 20]
    geometry = CacheGeometry(3, 4, head_dim, Schedule.from_sides(sides), batch=2, element_bytes=dtype.itemsize)
    profile = Profile("drawn", 3, 4, geometry.schedule, **measured(geometry, 3))
    if strict:
        policy = replace(policy, strict=True, budget=policy.plan(geometry, profile).peak_bytes)
    with LiveBytes() as witness, KVCache(policy.plan(geometry, profile), policy, dtype=dtype) as cache:
        planned = moments(cache)
        for segment in geometry.schedule:
            cache.begin(segment)
            ambient = witness.live - cache.live_bytes
            for layer in range(geometry.layers):
                compare_with_witness(witness, cache, ambient, segment, layer, planned[segment.index, layer])


@pytest.mark.parametrize("policy", [Hack(queries="uniform:1"), HackPP(queries="uniform:1"), HackPP()], ids=str)
@pytest.mark.parametrize("role", ["contextual", "structural"])
def test_a_score_takes_no_more_than_planned(policy: Policy, role: str):
    """The scores alone, without the copies that hide them in the test above."""
    schedule = Schedule.from_sides([1, 8, 16, 24, 30])
    geometry = CacheGeometry(1, 2, 8, schedule, batch=2, element_bytes=4)
    plan = replace(policy, budget="5%").plan(geometry, Profile("drawn", 1, 2, schedule, **measured(geometry, 1)))
    tokens, segment = schedule.start(4), schedule[3]
    key, value = torch.randn(2, 1, 2, tokens, 8)
    window = torch.tensor(policy.observation(segment)) + schedule.start(3)
    origin = torch.arange(tokens, dtype=torch.int32).expand(1, 2, -1).contiguous()
    query = key[:, :, window]
    seen = SelectionView(
        0, (0, 1), schedule, segment, 50, key, value, query, window, origin, role=role, profile=plan.profile
    )
    with LiveBytes((key, value, query, window, origin)) as witness:
        policy.score(seen)
        assert witness.peak <= plan.choosing_bytes(2, tokens) // plan.scored_rows(2, tokens)
