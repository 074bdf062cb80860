"""HACK and HACK++: classes, budgets, rules and the cost of attention, against published numbers and naive rules."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hack_oracle import HEADS, LAYERS, SCHEDULE, VECTORS, logits, mass, sigma
from scalekv.cache.selection import survivors
from scalekv.errors import BudgetError, InvalidInput, ProfileError
from scalekv.planning import CacheGeometry, Profile, Schedule
from scalekv.planning.reliance import future_reliance
from scalekv.policies import Full, Hack, HackPP, ScaleKV, SelectionView, make_policy
from scalekv.policies.head_scores import pooled_rank
from scalekv.policies.sharing import share_by_weight, whole_shares
from strategies import geometries, measured

GEOMETRY = CacheGeometry(LAYERS, HEADS, 4, SCHEDULE, guidance=1, element_bytes=4)
PROFILE = Profile(
    "synthetic", LAYERS, HEADS, SCHEDULE, head_statistics={"sigma": sigma()}, source_statistics={"mass": mass()}
)
GROUPS = [
    (group["layer"], {"C": "contextual", "S": "structural"}[group["type"]], group["heads"])
    for group in VECTORS["groups"]
]
SIZES = [len(heads) for _, _, heads in GROUPS]

ONE_MEGAPIXEL = Schedule.from_sides([1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64])
TEN_SCALES = Schedule.from_sides([1, 2, 3, 4, 5, 6, 8, 10, 13, 16])
TWO_B = CacheGeometry(32, 16, 128, ONE_MEGAPIXEL)
EIGHT_B = CacheGeometry(40, 28, 128, ONE_MEGAPIXEL)
DEPTH_30 = CacheGeometry(30, 30, 64, TEN_SCALES, batch=32)
DEPTH_24 = CacheGeometry(24, 24, 64, TEN_SCALES, batch=32)


def view(layer: int, head: int, segment: int, policy: Hack | HackPP, capacity: int, role: str) -> SelectionView:
    """Everything seen so far, with the logits of the synthetic attention: keys are unit vectors."""
    all_logits = torch.tensor(logits(layer, head, segment), dtype=torch.float32)
    tokens = all_logits.shape[1]
    norms = 1 + 0.25 * torch.sin(1.3 * torch.arange(tokens) + head)
    observed = list(policy.observation(SCHEDULE[segment]))
    window = torch.tensor(observed) + SCHEDULE.start(segment)
    return SelectionView(
        layer,
        (head,),
        SCHEDULE,
        SCHEDULE[segment],
        capacity,
        key=torch.eye(tokens)[None, None],
        value=torch.nn.functional.pad(norms[:, None], (0, 3))[None, None],
        query=all_logits[observed][None, None],
        window=window,
        origin=torch.arange(tokens, dtype=torch.int32)[None, None],
        role=role,
        profile=PROFILE,
    )


def kept(policy: Hack | HackPP, seen: SelectionView) -> list[int]:
    return survivors(policy.score(seen), seen.capacity).flatten().tolist()


# Classes


@pytest.mark.parametrize("name", ["hack", "hack_pp"])
def test_heads_are_grouped_by_class(name):
    plan = make_policy(name, "30%", alpha=VECTORS["alpha"]).plan(GEOMETRY, PROFILE)
    found = [(at, group.role, list(group.heads)) for at, groups in enumerate(plan.layers) for group in groups]
    assert found == GROUPS


@pytest.mark.parametrize("name", ["hack", "hack_pp"])
@given(data=st.data())
def test_another_numbering_of_the_heads_changes_nothing_else(name, data):
    order = data.draw(st.permutations(range(HEADS)))
    policy = make_policy(name, data.draw(st.sampled_from(["20%", "50%", "80%"])), alpha=0.375)

    def renumbered(table):
        last = isinstance(table[0], float)
        return tuple(table[head] for head in order) if last else tuple(map(renumbered, table))

    other = replace(
        PROFILE, head_statistics={"sigma": renumbered(sigma())}, source_statistics={"mass": renumbered(mass())}
    )
    for groups, moved in zip(policy.plan(GEOMETRY, PROFILE).layers, policy.plan(GEOMETRY, other).layers, strict=True):
        for group, again in zip(groups, moved, strict=True):
            assert {order[head] for head in again.heads} == set(group.heads)
            assert replace(again, heads=group.heads) == group


@pytest.mark.parametrize(("name", "role"), [("hack", "structural"), ("hack_pp", "contextual")])
def test_without_a_profile_all_heads_are_alike_and_a_warning_says_so(name, role):
    with pytest.warns(UserWarning, match="runs without a profile.*scalekv calibrate"):
        plan = make_policy(name, "30%").plan(GEOMETRY)
    assert {group.role for groups in plan.layers for group in groups} == {role}
    with pytest.raises(ProfileError, match="scalekv calibrate"):
        make_policy(name, "30%").plan(GEOMETRY, Profile("old", LAYERS, HEADS, SCHEDULE))


@pytest.mark.parametrize("name", ["hack", "hack_pp"])
def test_everything_is_attended_and_kept_at_100_percent(name):
    plan = make_policy(name, "100%").plan(GEOMETRY)
    assert [[group.capacity for group in groups] for groups in plan.layers] == [[(0, 1, 5, 14)]] * LAYERS
    assert plan.attention_flops == Full().plan(GEOMETRY).attention_flops


# HACK


def test_hack_budgets_are_the_mean():
    """B = alpha B_C + (1 - alpha) B_S with B_C a tenth of all tokens, at most half of B."""
    found = Hack(alpha=0.25).budgets(TWO_B, 3156 * 512, 128)
    assert found == {"contextual": 1052, "structural": (3156 * 512 - 1052 * 128) // 384}
    small = Hack(alpha=0.25).budgets(TWO_B, 100 * 512, 128)
    assert small == {"contextual": 50, "structural": 116}


@given(geometry=geometries(), data=st.data())
def test_hack_budgets_stay_in_the_pool_and_use_it(geometry, data):
    heads, longest = geometry.layers * geometry.heads, geometry.schedule.history_tokens
    contextual = data.draw(st.integers(0, heads))
    slots = data.draw(st.integers(heads, max(heads, heads * longest)))
    policy = Hack(contextual_share=data.draw(st.floats(0, 1)))
    found = policy.budgets(geometry, slots, contextual)
    structural = heads - contextual
    used = contextual * found["contextual"] + structural * found["structural"]
    assert used <= slots
    if not longest:
        return
    assert slots - used < max(structural, contextual), "what is left does not give every head of a class one more"
    assert found["contextual"] >= 1 or not contextual
    assert found["structural"] >= 1 or not structural


@pytest.mark.parametrize("place", VECTORS["hack_structural_k4"])
def test_hack_structural_vectors(place):
    layer, head = map(int, place.split(","))
    vector = VECTORS["hack_structural_k4"][place]
    seen = view(layer, head, 3, Hack(), vector["B_S"], "structural")
    assert kept(Hack(), seen) == vector["kept"]


def naive_structural(u: list[float], segment: int, start: int, budget: int, first: int) -> set[int]:
    """Rule 3.5 of the reference, word by word; ``start`` candidates are history."""
    tokens = SCHEDULE[segment].tokens
    best = lambda places, count: set(sorted(places, key=lambda at: (-u[at], at))[:count])  # noqa: E731
    if budget < first:
        return set(range(budget))
    newest, middle = range(max(start, first), start + tokens), range(first, start)
    if first + tokens <= budget:
        return {*range(first), *newest, *best(middle, budget - first - len(newest))}
    return {*range(first), *best(newest, budget - first)}


@given(st.sampled_from([2, 3]), st.integers(1, 29), st.integers(1, 2), st.integers(0, 3))
def test_hack_structural_rule_and_its_fallbacks(segment, budget, init, head):
    policy = Hack(init_segments=init)
    budget = min(budget, SCHEDULE.start(segment + 1) - 1)
    seen = view(0, head, segment, policy, budget, "structural")
    u = torch.softmax(seen.query.double(), -1).sum(-2).flatten().tolist()
    expected = naive_structural(u, segment, SCHEDULE.start(segment), budget, sum(SCHEDULE.tokens[:init]))
    assert set(kept(policy, seen)) == expected


def test_hack_contextual_rule_protects_nothing():
    seen = view(1, 2, 2, Hack(queries="uniform:4"), 5, "contextual")
    assert kept(Hack(), seen) == VECTORS["contextual_k3"]["1,2"]["top5_nopool"]
    mean = torch.tensor(VECTORS["contextual_k3"]["1,2"]["mean"])
    torch.testing.assert_close(Hack().score(seen).flatten() / 4, mean, atol=1e-6, rtol=1e-5)


def test_hack_bounds_attention_unless_told_otherwise():
    plan, memory = (Hack("20%", alpha=0.375, timing=timing).plan(GEOMETRY, PROFILE) for timing in ("before", "after"))
    assert Hack().timing == "before"
    for groups in plan.layers:
        for group in groups:
            assert group.attended == (*(max(1, held) for held in group.capacity[1:]), max(group.capacity))
    assert all(group.attended is None for groups in memory.layers for group in groups)
    assert plan.attention_flops < memory.attention_flops < Full().plan(GEOMETRY).attention_flops


@pytest.mark.parametrize("timing", ["before", "after"])
def test_hack_without_fallback_refuses_what_the_published_rule_does_not_cover(timing):
    policy = Hack("20%", fallback=False, timing=timing)
    geometry = replace(GEOMETRY, schedule=Schedule.from_sides([1, 2, 3, 5, 6, 6]))
    profile = Profile("drawn", LAYERS, HEADS, geometry.schedule, **measured(geometry, 0))
    with pytest.raises(BudgetError, match=r"smallest feasible one .* is (\d+) B") as caught:
        policy.plan(geometry, profile)
    smallest = int(str(caught.value).split(" is ")[-1].split(" B")[0])
    plan = replace(policy, budget=smallest).plan(geometry, profile)
    newest = max(geometry.schedule.tokens if timing == "before" else geometry.schedule.tokens[:-1])
    least = min(max(group.capacity) for groups in plan.layers for group in groups if group.role == "structural")
    assert least >= 5 + newest
    with pytest.raises(BudgetError):
        replace(policy, budget=smallest - 1).plan(geometry, profile)
    with pytest.raises(ProfileError, match="needs a profile"):
        replace(policy, budget="95%").plan(geometry)


# HACK++


def weights(boundary: int, tau: float) -> list[float]:
    gamma = future_reliance(PROFILE)[boundary - 1]
    return [(sum(gamma[layer][head] for head in heads) / len(heads)) ** tau for layer, _, heads in GROUPS]


@pytest.mark.parametrize("case", VECTORS["budget_real"])
def test_closed_form_of_the_budgets(case):
    boundary, tau, mean = (float(word.lstrip("ktauB")) for word in case.split(","))
    found = share_by_weight(SIZES, weights(int(boundary), tau), [10**6] * 4, int(mean * 8))
    assert found == pytest.approx(VECTORS["budget_real"][case], abs=1e-8)


@pytest.mark.parametrize("case", VECTORS["budget_int"], ids=lambda case: f"k{case['k']},{case['tau']},{case['B_c']}")
def test_whole_budgets(case):
    quota = math.floor(case["B_c"] * 8)
    arguments = (SIZES, weights(case["k"], case["tau"]), [case["cap"]] * 4, quota, case["floor"])
    assert share_by_weight(*arguments) == pytest.approx(case["real"], abs=1e-8)
    found = whole_shares(*arguments)
    assert found == case["int"]
    assert quota - sum(size * count for size, count in zip(SIZES, found, strict=True)) == case["left_over"]


@given(st.data())
def test_shares_spend_the_quota_within_their_bounds(data):
    groups = data.draw(st.integers(1, 8))
    numbers = lambda one: data.draw(st.lists(one, min_size=groups, max_size=groups))  # noqa: E731
    sizes, limits = numbers(st.integers(1, 5)), numbers(st.integers(1, 40))
    importance = numbers(st.floats(0, 10) | st.floats(0, 1e-6))
    floor = data.draw(st.integers(0, 3))
    least = sum(size * min(floor, limit) for size, limit in zip(sizes, limits, strict=True))
    most = sum(size * limit for size, limit in zip(sizes, limits, strict=True))
    quota = data.draw(st.integers(least, most + 10))
    shares = share_by_weight(sizes, importance, limits, quota, floor)
    assert sum(size * share for size, share in zip(sizes, shares, strict=True)) == pytest.approx(min(quota, most))
    found = whole_shares(sizes, importance, limits, quota, floor)
    spent = sum(size * count for size, count in zip(sizes, found, strict=True))
    assert spent <= quota
    for one, (share, count, limit) in enumerate(zip(shares, found, limits, strict=True)):
        assert min(floor, limit) <= count <= limit
        assert abs(share - count) < 1 + 1e-6
        for other, again in enumerate(shares):
            if importance[one] > importance[other] and share < limit - 1e-9:
                assert share >= again - 1e-9 or again <= min(floor, limits[other])


def test_budgets_follow_future_reliance_at_every_segment():
    policy = HackPP("30%", alpha=VECTORS["alpha"], tau=2.0)
    plan = policy.plan(GEOMETRY, PROFILE)
    groups = [group for layer in plan.layers for group in layer]
    slots = plan.limit_bytes // plan.head_token_bytes
    assert slots == math.floor(0.3 * 14 * 8 * 32 / 36)
    held = [0] * 4
    for segment in range(3):
        caps = [tokens + SCHEDULE[segment].tokens for tokens in held]
        held = whole_shares(SIZES, weights(segment + 1, 2.0), caps, slots, 1)
        total = sum(len(group.heads) * group.capacity[segment + 1] for group in groups)
        assert total <= slots
        assert all(group.capacity[segment + 1] <= wanted for group, wanted in zip(groups, held, strict=True))
    assert [group.capacity[3] for group in groups] == held


@pytest.mark.parametrize("place", VECTORS["contextual_k3"])
def test_contextual_score_vectors(place):
    layer, head = map(int, place.split(","))
    policy = HackPP(queries="uniform:4", pool_width=3)
    seen = view(layer, head, 2, policy, 5, "contextual")
    assert kept(policy, seen) == VECTORS["contextual_k3"][place]["top5_maxpool3"]


def test_pooled_ties_go_to_the_peak():
    example = VECTORS["maxpool_example"]
    ranks = pooled_rank(torch.tensor(example["x"])[None, None], example["kernel"])
    assert survivors(ranks, 3).flatten().tolist() == example["top3_after"]
    assert survivors(ranks, 1).flatten().tolist() == [1]


@given(st.lists(st.floats(0, 1, width=32) | st.sampled_from([0.0, 0.25, 0.5]), min_size=1, max_size=30))
def test_ranks_are_by_pool_then_score_then_age(values):
    pooled = [max(values[max(0, at - 2) : at + 3]) for at in range(len(values))]
    order = sorted(range(len(values)), key=lambda at: (-pooled[at], -values[at], at))
    ranks = pooled_rank(torch.tensor(values)[None, None], 5).flatten().tolist()
    assert sorted(range(len(values)), key=lambda at: -ranks[at]) == order


@pytest.mark.parametrize("place", VECTORS["structural_k3"])
def test_structural_scores_need_no_query(place):
    layer, head = map(int, place.split(","))
    seen = replace(view(layer, head, 2, HackPP(), 5, "structural"), query=None, window=None)
    expected = torch.tensor(VECTORS["structural_k3"][place]["score"])
    torch.testing.assert_close(HackPP().score(seen).flatten(), expected, atol=1e-7, rtol=1e-5)
    assert kept(HackPP(), seen) == VECTORS["structural_k3"][place]["top5"]


def test_structural_scores_know_where_a_token_came_from():
    """Candidates are what is left of the history, not all of it."""
    whole = view(0, 3, 2, HackPP(), 5, "structural")
    left = [0, 3, 5, 6, 9, 13]
    part = replace(
        whole, key=whole.key[:, :, left], value=whole.value[:, :, left], origin=whole.origin[:, :, left], query=None
    )
    assert torch.equal(HackPP().score(part), HackPP().score(whole)[:, :, left])


def tokens(mean: float, geometry: CacheGeometry, policy: HackPP) -> HackPP:
    """The policy with so many tokens per head, the marks of origin paid for on top."""
    marked = geometry.head_token_bytes + 4 * geometry.rows
    return replace(policy, budget=f"{mean * marked / geometry.head_token_bytes} tokens")


@pytest.mark.filterwarnings("ignore:HACK:UserWarning")
@pytest.mark.parametrize(
    ("geometry", "share", "attention", "printed"),
    [
        (TWO_B, 0.01, 0.3, 12.11),
        (EIGHT_B, 0.01, 0.3, 26.49),
        (TWO_B, 0.1, 0.3, 14.67),
        (EIGHT_B, 0.1, 0.3, 32.09),
    ],
)
def test_printed_flops_of_hack_pp_with_equal_budgets(geometry, share, attention, printed):
    """Equal budgets: no profile. Shares are of all tokens, the last segment's included."""
    policy = tokens(share * geometry.schedule.total_tokens, geometry, HackPP(attention_share=attention))
    plan = policy.plan(geometry)
    assert plan.attention_flops / 1e12 == pytest.approx(printed, abs=0.0055)
    assert max(max(group.attended) for groups in plan.layers for group in groups) == 3156


@pytest.mark.filterwarnings("ignore:(HACK|ScaleKV):UserWarning")
@pytest.mark.parametrize(
    ("policy", "geometry", "share", "printed"),
    [
        (Full(), TWO_B, 1, 35.91),
        (Full(), EIGHT_B, 1, 78.54),
        (Full(), DEPTH_30, 1, 4.22),
        (Full(), DEPTH_24, 1, 2.70),
        (ScaleKV(), TWO_B, 0.1, 19.19),
        (ScaleKV(), TWO_B, 0.01, 14.35),
        (ScaleKV(), EIGHT_B, 0.1, 41.98),
        (ScaleKV(), EIGHT_B, 0.01, 31.40),
        (Hack(), EIGHT_B, 0.3, 33.54),
        (Hack(), DEPTH_30, 0.5, 2.73),
    ],
)
def test_printed_flops_of_the_others(policy, geometry, share, printed):
    if share < 1:
        policy = replace(policy, budget=f"{share * geometry.schedule.total_tokens} tokens")
    assert policy.plan(geometry).attention_flops / 1e12 == pytest.approx(printed, abs=0.0055)


def test_an_attention_share_of_one_leaves_attention_alone():
    plan = HackPP("20%", attention_share=1.0).plan(GEOMETRY, PROFILE)
    for groups in plan.layers:
        for group in groups:
            for segment in range(len(SCHEDULE)):
                assert plan.attended(group, segment) == plan.candidates(group, segment)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("hack", {"alpha": 1.5}),
        ("hack", {"contextual_share": -0.1}),
        ("hack", {"init_segments": -1}),
        ("hack", {"fallback": 1}),
        ("hack", {"queries": "some"}),
        ("hack_pp", {"alpha": "much"}),
        ("hack_pp", {"tau": -1}),
        ("hack_pp", {"attention_share": 0}),
        ("hack_pp", {"attention_share": 0.0}),
        ("hack_pp", {"pool_width": 4}),
        ("hack_pp", {"floor": 0}),
        ("hack_pp", {"timing": "before"}),
    ],
)
def test_nonsense_is_refused_in_one_sentence(name, settings):
    with pytest.raises(InvalidInput) as caught:
        make_policy(name, **settings)
    assert "\n" not in str(caught.value)


def test_a_floor_that_cannot_be_paid_is_refused_with_the_smallest_budget():
    with pytest.raises(BudgetError, match=f"is {3 * 8 * 36} B"):
        HackPP("5%", floor=3).plan(GEOMETRY, PROFILE)
