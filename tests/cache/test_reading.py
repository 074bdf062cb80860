"""What attention reads and what is carried on, where the two differ, against dense arithmetic over kept positions."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from driving import run, tensors
from methods import OddSegments, Remembering, TwoBudgets

from scalekv.planning import CacheGeometry, HeadGroup, Schedule
from scalekv.policies import Policy, ScaleKV, SlidingWindow
from scalekv.policies.layers import bounded, uniform
from scalekv.policies.observation import Observation

SCHEDULE = Schedule.from_sides([1, 2, 3, 5, 6])
GEOMETRY = CacheGeometry(2, 2, 8, SCHEDULE, guidance=2, element_bytes=4)


def best(score: torch.Tensor, count: int) -> list[int]:
    return sorted(sorted(range(len(score)), key=lambda index: (-float(score[index]), index))[:count])


def replayed(policy, geometry, scores, memory=False) -> dict[tuple[int, int], torch.Tensor]:
    """Outputs of naive lists of positions per row and head; ``scores(query, keys)`` judges candidates."""
    plan, outputs = policy.plan(geometry), {}
    for layer in range(geometry.layers):
        (group,) = plan.layers[layer]
        seen = [tensors(geometry, segment, layer)[:3] for segment in geometry.schedule]
        keys, values = (torch.cat([one[part] for one in seen], 2) for part in (1, 2))
        kept = {(row, head): [] for row in range(geometry.rows) for head in range(geometry.heads)}
        added = torch.zeros(geometry.rows, geometry.heads, keys.shape[2])
        for segment in geometry.schedule:
            index, query = segment.index, seen[segment.index][0]
            start, output = geometry.schedule.start(index), torch.empty_like(query)
            for (row, head), held in kept.items():
                there = held + list(range(start, start + segment.tokens))
                score = scores(query[row, head], keys[row, head, there], segment)
                if memory:
                    added[row, head, there] += score
                    score = added[row, head, there]
                chosen = [there[one] for one in best(score, plan.attended(group, index))]
                weights = torch.softmax(query[row, head] @ keys[row, head, chosen].T, -1)
                output[row, head] = weights @ values[row, head, chosen]
                kept[row, head] = [there[one] for one in best(score, plan.carried(group, index))]
            outputs[index, layer] = output
    return outputs


def attention_of(rule: str):
    def scores(query, keys, segment):
        chosen = list(Observation.parse(rule).positions(segment))
        return torch.softmax(query[chosen] @ keys.T, -1).sum(0)

    return scores


def newest(query, keys, segment):
    return torch.arange(len(keys)).float()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    ("policy", "scores", "memory"),
    [
        (TwoBudgets(budget="40%", read=12), attention_of("uniform:32"), False),
        (TwoBudgets(budget="40%", read=25, queries="last:3"), attention_of("last:3"), False),
        (TwoBudgets(budget="100%", read=9, queries="random:4"), attention_of("random:4"), False),
        (TwoBudgets(budget="40%", timing="before", read=40), attention_of("uniform:32"), False),
        (SlidingWindow(budget="30%", timing="before"), newest, False),
        (Remembering(budget="40%"), attention_of("all"), True),
        (Remembering(budget="40%", timing="before", queries="uniform:5"), attention_of("uniform:5"), True),
        (ScaleKV(budget="30%", queries="all", pooling="none"), attention_of("all"), False),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_outputs_are_those_of_naive_lists(policy, scores, memory, strict):
    if strict:
        policy = replace(policy, strict=True, budget=policy.plan(GEOMETRY).peak_bytes)
    outputs, cache = run(policy, GEOMETRY)
    for place, expected in replayed(policy, GEOMETRY, scores, memory).items():
        torch.testing.assert_close(outputs[place], expected, atol=1e-5, rtol=1e-4)
    assert cache.report().measured_peak_bytes == cache.plan.peak_bytes


def test_whole_segments_are_held_and_dropped():
    geometry = CacheGeometry(1, 3, 8, SCHEDULE, guidance=1, element_bytes=4)
    outputs, _ = run(OddSegments(budget="100%"), geometry)
    seen = [tensors(geometry, segment, 0)[:3] for segment in SCHEDULE]
    for index, (query, _, _) in enumerate(seen):
        for head in range(3):
            there = [*(range(1, index, 2) if head == 0 else range(min(index, 1))), index]
            keys, values = (torch.cat([seen[one][part][:, head] for one in there], 1) for part in (1, 2))
            expected = torch.softmax(query[:, head] @ keys.mT, -1) @ values
            torch.testing.assert_close(outputs[index, 0][:, head], expected, atol=1e-5, rtol=1e-5)


def test_before_attends_to_fewer_and_costs_less():
    after, before = (TwoBudgets(budget="20%", read=99, timing=timing) for timing in ("after", "before"))
    full = 4 * 8 * 2 * 2 * 2 * sum(n * (n + SCHEDULE.start(index)) for index, n in enumerate(SCHEDULE.tokens))
    assert TwoBudgets(budget="100%", read=99).plan(GEOMETRY).attention_flops == full
    assert after.plan(GEOMETRY).attention_flops < full
    plan = SlidingWindow(budget="20%", timing="before").plan(GEOMETRY)
    capacity = plan.layers[0][0].capacity[-1]
    assert plan.attended(plan.layers[0][0], 4) == capacity == 7
    assert before.plan(GEOMETRY).attention_flops == after.plan(GEOMETRY).attention_flops, "what it reads is its own"


@dataclass(frozen=True)
class Swinging(Policy):
    """Layers that grow while others shrink."""

    capacities: tuple[tuple[int, ...], ...] = ()

    name: ClassVar[str] = "swinging"

    def allocate(self, geometry, slots, profile):
        heads = tuple(range(geometry.heads))
        return tuple((HeadGroup(heads, capacity),) for capacity in self.capacities)


@settings(max_examples=100)
@given(st.data())
def test_a_bounded_pool_holds_while_layers_take_turns(data):
    tokens, layers = SCHEDULE.tokens, data.draw(st.integers(1, 6))
    lists = []
    for _ in range(layers):
        held = [0]
        for arrived in tokens[:-1]:
            held.append(data.draw(st.integers(0, held[-1] + arrived)))
        lists.append(tuple(held))
    groups = tuple((HeadGroup((0, 1), held),) for held in lists)
    pool = max(sum(2 * held[index] for held in lists) for index in range(len(tokens)))
    after = [group.capacity for (group,) in bounded(groups, pool)]
    for index in range(1, len(tokens)):
        last = index + 1 == len(tokens)
        for done in range(layers + 1):
            later = [0 if last else held[index + 1] for held in after[:done]]
            assert sum(2 * held for held in (*later, *(held[index] for held in after[done:]))) <= pool
    for before, bound in zip(lists, after, strict=True):
        for index in range(1, len(tokens)):
            shrinks = index + 1 < len(tokens) and before[index] > before[index + 1]
            assert bound[index] == before[index] or (shrinks and before[index + 1] <= bound[index] < before[index])


def test_equal_layers_are_left_alone():
    layers = uniform(GEOMETRY, 100)
    assert bounded(layers, 100) == layers
