"""Codecs: round trips, bytes as planned, what is coded when, and coded attention against lists of tokens."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from driving import compare_with_witness, moments, run, steps, tensors
from methods import OddSegments, PerHead, Remembering, TwoBudgets

from live_bytes import LiveBytes
from scalekv.cache import KVCache, codecs
from scalekv.cache.codecs import carry_chosen, carry_ranges, decode, decode_tokens, encode, kept_matrices, mixed, signs
from scalekv.planning import VECTOR_CODECS, CacheGeometry, Codec, Profile, Schedule
from scalekv.planning.coding import decoded_rows
from scalekv.policies import (
    AMSKV,
    H2O,
    AdaKV,
    Full,
    Hack,
    HackPP,
    HeatKV,
    Policy,
    Random,
    ScaleKV,
    SlidingWindow,
    SnapKV,
    StreamingLLM,
)
from strategies import measured

SCHEDULE = Schedule.from_sides([1, 2, 3, 5, 6, 8])
GEOMETRY = CacheGeometry(3, 4, 16, SCHEDULE, batch=2, guidance=2, element_bytes=4)
PROFILE = Profile("drawn", 3, 4, SCHEDULE, **measured(GEOMETRY, 11))
NAMES = ["int8", "int6", "int4", "fp8", "int8/int4", "none/int8", "int6/none"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
POLICIES: list[Policy] = [
    Full("75%"),
    SlidingWindow("20%"),
    SlidingWindow("20%", timing="before"),
    StreamingLLM("20%"),
    Random("20%"),
    ScaleKV("20%"),
    ScaleKV("20%", queries="uniform:7", timing="before"),
    ScaleKV("20%", scorer="projection", exact_division=True),
    SnapKV("20%", queries="all"),
    H2O("20%"),
    H2O("20%", timing="before"),
    AdaKV("20%", alpha=0.0),
    Hack("20%", alpha=0.4),
    HackPP("20%", alpha=0.4, attention_share=0.3),
    HeatKV("25%", sink_scales=2),
    AMSKV("25%"),
    PerHead("20%"),
    PerHead("20%", timing="before"),
    TwoBudgets("20%", read=30),
    Remembering("20%"),
    OddSegments("40%"),
]


def round_trip(name: str, vectors: torch.Tensor) -> torch.Tensor:
    """Encoded and decoded, in the dtype given."""
    return decoded(name, encoded(name, vectors), vectors)


def encoded(name: str, vectors: torch.Tensor) -> torch.Tensor:
    codec = VECTOR_CODECS[name]
    size = codec.vector_bytes(vectors.shape[-1], vectors.element_size())
    packed = torch.full((*vectors.shape[:-1], size), 77, dtype=torch.uint8)
    encode(codec, vectors, packed)
    return packed


def decoded(name: str, packed: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    out = torch.full_like(like, torch.nan)
    decode(VECTOR_CODECS[name], packed, out)
    return out


class TestVectors:
    """One vector, there and back."""

    @pytest.mark.parametrize("bits", [8, 6, 4])
    @pytest.mark.parametrize("times", [1, 2, 4, 8, 16])
    def test_packing_is_undone_exactly_for_every_code(self, bits, times):
        """Whatever the words are that bytes are packed in."""
        codes = torch.arange(2**bits, dtype=torch.uint8)
        codes = torch.stack([codes, codes.flip(0), codes.roll(1), codes.roll(5)], -1).repeat(1, times)
        packed = torch.empty(2**bits, 4 * times * bits // 8, dtype=torch.uint8)
        codecs._pack(bits, codes, packed)
        out = torch.empty(2**bits, 4 * times)
        codecs._unpack(bits, packed, out)
        assert torch.equal(out, codes.float())

    @pytest.mark.parametrize("head_dim", [1, 2, 3, 12, 16, 80, 96, 128])
    def test_the_turn_is_orthogonal(self, head_dim):
        width = head_dim & -head_dim
        turn = mixed(torch.diag(signs(head_dim, torch.device("cpu"))))
        assert set(turn.abs().flatten().tolist()) <= {0.0, 1.0}
        assert torch.equal(turn @ turn.mT, width * torch.eye(head_dim))
        assert torch.equal(mixed(mixed(torch.eye(head_dim))), width * torch.eye(head_dim)), "turned back"

    @settings(max_examples=200)
    @given(st.data())
    def test_the_error_is_at_most_half_a_level(self, data):
        """In the turned channels, where an orthogonal turn keeps lengths; plus what the dtypes themselves round."""
        bits, head_dim = data.draw(st.sampled_from([8, 6, 4])), data.draw(st.sampled_from([4, 8, 12, 16, 64, 80, 128]))
        dtype = data.draw(st.sampled_from(DTYPES))
        scale = 10.0 ** data.draw(st.integers(-4, 4) if dtype is torch.float16 else st.integers(-25, 30))
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
        vectors = torch.randn(5, head_dim, generator=generator)
        vectors[1] = data.draw(st.floats(-3, 3, width=32))
        vectors[2, :] = 0
        vectors[3, data.draw(st.integers(0, head_dim - 1))] *= 50
        vectors[4] += 10
        vectors = (vectors * scale).clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)
        packed = encoded(f"int{bits}", vectors)
        back = decoded(f"int{bits}", packed, vectors).double()
        assert torch.isfinite(back).all()
        level = packed[:, :2].contiguous().view(torch.bfloat16).double()
        lengths = vectors.double().norm(dim=-1)
        rounding = lengths * (torch.finfo(dtype).eps + 2.0**-14) + codecs.SMALLEST * head_dim
        error = (back - vectors.double()).norm(dim=-1)
        assert (error <= level[:, 0] / 2 * math.sqrt(head_dim) * 1.001 + rounding).all()
        span = 2 * lengths / (2**bits - 1) * 1.03 + torch.finfo(dtype).tiny
        assert (level[:, 0] <= span).all(), "levels lie between the minimum and the maximum"
        assert (back[2] == 0).all()

    @pytest.mark.parametrize(("name", "most"), [("int8", 0.007), ("int6", 0.026), ("int4", 0.105), ("fp8", 0.03)])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_relative_errors(self, name, most, dtype):
        """Of normal vectors, and of some with channels that stick out, as keys have them."""
        vectors = torch.randn(200, 128, generator=torch.Generator().manual_seed(0))
        vectors[100:, [3, 40, 77]] *= 12
        vectors = vectors.to(dtype)
        back = round_trip(name, vectors).float()
        for half in (slice(0, 100), slice(100, 200)):
            error = (back[half] - vectors[half].float()).norm() / vectors[half].float().norm()
            assert error < most

    def test_a_turn_spreads_what_sticks_out(self):
        """Without it, one large channel takes the levels of all others."""
        vectors = torch.randn(200, 128, generator=torch.Generator().manual_seed(0))
        vectors[:, 9] *= 30
        error = (round_trip("int4", vectors) - vectors).norm() / vectors.norm()
        low, high = vectors.amin(-1, keepdim=True), vectors.amax(-1, keepdim=True)
        level = (high - low) / 15
        plain = ((vectors - low) / level).round() * level + low
        assert error < 0.6 * (plain - vectors).norm() / vectors.norm()

    @pytest.mark.parametrize("name", ["int8", "int6", "int4", "fp8", "none"])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_extremes_stay_finite(self, name, dtype):
        largest = 60000.0 if dtype is torch.float16 else 1e36
        kinds = [0.0, 1e-38, 1e-20, 1e-6, 1.0, largest, -largest]
        vectors = torch.tensor(kinds)[:, None].expand(-1, 16).clone()
        vectors[:, ::3] *= -1
        vectors = torch.cat([vectors, torch.tensor(kinds)[:, None].expand(-1, 16)]).to(dtype)
        back = round_trip(name, vectors)
        assert torch.isfinite(back).all()
        error = (back.double() - vectors.double()).norm(dim=-1)
        assert (error <= 0.15 * vectors.double().norm(dim=-1) + 1e-28).all()

    def test_one_vector_of_an_odd_number_of_bytes(self):
        """Seven bytes: a slice of one vector counts as contiguous whatever its strides."""
        vectors = torch.randn(2, 1, 1, 4, generator=torch.Generator().manual_seed(0))
        packed = encoded("int6", vectors)
        assert packed.shape[-1] == 7
        together = decoded("int6", packed, vectors)
        assert torch.equal(decoded("int6", packed[:1], vectors[:1]), together[:1])

    def test_the_exact_codec_is_exact(self):
        vectors = torch.randn(3, 2, 5, 6).bfloat16()
        assert torch.equal(round_trip("none", vectors), vectors)

    @pytest.mark.parametrize("name", ["int8", "int6", "int4", "fp8"])
    def test_a_vector_is_coded_by_itself_bit_for_bit(self, name):
        """Whatever stands beside it: another batch, another block."""
        vectors = torch.randn(4, 3, 50, 128, generator=torch.Generator().manual_seed(1))
        together = encoded(name, vectors)
        back = decoded(name, together, vectors)
        for row, head, token in [(0, 0, 0), (3, 2, 49), (1, 1, 17)]:
            alone = vectors[row, head, token]
            assert torch.equal(encoded(name, alone), together[row, head, token])
            assert torch.equal(round_trip(name, alone), back[row, head, token])
        assert torch.equal(encoded(name, vectors[1:2, :, 3:20]), together[1:2, :, 3:20])

    @pytest.mark.parametrize("name", ["int8", "int6", "int4", "fp8", "none"])
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("head_dim", [4, 16, 128])
    def test_scratch_is_as_planned(self, name, dtype, head_dim):
        codec, vectors = VECTOR_CODECS[name], torch.randn(2, 3, 70, head_dim).to(dtype)
        packed, out = encoded(name, vectors), torch.empty_like(vectors)
        known = (vectors, packed, out, *kept_matrices(head_dim, torch.device("cpu")))
        with LiveBytes(known) as witness:
            encode(codec, vectors, packed)
            assert witness.peak <= 420 * codec.encoding_bytes(head_dim, dtype.itemsize)
        with LiveBytes(known) as witness:
            decode(codec, packed, out)
            assert witness.peak <= 420 * codec.decoding_bytes(head_dim)


class TestCarrying:
    """Survivors of history are copied, newcomers are encoded."""

    history, current = torch.randn(2, 3, 9, 8), torch.randn(2, 3, 5, 8)

    @pytest.mark.parametrize("step", [1, 3, 100])
    @pytest.mark.parametrize("name", ["int8", "none"])
    def test_chosen(self, step, name):
        codec, old = VECTOR_CODECS[name], encoded(name, self.history)
        chosen = torch.stack([torch.randperm(14)[:6].sort().values for _ in range(6)]).view(2, 3, 6)
        everything = torch.cat([old, encoded(name, self.current)], 2)
        for held, new in ((old, self.current), (None, torch.cat([self.history, self.current], 2))):
            out = torch.zeros(2, 3, 6, old.shape[-1], dtype=torch.uint8)
            carry_chosen(codec, held, new, chosen, out, step)
            assert torch.equal(out, everything.gather(2, chosen[..., None].expand_as(out)))

    @pytest.mark.parametrize("step", [1, 3, 100])
    @pytest.mark.parametrize("runs", [[(0, 14)], [(0, 2), (4, 11)], [(9, 14)], [(1, 3)], [(0, 9), (9, 12)]])
    def test_runs(self, step, runs):
        codec, old = VECTOR_CODECS["int6"], encoded("int6", self.history)
        everything = torch.cat([old, encoded("int6", self.current)], 2)
        expected = torch.cat([everything[:, :, start:stop] for start, stop in runs], 2)
        for held, new in ((old, self.current), (None, torch.cat([self.history, self.current], 2))):
            out = torch.zeros_like(expected)
            carry_ranges(codec, held, new, runs, out, step)
            assert torch.equal(out, expected)

    def test_blocks_of_decoding_do_not_matter(self):
        packed = encoded("int4", self.history)
        for step in (1, 4, 100):
            out = torch.empty_like(self.history)
            decode_tokens(VECTOR_CODECS["int4"], packed, out, step)
            assert torch.equal(out, decoded("int4", packed, self.history))


def planned(policy: Policy, geometry: CacheGeometry = GEOMETRY):
    return policy.plan(geometry, PROFILE if geometry.schedule == SCHEDULE else None)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("strict", [False, True])
def test_bytes_are_as_planned_at_every_moment(policy, name, strict):
    """By the ledger exactly, by live tensors at most; outputs are finite."""
    policy = replace(policy, codec=name)
    if strict:
        policy = replace(policy, budget=planned(policy).peak_bytes, strict=True)
    plan = planned(policy)
    assert plan.coded_from is not None or strict or type(policy) is OddSegments
    with (
        LiveBytes(kept_matrices(GEOMETRY.head_dim, torch.device("cpu"))) as witness,
        KVCache(plan, policy, dtype=torch.float32) as cache,
    ):
        for segment in SCHEDULE:
            cache.begin(segment)
            ambient = witness.live - cache.live_bytes
            for layer in range(GEOMETRY.layers):
                cache.ledger.mark()
                moment = moments(cache)[segment.index, layer]
                compare_with_witness(witness, cache, ambient, segment, layer, moment)
                assert cache.ledger.recent_peak == moment.peak
                assert cache.live_bytes == moment.after
    report = cache.report()
    assert report.kept_bytes == plan.nominal_bytes
    assert report.measured_peak_bytes == plan.peak_bytes
    assert plan.nominal_bytes <= plan.limit_bytes
    assert plan.peak_bytes <= plan.limit_bytes or not strict
    assert report.codec == plan.codec


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if type(policy).__module__ != "methods"], ids=str)
def test_nothing_is_coded_where_everything_fits(policy):
    policy = replace(policy, codec="int4", budget="100%")
    plan = planned(policy)
    assert plan.coded_from is None
    assert plan.codec == "none"
    outputs, _ = run(policy, GEOMETRY, PROFILE)
    expected, _ = run(Full(), GEOMETRY)
    assert all(torch.equal(outputs[place], expected[place]) for place in expected)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("name", ["int8", "int8/int4"])
def test_twice_is_the_same_bit_for_bit(policy, name):
    first, _ = run(replace(policy, codec=name), GEOMETRY, PROFILE)
    again, _ = run(replace(policy, codec=name), GEOMETRY, PROFILE)
    assert all(torch.equal(first[place], again[place]) for place in first)


@pytest.mark.parametrize("policy", [SlidingWindow("20%"), StreamingLLM("20%"), Random("20%")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["int8", "int6", "int4", "fp8"])
def test_attention_of_coded_history_is_that_of_lists_of_tokens(policy, name, dtype):
    """Every token is rounded once, when it is first carried past the boundary, and is exact until then."""
    geometry = replace(GEOMETRY, element_bytes=dtype.itemsize)
    policy = replace(policy, codec=name)
    plan = policy.plan(geometry)
    assert 1 < plan.coded_from < len(SCHEDULE) - 1
    history = {}
    tolerance = {"atol": 1e-5, "rtol": 1e-4} if dtype is torch.float32 else {"atol": 4e-2, "rtol": 4e-2}
    with KVCache(plan, policy, dtype=dtype) as cache:
        for segment, layer, output in steps(cache, geometry, dtype):
            query, key, value, _ = tensors(geometry, segment, layer, dtype)
            for row in range(geometry.rows):
                for head in range(geometry.heads):
                    tokens = history.setdefault((layer, row, head), [])
                    tokens += [
                        (SCHEDULE.start(segment.index) + place, key[row, head, place], value[row, head, place], False)
                        for place in range(segment.tokens)
                    ]
                    keys, values = (torch.stack([token[part] for token in tokens]).double() for part in (1, 2))
                    expected = torch.softmax(query[row, head].double() @ keys.mT, -1) @ values
                    torch.testing.assert_close(output[row, head].double(), expected, **tolerance)
                    if segment.index == len(SCHEDULE) - 1:
                        continue
                    kept = survivors_of(policy, plan, segment.index + 1, layer, head, [token[0] for token in tokens])
                    tokens[:] = [token for token in tokens if token[0] in kept]
                    if segment.index + 1 >= plan.coded_from:
                        tokens[:] = [rounded(name, token) for token in tokens]


def rounded(name: str, token):
    origin, key, value, coded = token
    return token if coded else (origin, round_trip(name, key), round_trip(name, value), True)


def survivors_of(policy, plan, segment: int, layer: int, head: int, origins: list[int]) -> set[int]:
    """What a policy that looks at no keys keeps, worked out anew."""
    capacity = plan.layers[layer][0].capacity[segment]
    if type(policy) is SlidingWindow:
        return set(origins[-capacity:])
    if type(policy) is StreamingLLM:
        sinks = [origin for origin in origins if origin < SCHEDULE.start(policy.sink_segments)][:capacity]
        rest = [origin for origin in origins if origin not in sinks]
        return {*sinks, *rest[len(rest) - (capacity - len(sinks)) :]}
    from scalekv.policies import SelectionView

    seen = torch.tensor(origins, dtype=torch.int32).view(1, 1, -1)
    empty = torch.empty(1, 1, len(origins), 1)
    view = SelectionView(layer, (head,), SCHEDULE, SCHEDULE[segment - 1], capacity, empty, empty, origin=seen)
    numbers = policy.score(view)[0, 0].tolist()
    ranked = sorted(range(len(origins)), key=lambda place: (-numbers[place], place))
    return {origins[place] for place in ranked[:capacity]}


@pytest.mark.parametrize("name", ["int4", "none/int6", "fp8"])
def test_survivors_keep_their_bytes_over_all_trims(name):
    """What is stored is copied, never rounded again."""
    policy = Random("15%", codec=name)
    plan = policy.plan(GEOMETRY)
    seen: dict[tuple, bytes] = {}
    repeated = 0
    with KVCache(plan, policy, dtype=torch.float32) as cache:
        for segment, layer, _ in steps(cache, GEOMETRY):
            store = cache._stores[layer][0]
            if store.key is None or segment.index + 1 < plan.coded_from:
                continue
            assert store.key.dtype == torch.uint8
            for row, head, place in torch.cartesian_prod(*map(torch.arange, store.key.shape[:3])).tolist():
                token = layer, row, head, store.origin[row, head, place].item()
                stored = bytes(store.key[row, head, place].tolist() + store.value[row, head, place].tolist())
                repeated += token in seen
                assert seen.setdefault(token, stored) == stored
    assert len(SCHEDULE) - 1 - plan.coded_from >= 2, "several trims"
    assert repeated > 500


@pytest.mark.parametrize("policy", [SlidingWindow("20%"), ScaleKV("20%"), SnapKV("20%", timing="before")], ids=str)
@pytest.mark.parametrize("name", ["int8", "int4", "fp8"])
def test_rows_get_what_they_get_alone_bit_for_bit(policy, name):
    policy = replace(policy, codec=name)
    many, one = (replace(GEOMETRY, batch=batch, guidance=1) for batch in (3, 1))
    together, _ = run(policy, many)
    for row in range(3):
        with KVCache(policy.plan(one), policy, dtype=torch.float32) as cache:
            for segment in SCHEDULE:
                cache.begin(segment)
                for layer in range(one.layers):
                    parts = [tensor[row : row + 1] for tensor in tensors(many, segment, layer)[:3]]
                    assert torch.equal(cache.attend(layer, *parts)[0], together[segment.index, layer][row])


def test_history_before_the_boundary_is_exact():
    """Until a segment must be coded, everything is that of the full cache, bit for bit."""
    policy = SlidingWindow("30%", codec="int4")
    plan, full = policy.plan(GEOMETRY), run(Full(), GEOMETRY)[0]
    outputs, _ = run(policy, GEOMETRY)
    assert 2 <= plan.coded_from < len(SCHEDULE) - 1
    for (segment, layer), output in outputs.items():
        assert torch.equal(output, full[segment, layer]) == (segment < plan.coded_from)


def test_a_failed_generation_frees_everything():
    policy = ScaleKV("20%", codec="int8")
    with pytest.raises(ZeroDivisionError), KVCache(policy.plan(GEOMETRY), policy, dtype=torch.float32) as cache:
        for segment, layer, _ in steps(cache, GEOMETRY):
            if (segment.index, layer) == (4, 1):
                raise ZeroDivisionError
    assert cache.live_bytes == 0


def test_keys_that_a_network_hands_over_transposed():
    """Networks project to ``(rows, tokens, heads, head_dim)``; a transposed view is no reason for other bytes."""
    policy = ScaleKV("20%", codec="int6")
    expected, _ = run(policy, GEOMETRY)
    with KVCache(policy.plan(GEOMETRY), policy, dtype=torch.float32) as cache:
        for segment in SCHEDULE:
            cache.begin(segment)
            for layer in range(GEOMETRY.layers):
                parts = [
                    part.transpose(1, 2).contiguous().transpose(1, 2) for part in tensors(GEOMETRY, segment, layer)
                ]
                output = cache.attend(layer, *parts[:3])
                torch.testing.assert_close(output, expected[segment.index, layer], atol=1e-6, rtol=1e-5)


def test_few_rows_are_decoded_at_once_where_history_is_long():
    geometry = replace(GEOMETRY, batch=4)
    plan = SlidingWindow("40%", codec="int8").plan(geometry)
    group, last = plan.layers[0][0], len(SCHEDULE) - 1
    rows = decoded_rows(plan, group, last)
    assert 1 < rows < geometry.rows
    assert rows * plan.candidates(group, last) <= geometry.rows * SCHEDULE[last].tokens
    assert decoded_rows(replace(plan, strict=True), group, last) == 1


@pytest.mark.parametrize("text", ["int5", "", "int8/", "int8/int4/int4", "8", None, 8])
def test_an_unknown_codec_is_refused(text):
    from scalekv.errors import InvalidInput

    with pytest.raises(InvalidInput, match=r"^codec must be none, int8, int6, int4 or fp8, or two .*; got .*\.$"):
        ScaleKV(codec=text)


@pytest.mark.parametrize(
    ("name", "head_dim", "words"),
    [("int6", 6, "packs 4 channels"), ("int8/int4", 5, "packs 2 channels"), ("int8", 4, "no fewer than the 8")],
)
def test_heads_that_cannot_be_coded_are_refused(name, head_dim, words):
    from scalekv.errors import InvalidInput

    geometry = replace(GEOMETRY, head_dim=head_dim, element_bytes=2)
    with pytest.raises(InvalidInput, match=words) as caught:
        SlidingWindow("20%", codec=name).plan(geometry)
    assert "\n" not in str(caught.value)


def test_codecs_by_name():
    assert str(Codec.parse("INT8")) == "int8"
    assert str(Codec.parse(" int8 / int4 ")) == "int8/int4"
    assert Codec.parse("none").exact
    assert not Codec.parse("none/int8").exact
