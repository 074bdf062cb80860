"""Attention that adds up its weights gives what attention gives, and the weights' sums."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scalekv import H2O, CacheGeometry, KVCache
from scalekv.cache import attention
from scalekv.cache.attention import attention_and_mass, attention_mass
from scalekv.planning import Schedule, weighing


def drawn(rows: int, heads: int, queries: int, tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows + heads + queries + tokens)
    shapes = (queries, tokens, tokens)
    return tuple(torch.randn(rows, heads, size, 8, generator=generator).to(dtype) for size in shapes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("near", [1, 4000, 2**20])
@given(rows=st.integers(1, 3), heads=st.integers(1, 5), queries=st.integers(1, 300), history=st.integers(0, 200))
def test_outputs_and_sums_of_weights(near, dtype, rows, heads, queries, history):
    """One head at a time, some, or all; with one block of queries or several."""
    query, key, value = drawn(rows, heads, queries, queries + history, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weighing, "NEAR_BYTES", near)
        output, mass = attention_and_mass(query, key, value)
        assert torch.equal(attention_mass(query, key), mass)
    weights = torch.softmax(query.double() @ key.double().mT, -1)
    tolerance = max(1e-5, 4 * torch.finfo(dtype).eps)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), weights @ value.double(), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(output.double(), attention(query, key, value).double(), atol=3e-2, rtol=tolerance)
    assert mass.dtype == torch.float32
    torch.testing.assert_close(mass.double(), weights.sum(2), atol=1e-4, rtol=1e-4)


def test_rows_get_what_they_get_alone_bit_for_bit():
    query, key, value = drawn(4, 3, 150, 260, torch.bfloat16)
    together = attention_and_mass(query, key, value)
    for row in range(4):
        own = slice(row, row + 1)
        alone = attention_and_mass(query[own], key[own], value[own])
        assert all(torch.equal(one[own], other) for one, other in zip(together, alone, strict=True))


@pytest.mark.parametrize(("queries", "passes"), [("all", 1), ("uniform:4", 0)])
def test_h2o_adds_up_while_it_attends(queries, passes, monkeypatch):
    """In one pass over the logits where all queries score and tokens were dropped; until then bit for bit attention."""
    calls = []

    def counted(*given: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(given)
        return attention_and_mass(*given)

    monkeypatch.setattr("scalekv.cache.kv_cache.attention_and_mass", counted)
    schedule = Schedule.from_sides([1, 2, 3, 4, 5])
    policy = H2O(budget="40%", queries=queries)
    plan = policy.plan(CacheGeometry(1, 2, 8, schedule, element_bytes=2))
    whole: list[tuple[Tensor, Tensor]] = []
    exact = 0
    with KVCache(plan, policy, dtype=torch.bfloat16) as cache:
        for segment in schedule:
            cache.begin(segment)
            query, key, value = drawn(2, 2, segment.tokens, segment.tokens, torch.bfloat16)
            output = cache.attend(0, query, key, value)
            whole.append((key, value))
            if plan.layers[0][0].capacity[segment.index] == schedule.start(segment.index):
                keys, values = (torch.cat(parts, dim=2) for parts in zip(*whole, strict=True))
                assert torch.equal(output, attention(query, keys, values))
                exact += plan.observes(segment.index)
    dropped = sum(plan.observes(segment.index) for segment in schedule) - exact
    assert exact == 3
    assert dropped == 1
    assert len(calls) == passes * dropped
