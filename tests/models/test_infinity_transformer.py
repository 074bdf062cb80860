"""The Infinity transformer: sizes, keys, flags, dtypes and what it asks of text and cache."""

from __future__ import annotations

import pytest
import torch

from models.infinity_oracle import Oracle
from models.infinity_tiny import EXTENT, FLAGS, SCHEDULE, texts, tiny_transformer
from parity.golden import ConcatCache
from scalekv.errors import InvalidInput
from scalekv.models.infinity import InfinityTransformer
from scalekv.models.infinity.blocks import feed_forward_width
from scalekv.models.infinity.transformer import guidance_layers, unconditional_rows

SIZES = [
    # name, depth, width, heads, chunks, head_dim, hidden, text-pool heads, bits, patchify, parameters
    ("layer12", 12, 768, 8, 4, 96, 3072, 16, 16, False, 125.15e6),
    ("layer16", 16, 1152, 12, 4, 96, 4608, 16, 16, False, 361.6e6),
    ("layer24", 24, 1536, 16, 4, 96, 6144, 16, 16, False, 940.9e6),
    ("layer32", 32, 2080, 20, 4, 104, 8192, 16, 16, False, 2.257e9),
    ("layer40", 40, 2688, 24, 4, 112, 10752, 16, 16, False, 4.716e9),
    ("layer48", 48, 3360, 28, 4, 120, 13312, 16, 16, False, 8.767e9),
    ("2b", 32, 2048, 16, 8, 128, 8192, 16, 32, False, 2_204_564_032),
    ("8b", 40, 3584, 28, 8, 128, 14336, 16, 14, True, 8_375_791_824),
    ("20b", 58, 4608, 36, 1, 128, 18432, 32, 32, False, 19.95e9),
]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size[0])
def test_published_sizes(size: tuple) -> None:
    _, depth, width, heads, chunks, head_dim, hidden, pool, bits, patchify, parameters = size
    with torch.device("meta"):
        model = InfinityTransformer(depth, width, heads, bits, patchify, block_chunks=chunks)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == parameters if isinstance(parameters, int) else count == pytest.approx(parameters, rel=5e-4)
    assert len(model.state_dict()) == 22 + 21 * depth
    assert model.head_dim == head_dim
    assert feed_forward_width(width, 4.0) == hidden
    assert model.text_proj_for_sos.ca.mat_q.shape == (1, pool, width // pool)
    prefix = "blocks.0." if chunks == 1 else "block_chunks.0.module.0."
    assert model.state_dict()[prefix + "ffn.fc1.weight"].shape == (hidden, width)
    assert model.word_embed.weight.shape == (width, bits * (4 if patchify else 1))


def test_global_keys_are_the_published_ones() -> None:
    state = tiny_transformer().state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items() if not name.startswith("block_chunks")}
    pool, linear = "text_proj_for_sos.ca.", "text_proj_for_ca."
    assert shapes == {
        "cfg_uncond": (12, 128),
        "pos_start": (1, 1, 64),
        "text_norm.weight": (128,),
        f"{pool}mat_q": (1, 1, 64),
        f"{pool}v_bias": (64,),
        f"{pool}zero_k_bias": (64,),
        f"{pool}mat_kv.weight": (128, 128),
        f"{pool}proj.weight": (64, 64),
        f"{pool}proj.bias": (64,),
        f"{linear}0.weight": (64, 128),
        f"{linear}0.bias": (64,),
        f"{linear}2.weight": (64, 64),
        f"{linear}2.bias": (64,),
        "lvl_embed.weight": (15, 64),
        "word_embed.weight": (64, 6),
        "word_embed.bias": (64,),
        "shared_ada_lin.1.weight": (384, 64),
        "shared_ada_lin.1.bias": (384,),
        "head_nm.ada_lin.1.weight": (128, 64),
        "head_nm.ada_lin.1.bias": (128,),
        "head.weight": (12, 64),
        "head.bias": (12,),
    }


BLOCK = "block_chunks.1.module.0."
SHARED = {"shared_ada_lin.1.weight", "shared_ada_lin.1.bias"}
HEAD = {"head.weight", "head.bias"}
HEAD_NORM = {"head_nm.ada_lin.1.weight", "head_nm.ada_lin.1.bias"}


@pytest.mark.parametrize(
    ("flags", "added", "gone"),
    [
        ({"cross_attn_layer_scale": 0.0}, {BLOCK + "ca_gamma"}, set()),
        (
            {"shared_aln": False},
            {BLOCK + "ada_lin.1.weight", BLOCK + "ada_lin.1.bias"},
            {BLOCK + "ada_gss", *SHARED},
        ),
        (
            {"rms_norm": True},
            {BLOCK + "ln_wo_grad.weight", "head_nm.ln_wo_grad.weight"},
            {BLOCK + "ca_norm.bias"},
        ),
        ({"swiglu": True}, {BLOCK + "ffn.fcg.weight"}, {BLOCK + "ffn.fc1.bias", BLOCK + "ffn.fc2.bias"}),
        ({"input_norm": True}, {"norm0_ve.weight", "norm0_ve.bias"}, set()),
        ({"head_depth": 2}, {"head.0.weight", "head.0.bias", "head.2.weight", "head.2.bias"}, HEAD),
        (
            {"head_aln": False},
            {"head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias"},
            {*HEAD, *HEAD_NORM},
        ),
        ({"cos_attn": False}, set(), {BLOCK + "sa.scale_mul_1H11"}),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_keys_of_each_flag(flags: dict, added: set, gone: set) -> None:
    def keys(**flags: object) -> set[str]:
        names = tiny_transformer(**flags).state_dict()
        return {name for name in names if not name.startswith("block_chunks") or name.startswith(BLOCK)}

    assert keys(**flags) - keys() == added
    assert keys() - keys(**flags) == gone


def test_feed_forward_width_rounds_halves_to_even() -> None:
    assert [feed_forward_width(width, 4) for width in (2080, 3360, 2048, 64, 32)] == [8192, 13312, 8192, 256, 32]
    assert feed_forward_width(2048, 4, swiglu=True) == 5376


def test_unconditional_rows_are_deterministic() -> None:
    rows = unconditional_rows(512, 2048)
    assert torch.equal(rows[:3], unconditional_rows(512, 2048)[:3])
    assert rows.abs().max() <= 2 / 2048**0.5
    assert torch.equal(tiny_transformer().cfg_uncond.data, unconditional_rows(12, 128))


def forward_all(model: InfinityTransformer, features: list, cache: object = None, **options: object) -> list:
    """Logits of every segment, each fed the same arbitrary tokens."""
    condition = model.prepare_text(features, guided=options.get("guidance", 1.0) != 1)
    cache, rope = cache or ConcatCache(), model.build_rope(SCHEDULE, EXTENT)
    generator, logits = torch.Generator().manual_seed(0), []
    for segment in SCHEDULE:
        tokens = None
        if segment.index:
            tokens = torch.randn(1, segment.tokens, model.token_bits, generator=generator).repeat(len(features), 1, 1)
        cache.begin(segment)
        logits.append(model(tokens, condition, segment, rope, cache, **options))
    return logits


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@torch.no_grad()
def test_low_precision_follows_float32(flags: dict) -> None:
    exact = forward_all(tiny_transformer(**flags), texts(5, 3), guidance=3.0)
    for dtype, allowed in ((torch.bfloat16, 0.05), (torch.float16, 0.01), (torch.float64, 1e-5)):
        model, cache = tiny_transformer(**flags).to(dtype), ConcatCache()
        assert model.attention_dtype == dtype
        rough = forward_all(model, texts(5, 3), cache, guidance=3.0)
        assert {kept.dtype for kept in (*cache.keys.values(), *cache.values.values())} == {dtype}
        for ours, theirs in zip(rough, exact, strict=True):
            assert ours.dtype == torch.float32
            assert ours.shape == theirs.shape
            assert (ours - theirs).norm() <= allowed * theirs.norm()


COMBINED = [
    {"rms_norm": True, "swiglu": True, "head_aln": False, "head_depth": 2, "input_norm": True},
    {"shared_aln": False, "rms_norm": True, "head_depth": 2, "cos_attn": False, "level_embedding_per_chunk": True},
    {"patchify": True, "input_norm": True, "cross_attn_layer_scale": 0.1, "level_embedding_per_chunk": True},
    {"block_chunks": 4, "level_embedding_per_chunk": True, "norm_eps": 1e-3, "swiglu": True, "shared_aln": False},
]


@pytest.mark.parametrize("insertion", [[0], [0, -1, -3]], ids=str)
@pytest.mark.parametrize("flags", FLAGS + COMBINED, ids=str)
@torch.no_grad()
def test_every_flag_follows_the_formulas(flags: dict, insertion: list[int]) -> None:
    model, generator = tiny_transformer(**flags), torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        value.add_(torch.randn(value.shape, generator=generator) * (1.5 if "scale_mul" in name else 0.1))
    model.double()
    features = texts(5, 3)
    rows = [*features, model.cfg_uncond[:5].float(), model.cfg_uncond[:3].float()]
    oracle = Oracle(model.state_dict(), dict(model.config), rows)
    found = forward_all(model, features, guidance=3.0, cfg_insertion_layer=insertion)
    rope, generator = model.build_rope(SCHEDULE, EXTENT), torch.Generator().manual_seed(0)
    mixed = {4 + entry for entry in insertion if entry < 0}
    for segment in SCHEDULE:
        tokens = torch.randn(segment.tokens, model.token_bits, generator=generator) if segment.index else None
        angles = tuple(table.double() for table in rope.at(segment))
        expected = oracle.segment(segment.index, tokens, angles, 3.0, mixed)
        torch.testing.assert_close(found[segment.index], torch.stack(expected).float(), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_flags_change_the_result() -> None:
    base = forward_all(tiny_transformer(), texts(5))
    for mode in (0, 1):
        other = forward_all(tiny_transformer(rope_mode=mode), texts(5))
        assert not torch.allclose(other[2], base[2])
    per_chunk = forward_all(tiny_transformer(level_embedding_per_chunk=True), texts(5))
    assert not torch.allclose(per_chunk[0], base[0])


@torch.no_grad()
def test_ragged_texts_give_each_row_what_it_gets_alone() -> None:
    model, features = tiny_transformer(), texts(7, 2, 7, 12)
    together = forward_all(model, features, guidance=2.0)
    for row, text in enumerate(features):
        for ours, alone in zip(together, forward_all(model, [text], guidance=2.0), strict=True):
            torch.testing.assert_close(ours[[row, row + len(features)]], alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_text_is_projected_once() -> None:
    model, calls = tiny_transformer(), []
    for block in model.ordered_blocks:
        block.ca.mat_kv.register_forward_hook(lambda *_: calls.append(1))
    forward_all(model, texts(4, 6), guidance=2.0)
    assert len(calls) == len(model.ordered_blocks)


@torch.no_grad()
def test_unconditional_rows_are_the_head_of_the_learned_text() -> None:
    model, features = tiny_transformer(), texts(3, 5)
    learned = [model.cfg_uncond[:3].detach(), model.cfg_uncond[:5].detach()]
    negative = model.prepare_text(features, learned)
    default = model.prepare_text(features)
    rows = [given.compact_features(model.cfg_uncond) for given in (negative, default)]
    assert torch.equal(*rows)
    assert default.rows == 4
    assert model.prepare_text(features, learned, guided=False).rows == 2


@torch.no_grad()
def test_projected_query_is_the_bare_projection() -> None:
    model, seen = tiny_transformer(), {}
    attention = model.ordered_blocks[1].sa
    attention.register_forward_pre_hook(lambda _module, inputs: seen.update(states=inputs[0]))

    class Asking(ConcatCache):
        def attend(self, layer, query, key, value, *, projected_query=None):
            if layer == 1:
                positions = torch.arange(0, query.shape[2], 2)
                expected = (seen["states"] @ attention.mat_qkv.weight[:64].T)[:, positions]
                expected = expected.unflatten(-1, (4, 16)).transpose(1, 2)
                torch.testing.assert_close(projected_query(positions), expected)
                seen["asked"] = True
            return super().attend(layer, query, key, value)

    forward_all(model, texts(5), Asking())
    assert seen["asked"]


@pytest.mark.parametrize(("weights", "cached"), [("float32", "bfloat16"), ("bfloat16", "float32")])
@torch.no_grad()
def test_attention_computes_in_the_dtype_of_the_cache(weights: str, cached: str) -> None:
    model, wanted, met = tiny_transformer(), getattr(torch, cached), set()
    model.block_chunks.to(getattr(torch, weights))
    attention = model.ordered_blocks[1].sa
    attention.proj.register_forward_pre_hook(lambda _module, inputs: met.add(inputs[0].dtype))

    class Other(ConcatCache):
        dtype = wanted

        def attend(self, layer, query, key, value, *, projected_query=None):
            asked = projected_query(torch.zeros(1, dtype=torch.long))
            assert query.dtype == key.dtype == value.dtype == asked.dtype == wanted
            return super().attend(layer, query, key, value)

    exact, rounded = forward_all(tiny_transformer(), texts(5)), forward_all(model, texts(5), Other())
    assert met == {getattr(torch, weights)}
    for ours, theirs in zip(rounded, exact, strict=True):
        assert (ours - theirs).norm() <= 0.05 * theirs.norm()


def test_guidance_layers() -> None:
    assert guidance_layers([0], 4) == (frozenset(), True)
    assert guidance_layers([-1, -3, 0], 4) == (frozenset({3, 1}), True)
    assert guidance_layers([1], 4) == (frozenset(), False)
    for wrong in ([2], [-4], [-5], [0, 7], -1):
        with pytest.raises(InvalidInput, match="cfg_insertion_layer"):
            guidance_layers(wrong, 4)


@torch.no_grad()
def test_guidance_in_the_features() -> None:
    model, features = tiny_transformer(), texts(5)
    conditional = forward_all(model, features, guidance=3.0, cfg_insertion_layer=[1])
    plain = forward_all(model, features)
    torch.testing.assert_close(conditional, plain)
    last = forward_all(model, features, guidance=3.0, cfg_insertion_layer=[-1])
    assert [len(logits) for logits in last] == [1] * len(SCHEDULE)
    both = forward_all(model, features, guidance=3.0, cfg_insertion_layer=[0, -1])
    assert [len(logits) for logits in both] == [2] * len(SCHEDULE)
    torch.testing.assert_close(both[0][:1], last[0])
    assert not torch.allclose(last[0], plain[0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda model: model.prepare_text([]), "at least one prompt"),
        (lambda model: model.prepare_text(texts(13)), "longer than the 12"),
        (lambda model: model.prepare_text(texts(3, channels=64)), "expected .tokens, 128"),
        (lambda model: model.prepare_text([torch.zeros(0, 128)]), "expected .tokens, 128"),
        (lambda model: model.prepare_text(texts(3, 4), texts(2)), "1 negative texts for 2"),
        (lambda _: tiny_transformer(num_heads=5), "does not split into 5 heads"),
        (lambda _: tiny_transformer(block_chunks=3), "does not split into 3"),
        (lambda _: tiny_transformer(text_channels=64), "text pool"),
        (lambda _: tiny_transformer(rope_mode=3), "rope_mode"),
        (lambda _: tiny_transformer(head_depth=3), "head_depth"),
    ],
)
def test_unusable_input_is_refused(build, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        build(tiny_transformer())


def test_layerwise_casting_and_group_offload_run() -> None:
    from diffusers.hooks import apply_group_offloading

    exact = forward_all(tiny_transformer(), texts(5), guidance=2.0)
    offloaded = tiny_transformer()
    apply_group_offloading(offloaded, torch.device("cpu"), offload_type="leaf_level")
    torch.testing.assert_close(forward_all(offloaded, texts(5), guidance=2.0), exact)
    stored_small = tiny_transformer()
    stored_small.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    for ours, theirs in zip(forward_all(stored_small, texts(5), guidance=2.0), exact, strict=True):
        assert (ours - theirs).norm() <= 0.3 * theirs.norm()
