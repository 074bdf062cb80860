"""Merged history: what attention reads, the bytes of every moment, the stages of codecs."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from driving import compare_with_witness, moments, run, tensors

from live_bytes import LiveBytes
from scalekv.cache import KVCache
from scalekv.cache.codecs import kept_matrices
from scalekv.errors import BudgetError
from scalekv.planning import CacheGeometry, Codec, Profile, Schedule, Segment, token_merging
from scalekv.planning.curves import curve_ranks
from scalekv.policies import Bytewise, Full
from scalekv.policies.grouping import candidate_heights, nearest_groups
from strategies import MEASURED_FOR_MERGING, codecs, geometries, measured

pytestmark = pytest.mark.filterwarnings("ignore:Bytewise runs without a profile")

SCHEDULE = Schedule.from_sides([1, 2, 3, 4, 6])
GEOMETRY = CacheGeometry(2, 3, 16, SCHEDULE, batch=1, guidance=2, element_bytes=4)
EXACT = Bytewise("20%", codec="none", allocation="uniform")
CODECS = ["none", "int8", "int6", "int4", "int6/int4"]


def profile_of(geometry: CacheGeometry, seed: int = 0) -> Profile:
    tables = measured(geometry, seed, MEASURED_FOR_MERGING)
    return Profile("drawn", geometry.layers, geometry.heads, geometry.schedule, **tables)


PROFILE = profile_of(GEOMETRY, 2)


# ---------------------------------------------------------------------------------------------- what attention reads


def alike(segment, layer: int, kinds: int) -> list[torch.Tensor]:
    """Query, key and value; all tokens of a head are one of a few, in turn, near each other only to themselves."""
    query = tensors(GEOMETRY, segment, layer)[0]
    generator = torch.Generator().manual_seed(layer)
    shape = (2, GEOMETRY.rows, GEOMETRY.heads, kinds, GEOMETRY.head_dim)
    turn = (torch.arange(segment.tokens) + SCHEDULE.start(segment.index)) % kinds
    key, value = (part[:, :, turn] for part in torch.randn(shape, generator=generator))
    return [query, key, value]


@pytest.mark.parametrize("rounds", [0, 1])
def test_merging_like_tokens_loses_nothing(rounds):
    policy = replace(EXACT, rounds=rounds)
    plan, full = policy.plan(GEOMETRY), Full().plan(GEOMETRY)
    assert max(plan.layers[0][0].capacity) < SCHEDULE.history_tokens / 4
    merged = 0
    with (
        KVCache(plan, policy, dtype=torch.float32) as cache,
        KVCache(full, Full(), dtype=torch.float32) as exact,
    ):
        for segment in SCHEDULE:
            cache.begin(segment)
            exact.begin(segment)
            merged += plan.counted(plan.layers[0][0], segment.index)
            for layer in range(GEOMETRY.layers):
                given = alike(segment, layer, kinds=2)
                torch.testing.assert_close(cache.attend(layer, *given), exact.attend(layer, *given))
    assert merged >= 2


def naive(policy: Bytewise, plan, geometry: CacheGeometry, draw=tensors):
    """Groups by the policy's rule, all else by loops: means weighted by counts, logarithms of counts as a bias."""
    outputs, held = {}, {}
    for segment in geometry.schedule:
        for layer, groups in enumerate(plan.layers):
            query, key, value = draw(geometry, segment, layer)[:3]
            output = torch.empty_like(query)
            for group in groups:
                for image, counted in product(range(plan.geometry.rows), group.heads):
                    part, head = divmod(counted, geometry.heads)
                    row = part * plan.geometry.rows + image
                    place = layer, row, head
                    own = [key[row, head], value[row, head], torch.ones(segment.tokens)]
                    old = held.get(place)
                    if old is not None:
                        own = [torch.cat(pair) for pair in zip(old, own, strict=True)]
                    logits = query[row, head] @ own[0].mT + own[2].log()
                    output[row, head] = torch.softmax(logits, -1) @ own[1]
                    held[place] = merged(policy, segment, own, plan.carried(group, segment.index))
            outputs[segment.index, layer] = output
    return outputs


def merged(policy: Bytewise, segment: Segment, own: list[torch.Tensor], kept: int) -> list[torch.Tensor]:
    key, value, count = own
    if not kept or kept >= len(count):
        return own
    heights = candidate_heights(GEOMETRY.schedule, segment, len(count) - segment.tokens)
    parts = (part[None, None] for part in own)
    labels = nearest_groups(*parts, kept, policy.rounds, heights, policy.reach)[0, 0].tolist()
    new = [torch.zeros(kept, key.shape[1]), torch.zeros(kept, key.shape[1]), torch.zeros(kept)]
    for token, label in enumerate(labels):
        new[0][label] += count[token] * key[token]
        new[1][label] += count[token] * value[token]
        new[2][label] += count[token]
    for label in range(kept):
        for part in new[:2]:
            part[label] /= max(1.0, float(new[2][label]))
    return new


@pytest.mark.parametrize(
    ("policy", "profile"),
    [
        (EXACT, None),
        (replace(EXACT, rounds=2, budget="8%"), None),
        (replace(EXACT, strict=True, budget="95%"), None),
        (replace(EXACT, allocation="sensitivity"), PROFILE),
        (replace(EXACT, allocation="sensitivity", groups=2, budget="40%"), PROFILE),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [1, 2])
def test_attention_is_that_of_counted_means(policy, profile, batch):
    geometry = replace(GEOMETRY, batch=batch)
    plan = policy.plan(geometry, profile)
    outputs, _ = run(policy, geometry, profile)
    expected = naive(policy, plan, geometry)
    assert sum(plan.merges(group, at) for groups in plan.layers for group in groups for at in range(4)) >= 4
    for place, output in outputs.items():
        torch.testing.assert_close(output, expected[place], atol=2e-5, rtol=1e-4)


def test_counts_add_up_to_all_tokens_so_far():
    policy = EXACT
    plan = policy.plan(GEOMETRY)
    with KVCache(plan, policy, dtype=torch.float32) as cache:
        for segment in SCHEDULE.segments[:-1]:
            cache.begin(segment)
            for layer in range(GEOMETRY.layers):
                cache.attend(layer, *tensors(GEOMETRY, segment, layer)[:3])
                for store in cache._stores[layer]:
                    if plan.counted(store.plan, segment.index + 1):
                        total = store.count.sum(-1)
                        assert torch.equal(total, torch.full_like(total, SCHEDULE.start(segment.index + 1)))
                    else:
                        assert store.count is None


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("profile", [None, PROFILE], ids=["uniform", "profile"])
def test_everything_is_the_full_cache_bit_for_bit(name, profile):
    outputs, cache = run(Bytewise("100%", codec=name), GEOMETRY, profile)
    expected, _ = run(Full(), GEOMETRY)
    assert all(torch.equal(outputs[place], expected[place]) for place in expected)
    assert cache.plan.coded_from is None


@pytest.mark.parametrize("name", ["none", "int6/int4"])
@pytest.mark.parametrize("rounds", [0, 1])
@pytest.mark.parametrize("profile", [None, PROFILE], ids=["uniform", "profile"])
def test_rows_get_what_they_get_alone(name, rounds, profile):
    """Bit for bit once read rows are merged alike; attention of several rows itself may round otherwise."""
    policy = Bytewise("20%", codec=name, rounds=rounds)
    many, one = (replace(GEOMETRY, batch=batch, guidance=1) for batch in (3, 1))
    together, _ = run(policy, many, profile)
    for row in range(3):
        with KVCache(policy.plan(one, profile), policy, dtype=torch.float32) as cache:
            for segment in SCHEDULE:
                cache.begin(segment)
                for layer in range(one.layers):
                    parts = [tensor[row : row + 1] for tensor in tensors(many, segment, layer)[:3]]
                    assert torch.equal(cache.attend(layer, *parts)[0], together[segment.index, layer][row])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near_float32(dtype):
    """Draws are the same numbers in both, so that groups are too."""
    policy = replace(EXACT, budget="40%")
    half = replace(GEOMETRY, element_bytes=2)
    rounded, _ = run(policy, half, dtype=dtype)

    def same(geometry, segment, layer):
        return [tensor.float() for tensor in tensors(geometry, segment, layer, dtype)]

    expected = naive(policy, policy.plan(half), half, same)
    for place, output in rounded.items():
        assert torch.isfinite(output).all()
        error = (output.float() - expected[place]).square().mean().sqrt()
        assert error < 0.08 * expected[place].square().mean().sqrt()


# ------------------------------------------------------------------------------------------------------------- bytes


def check_bytes(policy: Bytewise, geometry: CacheGeometry, profile: Profile | None, dtype=torch.float32) -> None:
    """The ledger has what is planned at every moment, and a witness that knows neither sees no more."""
    plan = policy.plan(geometry, profile)
    with (
        LiveBytes(kept_matrices(geometry.head_dim, torch.device("cpu"))) as witness,
        KVCache(plan, policy, dtype=dtype) as cache,
    ):
        planned = moments(cache)
        for segment in geometry.schedule:
            cache.begin(segment)
            assert cache.live_bytes == plan.held_bytes(segment.index)
            ambient = witness.live - cache.live_bytes
            for layer in range(geometry.layers):
                cache.ledger.mark()
                compare_with_witness(witness, cache, ambient, segment, layer, planned[segment.index, layer])
                assert cache.ledger.recent_peak == planned[segment.index, layer].peak
                assert cache.live_bytes == planned[segment.index, layer].after
    report = cache.report()
    assert report.kept_bytes == plan.nominal_bytes <= plan.limit_bytes
    assert report.measured_peak_bytes == plan.peak_bytes
    assert plan.drift_bytes <= plan.limit_bytes
    assert plan.peak_bytes <= plan.limit_bytes or not policy.strict
    assert report.codec == plan.codec
    assert cache.live_bytes == 0


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("budget", ["2%", "10%", "30%", "60%"])
@pytest.mark.parametrize(
    ("batch", "profile"), [(1, None), (1, PROFILE), (3, PROFILE)], ids=["1", "1 profile", "3 profile"]
)
def test_bytes_are_as_planned_at_every_moment(name, budget, batch, profile):
    geometry = replace(GEOMETRY, batch=batch)
    policy = Bytewise(budget, codec=name)
    if budget == "2%":
        policy = replace(policy, budget=max(int(0.02 * geometry.lossless_bytes), smallest(policy, geometry)))
    check_bytes(policy, geometry, profile)


def smallest(policy: Bytewise, geometry: CacheGeometry, profile: Profile | None = None) -> int:
    """The budget that a refusal names."""
    with pytest.raises(BudgetError, match="feasible one") as caught:
        replace(policy, budget=1).plan(geometry, profile)
    return int(str(caught.value).split("batch is ")[1].split(" B")[0])


@pytest.mark.parametrize("name", ["none", "int6/int4"])
@pytest.mark.parametrize("share", [0.1, 0.5, 2.5], ids=["one head", "two heads", "two rows"])
@pytest.mark.parametrize("profile", [None, PROFILE], ids=["uniform", "profile"])
def test_parts_that_are_merged_together_change_bytes_and_no_bits(monkeypatch, name, share, profile):
    """Whatever scratch allows: the same outputs, and no more memory than is planned."""
    geometry, policy = replace(GEOMETRY, batch=3), Bytewise("20%", codec=name, groups=1, guidance="together")
    whole, _ = run(policy, geometry, profile)
    plan = policy.plan(geometry, profile)
    group, last = plan.layers[0][0], len(SCHEDULE) - 2
    row = token_merging.merging_scratch(plan, group, last, 1)
    most = token_merging.merging_scratch(plan, group, last, geometry.rows)
    monkeypatch.setattr(token_merging, "MERGING_LIMIT", int(share * row))
    assert token_merging.merging_scratch(plan, group, last, geometry.rows) < most
    check_bytes(policy, geometry, profile)
    parts, _ = run(policy, geometry, profile)
    assert all(torch.equal(parts[place], whole[place]) for place in whole)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize(
    ("batch", "profile"), [(1, None), (1, PROFILE), (3, PROFILE)], ids=["1", "1 profile", "3 profile"]
)
def test_bytes_are_as_planned_under_strict_budgets(name, share, batch, profile):
    """From the smallest that is possible to 100 %: with so few tokens scratch weighs more than in real models."""
    geometry = replace(GEOMETRY, batch=batch)
    policy = Bytewise(codec=name, strict=True)
    least = smallest(policy, geometry, profile)
    policy = replace(policy, budget=int(least + share * max(0, geometry.lossless_bytes - least)))
    check_bytes(policy, geometry, profile)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["none", "int6/int4"])
def test_bytes_are_as_planned_in_half_precision(name, dtype):
    check_bytes(Bytewise("20%", codec=name, rounds=1), replace(GEOMETRY, element_bytes=2), PROFILE, dtype)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ["none", "int6/int4"])
def test_bytes_of_more_tokens_than_a_block(name, strict):
    """Scratch is for many tokens too: here a block is full, and groups are many."""
    geometry = CacheGeometry(1, 2, 32, Schedule.from_sides([2, 18, 22, 3]), guidance=2, element_bytes=2)
    policy = Bytewise("70%" if name == "none" else "14%", codec=name, rounds=1, strict=strict)
    if strict:
        policy = replace(policy, budget=int(1.1 * smallest(policy, geometry)))
    check_bytes(policy, geometry, None, torch.bfloat16)


@settings(max_examples=40)
@given(st.data())
def test_the_pool_holds_at_every_moment(data):
    """Heads that grow while others still hold the finer codec of the segment before must not exceed it."""
    geometry = replace(data.draw(geometries(longest=6)), head_dim=16)
    profile = profile_of(geometry, data.draw(st.integers(0, 999)))
    policy = Bytewise(
        data.draw(st.floats(0.01, 0.7)),
        codec=data.draw(codecs()),
        floor=data.draw(st.floats(0, 1)),
        groups=data.draw(st.integers(1, 3)),
    )
    try:
        plan = policy.plan(geometry, profile)
    except BudgetError:
        return
    assert plan.nominal_bytes <= plan.drift_bytes <= plan.limit_bytes


# ------------------------------------------------------------------------------------------------------------ stages


def stages(plan) -> list[str]:
    """How history is held for every segment; the same in all heads."""
    found = []
    for segment in range(len(plan.geometry.schedule)):
        names = {str(group.codec_at(segment)) for groups in plan.layers for group in groups}
        assert len(names) == 1
        found.append(names.pop())
    return found


ORDER = ["None", "int8", "int6", "int6/int4"]


@pytest.mark.parametrize("budget", ["8%", "20%", "35%", "45%"])
@pytest.mark.parametrize("profile", [None, PROFILE], ids=["uniform", "profile"])
@pytest.mark.parametrize("strict", [False, True])
def test_history_is_exact_then_in_eight_bits_then_in_the_codec(budget, profile, strict):
    geometry = replace(GEOMETRY, head_dim=64, schedule=SCHEDULE)
    policy = Bytewise(budget if not strict else 0.9, strict=strict)
    plan = policy.plan(geometry, profile)
    found = stages(plan)
    ranks = [ORDER.index(name) for name in found]
    assert ranks == sorted(ranks), "never finer again"
    assert found[0] == "None"
    assert plan.coded_from == next((at for at, name in enumerate(found) if name != "None"), None)
    assert plan.codec == ("none" if found[-1] == "None" else found[-1])
    for at, name in enumerate(found):
        if name == "int8":
            assert all(group.capacity[at] == SCHEDULE.start(at) for groups in plan.layers for group in groups)
            assert not any(plan.counted(group, at) for groups in plan.layers for group in groups)


def test_all_three_stages_happen_and_attention_says_so():
    """Exact as the full cache, then a little off, then more."""
    geometry = CacheGeometry(2, 2, 64, Schedule.from_sides([2, 4, 5, 6, 8]), guidance=1, element_bytes=4)
    policy = Bytewise("26%", allocation="uniform")
    plan = policy.plan(geometry)
    assert stages(plan) == ["None", "None", "None", "int8", "int6"]
    assert plan.coded_from == 3
    assert plan.codec == "int6"
    outputs, cache = run(policy, geometry)
    full, _ = run(Full(), geometry)
    assert cache.report().codec == "int6"
    errors = []
    for segment in range(5):
        wrong = [(outputs[segment, layer] - full[segment, layer]).square().mean() for layer in range(2)]
        errors.append(float(sum(wrong)))
    assert errors[:3] == [0, 0, 0]
    assert 0 < errors[3] < errors[4] / 4


@pytest.mark.parametrize("name", ["none", "int8", "fp8", "int8/fp8", "none/int4", "int6/none"])
def test_codecs_that_are_not_coarser_have_no_stage_before_them(name):
    for budget in ("10%", "30%", "60%"):
        plan = Bytewise(budget, codec=name, allocation="uniform").plan(GEOMETRY)
        assert set(stages(plan)) <= {"None", str(Codec.parse(name))}


def test_a_codec_that_changes_without_merging_rounds_anew():
    """Room for everything in few bits: tokens change their codec, none is merged, and all are counted once."""
    geometry = CacheGeometry(1, 2, 64, Schedule.from_sides([2, 4, 5, 6, 3]), guidance=1, element_bytes=4)
    policy = Bytewise("24%", codec="int6", allocation="uniform")
    plan = policy.plan(geometry)
    found, group = stages(plan), plan.layers[0][0]
    assert {"int8", "int6"} <= set(found)
    change = found.index("int6")
    assert plan.merges(group, change - 1)
    assert group.capacity[change] == geometry.schedule.start(change), "everything fits"
    outputs, _ = run(policy, geometry)
    full, _ = run(Full(), geometry)
    for place, output in outputs.items():
        assert (output - full[place]).norm() < 0.2 * full[place].norm()


def two_heads(schedule: Schedule, first: float) -> Profile:
    """Two layers of one head each; errors of the first count ``first`` times as much as those of the second."""
    segments, starts = range(len(schedule)), [schedule.start(index + 1) for index in range(len(schedule))]
    curves = [tuple(1 / rank - 1 / tokens for rank in curve_ranks(tokens)) for tokens in starts]
    return Profile(
        "drawn",
        2,
        1,
        schedule,
        head_statistics={"sensitivity": tuple(((first,), (1.0,)) for _ in segments)},
        source_statistics={"mass": tuple(tuple(((1.0,), (1.0,)) for _ in range(last + 1)) for last in segments)},
        curves={"merging": tuple(((curve,), (curve,)) for curve in curves)},
    )


@pytest.mark.parametrize("first", [1.0, 2.0, 4.0, 8.0])
def test_the_pool_holds_while_layers_go_over_to_the_coarser_codec(first):
    """A layer that grows is done before one that still holds everything in eight bits."""
    schedule = Schedule.from_shapes([(1, 1), (1, 9), (9, 10), (1, 4)])
    geometry, profile = CacheGeometry(2, 1, 64, schedule, guidance=1, element_bytes=4), two_heads(schedule, first)
    finer = 0
    for limit in range(2600, 4200, 40):
        plan = Bytewise(limit, codec="int4", floor=0.0).plan(geometry, profile)
        assert plan.drift_bytes <= limit
        finer += "int8" in stages(plan)
    assert finer or first > 2


def test_eight_bits_to_the_end_where_all_of_the_history_fits_in_them():
    geometry = CacheGeometry(2, 2, 64, Schedule.from_sides([2, 4, 5, 6, 8]), guidance=1, element_bytes=4)
    plan = Bytewise("30%", allocation="uniform").plan(geometry)
    assert stages(plan) == ["None", "None", "None", "int8", "int8"]
    assert plan.codec == "int8"
    check_bytes(Bytewise("30%", allocation="uniform"), geometry, None)


def test_a_profile_that_moves_tokens_to_other_heads_keeps_within_the_pool():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = Bytewise("20%").plan(GEOMETRY, PROFILE)
    assert len({group.capacity for groups in plan.layers for group in groups}) > 1


def test_a_failed_generation_frees_everything():
    policy = Bytewise("20%")
    with pytest.raises(ZeroDivisionError), KVCache(policy.plan(GEOMETRY), policy, dtype=torch.float32) as cache:
        for segment in SCHEDULE:
            cache.begin(segment)
            cache.attend(0, *tensors(GEOMETRY, segment, 0)[:3])
            if segment.index == 3:
                assert cache._stores[0][0].count is not None
                raise ZeroDivisionError
            cache.attend(1, *tensors(GEOMETRY, segment, 1)[:3])
    assert cache.live_bytes == 0
