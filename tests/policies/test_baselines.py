"""Baselines that come from language models: published vectors, a naive replay of whole runs, how they relate."""

from __future__ import annotations

import json
import math
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "cache"))
from driving import run, tensors

from scalekv.cache.selection import survivors
from scalekv.errors import BudgetError, InvalidInput, ProfileError
from scalekv.planning import CacheGeometry, Profile, Schedule
from scalekv.planning.curves import curve_ranks
from scalekv.policies import CAKE, H2O, AdaKV, Observation, PyramidKV, SelectionView, SlidingWindow, SnapKV, make_policy
from scalekv.policies.cake import preferences
from scalekv.policies.roles import share_evenly
from strategies import geometries, measured

VECTORS = json.loads((Path(__file__).parents[1] / "data" / "baseline_vectors.json").read_text())
SCHEDULE = Schedule.from_sides([1, 2, 3, 5, 6])
GEOMETRY = CacheGeometry(3, 4, 2, SCHEDULE, guidance=2, element_bytes=4)
"""Few channels, so that attention is not so sharp that pooled scores tie in float32."""


def profile_of(geometry: CacheGeometry, seed: int = 0, **tables) -> Profile:
    return Profile("test", geometry.layers, geometry.heads, geometry.schedule, **(tables or measured(geometry, seed)))


PROFILE = profile_of(GEOMETRY)


# ----------------------------------------------------------------------------------------------- published vectors


def seen(scores: list[float], capacity: int, memory: torch.Tensor | None = None) -> SelectionView:
    """Candidates to which one query pays attention in proportion to ``scores``."""
    schedule = Schedule.from_shapes([(1, 1), (2, 2), (3, 3), (4, 4)])
    key = torch.tensor(scores).log()[None, None, :, None]
    window = torch.tensor([len(scores) - 1])
    return SelectionView(
        0, (0,), schedule, schedule[2], capacity, key, key, torch.ones(1, 1, 1, 1), window, memory=memory
    )


@pytest.mark.parametrize(("pooling", "name"), [("none", "top6"), ("average", "top6_avgpool5")])
def test_vector_snapkv(pooling, name):
    scores = VECTORS["scores_u"]
    score = SnapKV(pooling=pooling, keep_window=False).score(seen(scores, 6))
    assert survivors(score, 6).flatten().tolist() == VECTORS[name]
    if pooling == "average":
        torch.testing.assert_close((score.flatten() * sum(scores)).tolist(), VECTORS["avgpool5"], atol=1e-5, rtol=1e-5)


def test_vector_h2o():
    memory = torch.tensor(VECTORS["scores_u"])[None, None]
    score = H2O().score(seen(VECTORS["scores_u"], 6, memory))
    assert survivors(score, 6).flatten().tolist() == VECTORS["h2o_B6_half"]
    assert torch.equal(memory.flatten(), torch.tensor(VECTORS["scores_u"])), "the sums go on"


@pytest.mark.parametrize("case", VECTORS["pyramid"], ids=["window 16", "no window"])
def test_vector_pyramid(case):
    window = case["window"]
    geometry = CacheGeometry(case["L"], 2, 4, Schedule.from_shapes([(1, case["n"]), (1, 1)]))
    queries = {"queries": f"uniform:{window}"} if window else {"keep_window": False}
    plan = PyramidKV(budget=f"{case['B']} tokens", beta=float(case["beta"]), **queries).plan(geometry)
    assert [groups[0].capacity[1] - window for groups in plan.layers] == case["prefix_budgets"]


@pytest.mark.parametrize("case", VECTORS["cake"]["cases"], ids=str)
def test_vector_cake(case):
    entropy, variance = VECTORS["cake"]["entropy"], VECTORS["cake"]["variance"]
    taus = {"tau1": case["tau1"], "tau2": case["tau2"]}
    found = preferences(entropy, variance, **taus)
    assert found == pytest.approx([value / max(case["pref"]) for value in case["pref"]], rel=1e-6)
    geometry = CacheGeometry(5, 2, 4, Schedule.from_shapes([(1, case["cap"]), (1, 1)]))
    tables = {"window_entropy": (tuple(entropy),) * 2, "window_variance": (tuple(variance),) * 2}
    policy = CAKE(budget=f"{case['B']} tokens", keep_window=False, **taus)
    plan = policy.plan(geometry, profile_of(geometry, statistics=tables))
    assert [groups[0].capacity[1] for groups in plan.layers] == case["budgets"]


def test_vector_adakv():
    """The counts follow from the sorted scores alone, and every head's best are the published sets."""
    case = VECTORS["adakv"]
    scores = torch.tensor(case["scores"])
    tokens = scores.shape[1]
    geometry = CacheGeometry(1, len(scores), 4, Schedule.from_shapes([(1, tokens), (1, 1)]))
    curves = [tuple(sorted(row, reverse=True)[rank - 1] for rank in curve_ranks(tokens)) for row in case["scores"]]
    last = tuple((0.0,) * len(curve_ranks(tokens + 1)) for _ in case["scores"])
    profile = profile_of(geometry, curves={"snapkv": ((tuple(curves),), (last,))})
    policy = AdaKV(budget=f"{case['B']} tokens", alpha=case["alpha"], keep_window=False)
    (groups,) = policy.plan(geometry, profile).layers
    kept = {head: survivors(scores[head], group.capacity[1]).tolist() for group in groups for head in group.heads}
    assert [kept[head] for head in range(len(scores))] == case["kept"]


# ------------------------------------------------------------------------------------------------- observation rules


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("uniform:4", (4, 13, 22, 31)),
        ("uniform:1", (18,)),
        ("last:3", (33, 34, 35)),
        ("all", tuple(range(36))),
        (" ALL ", tuple(range(36))),
        ("uniform:36", tuple(range(36))),
        ("random:99", tuple(range(36))),
    ],
)
def test_positions_of_a_rule(rule, expected):
    assert Observation.parse(rule).positions(SCHEDULE[4]) == expected
    assert SnapKV(queries=rule).observation(SCHEDULE[4]) == expected


def test_random_positions_are_a_sample_that_segments_do_not_share():
    rule = Observation.parse("random:12")
    samples = [rule.positions(Schedule.from_sides([6, 6])[index]) for index in range(2)]
    assert samples[0] != samples[1]
    for sample in samples:
        assert list(sample) == sorted(set(sample) & set(range(36)))
        assert len(sample) == 12


# --------------------------------------------------------------------------------- whole runs against a naive replay


def average(scores: torch.Tensor) -> torch.Tensor:
    padded = torch.nn.functional.pad(scores, (2, 2))
    return sum(padded[shift : shift + len(scores)] for shift in range(5)) / 5


def naive_score(policy, weights: torch.Tensor, window: list[int], capacity: int, added: torch.Tensor) -> torch.Tensor:
    """``weights`` of the observed queries, which are the candidates ``window``; ``added`` is what H2O remembers."""
    if isinstance(policy, H2O):
        score = added.clone()
        heavy = math.floor(capacity * (1 - policy.recent_fraction))
        score[len(score) - (capacity - heavy) :] = math.inf
        return score
    score = weights.mean(0)
    if isinstance(policy, CAKE):
        score = score + policy.gamma * weights.var(0, correction=0)
    score = average(score)
    if policy.keep_window and policy.queries != "all" and capacity >= len(window):
        score[window] = math.inf
    return score


def best(score: torch.Tensor, count: int) -> list[int]:
    return sorted(sorted(range(len(score)), key=lambda index: (-float(score[index]), index))[:count])


def replayed(policy, plan) -> dict[tuple[int, int], torch.Tensor]:
    """Outputs of lists of positions, one per layer, row and head, in float64."""
    outputs = {}
    for layer, groups in enumerate(plan.layers):
        for group in groups:
            for head in group.heads:
                for row in range(plan.geometry.rows):
                    replay_head(policy, plan, group, (layer, row, head), outputs)
    return outputs


def replay_head(policy, plan, group, place: tuple[int, int, int], outputs: dict) -> None:
    layer, row, head = place
    schedule, held = plan.geometry.schedule, []
    every = [[part[row, head].double() for part in tensors(plan.geometry, one, layer)[:3]] for one in schedule]
    keys, values = (torch.cat([one[part] for one in every]) for part in (1, 2))
    memory = torch.zeros(len(keys), dtype=torch.float64)
    for segment in schedule:
        index, query = segment.index, every[segment.index][0]
        there = held + list(range(schedule.start(index), schedule.start(index + 1)))
        observed = list(Observation.parse(policy.queries).positions(segment))
        weights = torch.softmax(query[observed] @ keys[there].T, -1)
        memory[there] += weights.sum(0) / (len(observed) if getattr(policy, "per_query", False) else 1)
        sizes = [plan.attended(group, index), plan.carried(group, index)]
        capacity = next((size for size in sizes if 0 < size < len(there)), len(there))
        score = naive_score(policy, weights, [len(held) + one for one in observed], capacity, memory[there])
        read, held = ([there[one] for one in best(score, size)] for size in sizes)
        output = torch.softmax(query @ keys[read].T, -1) @ values[read]
        outputs.setdefault((index, layer), torch.zeros(plan.geometry.rows, plan.geometry.heads, *output.shape))
        outputs[index, layer][row, head] = output.float()


@pytest.mark.parametrize("budget", ["20%", "45%"])
@pytest.mark.parametrize(
    "policy",
    [
        SnapKV(),
        SnapKV(queries="last:4"),
        SnapKV(queries="random:6", keep_window=False),
        SnapKV(queries="all", timing="before"),
        SnapKV(queries="centers"),
        PyramidKV(queries="uniform:4"),
        CAKE(queries="uniform:3"),
        CAKE(queries="all", gamma=5.0),
        AdaKV(queries="uniform:4"),
        AdaKV(queries="uniform:4", alpha=0.0, groups=2, timing="before"),
        H2O(),
        H2O(per_query=True, recent_fraction=0.2),
        H2O(queries="uniform:5", timing="before"),
    ],
    ids=str,
)
def test_outputs_are_those_of_naive_lists(policy, budget):
    policy = replace(policy, budget=budget)
    plan = policy.plan(GEOMETRY, PROFILE)
    assert min(group.capacity[-1] for groups in plan.layers for group in groups) < SCHEDULE.history_tokens, "it drops"
    outputs, _ = run(policy, GEOMETRY, PROFILE)
    for place, expected in replayed(policy, plan).items():
        torch.testing.assert_close(outputs[place], expected, atol=1e-5, rtol=1e-4)


# ------------------------------------------------------------------------------------------- how the methods relate


def same_runs(one, other, geometry: CacheGeometry, profile: Profile | None = None) -> None:
    assert one.plan(geometry, profile).layers == other.plan(geometry, profile).layers
    outputs, expected = run(one, geometry, profile)[0], run(other, geometry, profile)[0]
    assert all(torch.equal(outputs[place], expected[place]) for place in expected)


@pytest.mark.parametrize("tokens", [3, 9, 17, 30])
def test_limits_of_the_methods_are_snapkv(tokens):
    budget = f"{tokens} tokens"
    snap, flat = SnapKV(budget=budget), {"window_entropy": 2.0, "window_variance": 0.5}
    same_runs(AdaKV(budget=budget, alpha=1.0), snap, GEOMETRY, PROFILE)
    same_runs(PyramidKV(budget=budget, beta=1.0), snap, GEOMETRY)
    tables = {name: ((value,) * 3,) * 5 for name, value in flat.items()}
    same_runs(CAKE(budget=budget, gamma=0.0), snap, GEOMETRY, profile_of(GEOMETRY, statistics=tables))


def test_h2o_of_newest_tokens_is_a_sliding_window():
    h2o = H2O(recent_fraction=1.0, budget="40%")
    capacity = h2o.plan(GEOMETRY).layers[0][0].capacity[-1]
    expected, _ = run(SlidingWindow(budget=f"{capacity} tokens"), GEOMETRY)
    outputs, _ = run(h2o, GEOMETRY)
    for place, output in expected.items():
        torch.testing.assert_close(outputs[place], output)  # sums that are added up in passing round otherwise


@pytest.mark.parametrize(("capacity", "fraction", "newest"), [(7, 0.5, 4), (1, 0.5, 1), (10, 0.9, 9), (10, 0.0, 0)])
def test_newest_tokens_of_h2o(capacity, fraction, newest):
    assert H2O(recent_fraction=fraction).newest(capacity) == newest
    score = H2O(recent_fraction=fraction).score(seen([0.5] * 12, capacity, torch.zeros(1, 1, 12)))
    assert int(score.isinf().sum()) == newest


def test_observed_tokens_stay_where_they_fit_and_are_not_all_observed():
    view = replace(seen([0.5] * 14, 9), window=torch.arange(5, 14), query=torch.ones(1, 1, 9, 1))
    for policy, capacity, kept in [
        (SnapKV(), 9, 9),
        (SnapKV(), 8, 0),
        (SnapKV(keep_window=False), 9, 0),
        (SnapKV(queries="all"), 9, 0),
        (CAKE(), 12, 9),
    ]:
        assert int(policy.score(replace(view, capacity=capacity)).isinf().sum()) == kept


@given(st.data())
def test_pools_are_used_and_never_exceeded(data):
    geometry = data.draw(geometries())
    profile = profile_of(geometry, data.draw(st.integers(0, 2**20)))
    fewest = geometry.layers * geometry.heads
    slots = data.draw(st.integers(fewest, fewest * max(1, geometry.schedule.history_tokens)))
    quota, pool, tokens = slots // fewest, slots // geometry.heads, geometry.schedule.tokens
    window = {"queries": data.draw(st.sampled_from(["uniform:4", "all"]))}
    for policy in (PyramidKV(**window, beta=data.draw(st.floats(1, 50))), CAKE(**window, tau1=0.5)):
        held = [0] * geometry.layers
        for index, row in enumerate(capacities(policy.allocate(geometry, slots, profile))[1:]):
            available = [tokens_held + tokens[index] for tokens_held in held]
            assert sum(row) == min(pool, sum(available))
            held = row
    policy = AdaKV(**window, groups=data.draw(st.integers(1, 3)))
    for groups in policy.allocate(geometry, slots, profile):
        assert len(groups) <= policy.groups
        for index in range(1, len(tokens)):
            used = sum(len(group.heads) * group.capacity[index] for group in groups)
            most = geometry.heads * min(quota, geometry.schedule.start(index))
            assert most - geometry.heads < used <= most


def capacities(layers) -> list[list[int]]:
    """``[segment][layer]`` of layers of one group."""
    return [list(row) for row in zip(*(groups[0].capacity for groups in layers), strict=True)]


@given(st.integers(1, 9), st.integers(0, 400), st.floats(1, 100))
def test_equal_preferences_are_equal_quotas(layers, pool, value):
    geometry = CacheGeometry(layers, 1, 4, Schedule.from_shapes([(1, 40), (1, 1)]))
    pool = max(layers, min(pool, 40 * layers))
    tables = dict.fromkeys(("window_entropy", "window_variance"), ((value,) * layers,) * 2)
    layers_found = CAKE().allocate(geometry, pool, profile_of(geometry, statistics=tables))
    assert capacities(layers_found)[1] == share_evenly([40] * layers, pool)


def test_quotas_follow_what_was_measured_at_the_segment_before():
    """Layer 0 is preferred after segment 2 only, so its room grows for segment 3 and shrinks for segment 4."""
    entropy = [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [9.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 9.0, 1.0]]
    tables = {"window_entropy": tuple(map(tuple, entropy)), "window_variance": ((1.0,) * 3,) * 5}
    profile = profile_of(GEOMETRY, statistics=tables)
    rows = capacities(CAKE(keep_window=False).allocate(GEOMETRY, 3 * 4 * 8, profile))
    assert rows == [[0, 0, 0], [1, 1, 1], [5, 5, 5], [14, 5, 5], [8, 8, 8]]


def test_nothing_measured_counts_as_equal():
    assert preferences([0.0, 0.0], [0.0, 0.0], 1.0, 1.0) == [1.0, 1.0]
    assert preferences([0.0, 2.0], [1.0, 1.0], 1.0, 1.0) == [0.0, 1.0]
    assert preferences([1e300, 1e-300], [1e300, 1e-300], 0.01, 0.01) == [1.0, 0.0], "no overflow"


def test_heads_with_spread_scores_get_more():
    """A head whose scores fall slowly has more of the best tokens than one with a few large ones."""
    geometry = CacheGeometry(1, 3, 4, SCHEDULE)
    falls = (0.99, 0.9, 0.5)
    curves = tuple(
        (tuple(tuple(fall**rank for rank in curve_ranks(SCHEDULE.start(index + 1))) for fall in falls),)
        for index in range(5)
    )
    profile = profile_of(geometry, curves={"snapkv": curves})
    (groups,) = AdaKV(budget="9 tokens", queries="uniform:2").plan(geometry, profile).layers
    held = {head: group.capacity[4] for group in groups for head in group.heads}
    assert held[0] > held[1] > held[2] >= 2 + 1
    (joined,) = AdaKV(budget="9 tokens", queries="uniform:2", groups=1).plan(geometry, profile).layers
    assert [group.heads for group in joined] == [(0, 1, 2)]
    assert joined[0].capacity[4] == sum(held.values()) // 3


@pytest.mark.parametrize("policy", [CAKE(budget="30%"), AdaKV(budget="30%")], ids=str)
def test_methods_that_need_a_profile_say_so(policy):
    with pytest.warns(UserWarning, match="runs without a profile, so every (layer|head) gets the same capacity"):
        plan = policy.plan(GEOMETRY)
    equal = SnapKV(budget="30%").plan(GEOMETRY).layers[0][0].capacity[-1]
    assert {group.capacity[-1] - equal for groups in plan.layers for group in groups} <= {0, 1}
    empty = profile_of(GEOMETRY, statistics={"asi": ((0.5,) * 3,) * 5})
    with pytest.raises(ProfileError, match=r"no table '\w+'.*calibrate"):
        policy.plan(GEOMETRY, empty)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for profile in (None, empty):
            assert replace(policy, budget="100%").plan(GEOMETRY, profile).nominal_bytes == GEOMETRY.lossless_bytes


def test_a_strict_plan_that_drops_nothing_is_found():
    geometry = CacheGeometry(1, 1, 4, Schedule.from_shapes([(1, 3), (1, 1)]), element_bytes=4, guidance=1)
    whole = SnapKV(budget="100%").plan(geometry)
    plan = SnapKV(budget=whole.peak_bytes, strict=True).plan(geometry)
    assert plan.nominal_bytes == geometry.lossless_bytes
    with pytest.raises(BudgetError, match=f"smallest feasible .* is {whole.peak_bytes} B"):
        SnapKV(budget=whole.peak_bytes - 1, strict=True).plan(geometry)


@settings(max_examples=30)
@given(st.data())
def test_strict_plans_stay_below_their_peak(data):
    geometry, budget = data.draw(geometries()), data.draw(st.floats(0.4, 1.0))
    profile = profile_of(geometry)
    for kind in (SnapKV, PyramidKV, H2O, CAKE, AdaKV):
        loose = kind(budget=budget).plan(geometry, profile) if budget * geometry.schedule.history_tokens >= 2 else None
        if loose is None:
            continue
        policy = kind(budget=loose.peak_bytes, strict=True)
        plan = policy.plan(geometry, profile)
        assert plan.peak_bytes <= loose.peak_bytes
        assert run(policy, geometry, profile)[1].report().measured_peak_bytes == plan.peak_bytes


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("snapkv", {"queries": "some"}),
        ("snapkv", {"pool_width": 4}),
        ("snapkv", {"pooling": "sum"}),
        ("snapkv", {"keep_window": 1}),
        ("pyramidkv", {"beta": 0.5}),
        ("pyramidkv", {"beta": math.nan}),
        ("h2o", {"recent_fraction": 1.1}),
        ("h2o", {"per_query": "no"}),
        ("cake", {"tau1": 0}),
        ("cake", {"tau2": -1.0}),
        ("cake", {"gamma": math.inf}),
        ("adakv", {"alpha": -0.1}),
        ("adakv", {"groups": 0}),
    ],
)
def test_nonsense_is_refused_in_one_sentence(name, wrong):
    with pytest.raises(InvalidInput, match=next(iter(wrong))) as caught:
        make_policy(name, **wrong)
    assert "\n" not in str(caught.value)
