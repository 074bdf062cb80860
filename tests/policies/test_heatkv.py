"""HeatKV's schedules: published ones atom for atom, and what must hold for any orders."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalekv.errors import BudgetError, InvalidInput, ProfileError
from scalekv.planning import CacheGeometry, CachePlan, Profile, Schedule
from scalekv.planning.reliance import removal_orders, scas
from scalekv.policies import Full, HeatKV
from scalekv.policies.atoms import AtomPool
from strategies import geometries, measured

CASES = json.loads((Path(__file__).parents[1] / "data" / "heatkv_schedule_vectors.json").read_text())["cases"]
SHAPES = {"Infinity-2B": (32, 16), "Infinity-8B": (40, 28)}
ONE_MEGAPIXEL = Schedule.from_sides([1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64])
TEN_SCALES = Schedule.from_sides([1, 2, 3, 4, 5, 6, 8, 10, 13, 16])
REFERENCE = os.environ.get("SCALEKV_REFERENCE")


def pool_of(case: dict) -> AtomPool:
    layers, heads = SHAPES[case["model"]]
    slots = Fraction(str(case["budget"])) * layers * heads * ONE_MEGAPIXEL.history_tokens
    assert slots.denominator == 1
    return AtomPool(ONE_MEGAPIXEL, layers, heads, 3, int(slots))


def name(case: dict) -> str:
    return f"{case['model']} {case['budget']:.0%}"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_published_removal_counts(case):
    assert pool_of(case).removal_counts() == case["removed_per_source"]


@pytest.mark.skipif(not REFERENCE, reason="SCALEKV_REFERENCE names no folder with the published orders")
@pytest.mark.parametrize("case", CASES, ids=name)
def test_published_schedules_atom_for_atom(case):
    file = Path(REFERENCE) / f"heatkv_orders_{case['model'].lower().replace('-', '')}.json"
    published = json.loads(file.read_text())
    orders = dict(zip(published["source_scales"], published["order"], strict=True))
    pool = pool_of(case)
    removals = pool.uniform_removals(orders)
    missing = pool.missing(removals, orders)
    before = [set(), *removals]
    assert [len(gone - old) for gone, old in zip(missing, before, strict=True)] == case["early_activations"]
    assert [len(gone) for gone in missing] == case["removed_at_read"]
    texts = [json.dumps([list(atom) for atom in sorted(gone)], separators=(",", ":")) for gone in missing]
    assert [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts] == case["removed_sha256_16"]


def shuffled(pool: AtomPool, seed: int) -> dict[int, list[int]]:
    numbers = random.Random(seed)
    return {
        source: numbers.sample(range(pool.cells), pool.cells) for source in range(pool.sink, len(pool.schedule) - 1)
    }


def naive_missing(pool: AtomPool, removals, orders) -> list[set[tuple[int, int]]]:
    """The timing of removals as the reference states it, every occupancy counted anew."""
    tokens, layer_of = pool.schedule.tokens, lambda atom: atom[1] // pool.heads
    gone, missing = set(), []
    for target, required in enumerate(removals):
        here, early = set(gone), set()
        for layer in range(pool.layers):
            here |= {atom for atom in required if layer_of(atom) == layer}

            def held(done=layer, there=here, target=target, required=required) -> int:
                old = [(s, slot) for s in range(target) for slot in range(pool.cells) if (s, slot) not in there]
                new = [(target, slot) for slot in range((done + 1) * pool.heads) if (target, slot) not in required]
                return sum(tokens[source] for source, _ in (*old, *new))

            while held() > pool.slots:
                waiting = [atom for atom in required - here if layer_of(atom) > layer and atom[0] < target]
                waiting.sort(key=lambda atom: (-layer_of(atom), -atom[0], orders[atom[0]].index(atom[1])))
                here.add(waiting[0])
                early.add(waiting[0])
        missing.append(gone | early)
        gone = here
    return [*missing, gone]


def occupancies(pool: AtomPool, missing: list[set[tuple[int, int]]]):
    """Held slots after every (segment, layer), from the rule that a layer that is done holds what it reads next."""
    tokens, last = pool.schedule.tokens, len(pool.schedule) - 1

    def held(layer: int, target: int) -> int:
        if target > last:
            return 0
        slots = range(layer * pool.heads, (layer + 1) * pool.heads)
        return sum(
            tokens[s] for s in range(target) for slot in slots if s < pool.sink or (s, slot) not in missing[target]
        )

    for segment in range(last + 1):
        for done in range(pool.layers + 1):
            yield sum(held(layer, segment + (layer < done)) for layer in range(pool.layers))


@pytest.mark.parametrize("allocation", ["uniform", "density"])
@settings(max_examples=150)
@given(geometry=geometries(side=5), data=st.data())
def test_any_orders_hold_the_pool_at_every_moment(allocation, geometry, data):
    schedule, cells = geometry.schedule, geometry.layers * geometry.heads
    sink = data.draw(st.integers(1, 3))
    least = cells * sum(schedule.tokens[:-1][:sink])
    slots = data.draw(st.integers(least, max(least, cells * schedule.history_tokens)))
    pool = AtomPool.of(geometry, sink, slots)
    orders = shuffled(pool, data.draw(st.integers(0, 999)))
    if allocation == "uniform":
        removals = pool.uniform_removals(orders)
    else:
        ranks = {source: {slot: rank for rank, slot in enumerate(order)} for source, order in orders.items()}
        heads, layers = range(geometry.heads), range(geometry.layers)
        scores = {
            source: tuple(tuple(float(rank[layer * geometry.heads + head]) for head in heads) for layer in layers)
            for source, rank in ranks.items()
        }
        removals = pool.density_removals(scores)
    missing = pool.missing(removals, orders)
    assert missing == naive_missing(pool, removals, orders)
    assert max(occupancies(pool, missing)) <= slots
    assert all(sink <= source for gone in missing for source, _ in gone), "protected scales stay"
    for now, later in pairwise(removals):
        assert now <= later
    for earlier, now in pairwise(missing):
        assert earlier <= now, "what is gone stays gone"


@given(geometry=geometries(side=5), data=st.data())
def test_counts_are_the_formula_in_exact_arithmetic(geometry, data):
    schedule, cells = geometry.schedule, geometry.layers * geometry.heads
    history, protected = schedule.history_tokens, sum(schedule.tokens[:2])
    if history <= protected:
        return
    share = Fraction(data.draw(st.integers(cells * protected, cells * history)), cells * history)
    counts = AtomPool.of(geometry, 2, int(share * cells * history)).removal_counts()
    for target, count in enumerate(counts):
        whole, room = schedule.start(target), share * history
        expected = 0 if whole <= room else min(cells, math.ceil(cells * (whole - room) / (whole - protected)))
        assert count == expected


def test_no_fewer_heads_could_go():
    """With one head more of every source the pool would not hold at the end of a segment."""
    pool = pool_of(CASES[1])
    counts, tokens = pool.removal_counts(), pool.schedule.tokens
    for target, count in enumerate(counts):
        held = [pool.cells * 21 + (pool.cells - gone) * sum(tokens[3:target]) for gone in (count, count - 1)]
        if count:
            assert held[0] <= pool.slots < held[1]


GEOMETRY = CacheGeometry(3, 4, 4, TEN_SCALES, guidance=1, element_bytes=4)
PROFILE = Profile("drawn", 3, 4, TEN_SCALES, **measured(GEOMETRY, 5))


def held_at(plan: CachePlan, target: int) -> set[tuple[int, int]]:
    """Atoms beside the protected ones that are there when ``target`` is attended."""
    return {
        (source, layer * plan.geometry.heads + head)
        for layer, groups in enumerate(plan.layers)
        for group in groups
        for head in group.heads
        for source in group.sources[target]
        if source >= 3
    }


@pytest.mark.parametrize("budget", ["4%", "10%", "20%", "50%"])
@pytest.mark.parametrize("allocation", ["uniform", "density"])
@pytest.mark.parametrize("strict", [False, True])
def test_a_plan_is_the_schedule_of_its_pool(budget, allocation, strict):
    policy = HeatKV(budget, allocation=allocation)
    if strict:
        policy = replace(policy, strict=True, budget=policy.plan(GEOMETRY, PROFILE).peak_bytes)
    plan = policy.plan(GEOMETRY, PROFILE)
    assert plan.drift_bytes <= plan.limit_bytes
    assert not strict or plan.peak_bytes <= plan.limit_bytes
    pool = AtomPool.of(GEOMETRY, 3, plan.limit_bytes // GEOMETRY.head_token_bytes)
    if strict:
        return
    orders, scores = removal_orders(PROFILE, 3), scas(PROFILE, 3)
    removals = pool.uniform_removals(orders) if allocation == "uniform" else pool.density_removals(scores)
    for target, gone in enumerate(pool.missing(removals, orders)):
        every = {(source, slot) for source in range(3, target) for slot in range(12)}
        assert held_at(plan, target) == every - gone
        for groups in plan.layers:
            assert all(group.sources[target][:3] == tuple(range(min(3, target))) for group in groups)
    lists = [[group.sources for group in groups] for groups in plan.layers]
    assert all(len(set(sources)) == len(sources) for sources in lists), "one group for every list"


def test_density_keeps_what_is_worth_most_per_token():
    """One layer, three heads: with room for one atom the best per token stays, whatever its source."""
    schedule = Schedule.from_shapes([(1, 1), (1, 2), (1, 4), (1, 4), (1, 4)])
    pool = AtomPool(schedule, 1, 3, 1, 3 * 1 + 4)
    scores = {1: ((0.3, 0.1, 0.1),), 2: ((0.1, 0.8, 0.1),), 3: ((0.2, 0.2, 3.0),)}
    kept = [
        {(s, slot) for s in range(1, target + 1) for slot in range(3)} - gone
        for target, gone in enumerate(pool.density_removals(scores))
    ]
    assert kept == [set(), {(1, 0), (1, 1)}, {(2, 1)}, {(3, 2)}]


def test_density_passes_over_what_does_not_fit():
    schedule = Schedule.from_shapes([(1, 1), (1, 2), (1, 9), (1, 4)])
    pool = AtomPool(schedule, 1, 2, 1, 2 * 1 + 12)
    removals = pool.density_removals({1: ((0.2, 0.1),), 2: ((9.0, 8.0),)})
    assert removals == [set(), set(), {(2, 1), (1, 1)}], "9 of 12 go to (2, 0); 3 are too few for 9, enough for 2"


def test_without_a_profile_heads_go_by_number():
    with pytest.warns(UserWarning, match="HeatKV runs without a profile"):
        plan = HeatKV("20%").plan(GEOMETRY)
    gone = {(source, slot) for source in range(3, 9) for slot in range(12)} - held_at(plan, 9)
    order = [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    for source in range(3, 9):
        slots = {slot for at, slot in gone if at == source}
        assert slots == set(order[: len(slots)])
    with pytest.raises(ProfileError, match="'mass'"):
        HeatKV("20%").plan(GEOMETRY, Profile("old", 3, 4, TEN_SCALES))


@pytest.mark.parametrize(("sink", "smallest"), [(3, 14), (1, 1), (4, 30)])
def test_below_the_protected_tokens_the_smallest_budget_is_named(sink, smallest):
    nbytes = smallest * GEOMETRY.token_bytes
    with pytest.raises(BudgetError, match=f"smallest feasible .* is {nbytes} B"):
        HeatKV(nbytes - 1, sink_scales=sink).plan(GEOMETRY, PROFILE)
    plan = HeatKV(nbytes, sink_scales=sink).plan(GEOMETRY, PROFILE)
    assert plan.nominal_bytes == nbytes
    assert all(group.capacity[-1] == smallest for groups in plan.layers for group in groups)


def test_everything_is_kept_at_100_percent():
    assert HeatKV("100%").plan(GEOMETRY).layers == Full().plan(GEOMETRY).layers


@pytest.mark.parametrize("settings", [{"timing": "before"}, {"allocation": "best"}, {"sink_scales": 0}])
def test_nonsense_is_refused_in_one_sentence(settings):
    with pytest.raises(InvalidInput) as caught:
        HeatKV(**settings)
    assert "\n" not in str(caught.value)
