"""The VAR transformer against plain arithmetic, in every mode."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.var_tiny import FLAGS, SIDES, tiny_transformer
from parity.golden import ConcatCache, gap
from scalekv.errors import InvalidInput
from scalekv.models.var import VARTransformer

TOKENS = sum(side * side for side in SIDES)


def oracle(model: VARTransformer, labels: list[int], maps: Tensor) -> Tensor:
    """One pass over all segments with a block mask, from the state dict alone; ``maps`` (B, tokens - 1, channels)."""
    weights, config = model.state_dict(), model.config
    levels = torch.cat([torch.full((side * side,), index) for index, side in enumerate(SIDES)])
    mask = torch.where(levels[:, None] >= levels[None], 0.0, -torch.inf)
    pooled = weights["class_emb.weight"][labels]
    states = torch.cat((pooled[:, None] + weights["pos_start"], linear(weights, "word_embed", maps)), dim=1)
    states = states + weights["lvl_embed.weight"][levels] + weights["pos_1LC"]
    for layer in range(config.depth):
        name = f"blocks.{layer}"
        if config.shared_aln:
            vectors = linear(weights, "shared_ada_lin.1", F.silu(pooled)).view(-1, 1, 6, config.width)
            vectors = vectors + weights[f"{name}.ada_gss"]
        else:
            vectors = linear(weights, f"{name}.ada_lin.1", F.silu(pooled)).view(-1, 1, 6, config.width)
        gate1, gate2, scale1, scale2, shift1, shift2 = (vectors[:, :, index] for index in range(6))
        normed = F.layer_norm(states, (config.width,), eps=config.norm_eps) * (1 + scale1) + shift1
        states = states + gate1 * attention(weights, f"{name}.attn", normed, config, mask)
        normed = F.layer_norm(states, (config.width,), eps=config.norm_eps) * (1 + scale2) + shift2
        hidden = F.gelu(linear(weights, f"{name}.ffn.fc1", normed), approximate="tanh")
        states = states + gate2 * linear(weights, f"{name}.ffn.fc2", hidden)
    scale, shift = linear(weights, "head_nm.ada_lin.1", F.silu(pooled))[:, None].chunk(2, dim=-1)
    normed = F.layer_norm(states, (config.width,), eps=config.norm_eps) * (1 + scale) + shift
    return linear(weights, "head", normed)


def linear(weights: dict[str, Tensor], name: str, states: Tensor) -> Tensor:
    return F.linear(states, weights[f"{name}.weight"], weights[f"{name}.bias"])


def attention(weights: dict[str, Tensor], name: str, states: Tensor, config: Any, mask: Tensor) -> Tensor:
    query, key, value = (states @ weights[f"{name}.mat_qkv.weight"].T).chunk(3, dim=-1)
    query, value = query + weights[f"{name}.q_bias"], value + weights[f"{name}.v_bias"]
    query, key, value = (one.unflatten(-1, (config.num_heads, -1)).transpose(1, 2) for one in (query, key, value))
    if config.attn_l2_norm:
        logs = weights[f"{name}.scale_mul_1H11"]
        query = query / query.norm(dim=-1, keepdim=True) * torch.minimum(logs, torch.tensor(math.log(100))).exp()
        key = key / key.norm(dim=-1, keepdim=True)
    else:
        query = query * 0.25 / math.sqrt(query.shape[-1])
    read = (query @ key.transpose(-1, -2) + mask).softmax(-1) @ value
    return linear(weights, f"{name}.proj", read.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_segments_one_by_one_are_the_masked_pass(flags: dict[str, Any]) -> None:
    model, generator = tiny_transformer(**flags), torch.Generator().manual_seed(1)
    maps = torch.randn(2, TOKENS - 1, 6, generator=generator)
    with torch.no_grad():
        expected = oracle(model, [3, 5, 5, 5], maps.repeat(2, 1, 1))
        condition, cache, found = model.prepare_classes([3, -1]), ConcatCache(), []
        for segment in model.schedule:
            cache.begin(segment)
            start = model.schedule.start(segment.index) - 1
            seen = maps[:, start : start + segment.tokens] if segment.index else None
            found.append(model(seen, condition, segment, cache))
    gap(torch.cat(found, dim=1), expected, 2e-5)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_the_first_head_reaches_the_clamp(flags: dict[str, Any]) -> None:
    model = tiny_transformer(**flags)
    if not model.config.attn_l2_norm:
        assert not any("scale_mul" in name for name in model.state_dict())
        return
    with torch.no_grad():
        for block in model.ordered_blocks:
            block.attn.scale_mul_1H11[:, 0] = 5.0
    maps = torch.randn(1, TOKENS - 1, 6, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        cache, found = ConcatCache(), []
        condition = model.prepare_classes([0], guided=False)
        for segment in model.schedule:
            cache.begin(segment)
            start = model.schedule.start(segment.index) - 1
            found.append(
                model(maps[:, start : start + segment.tokens] if segment.index else None, condition, segment, cache)
            )
        gap(torch.cat(found, dim=1), oracle(model, [0], maps), 2e-5)


def test_only_blocks_may_be_narrow() -> None:
    wide = tiny_transformer()
    narrow = tiny_transformer()
    narrow.blocks.to(torch.bfloat16)
    assert (wide.attention_dtype, narrow.attention_dtype) == (torch.float32, torch.bfloat16)

    class Watching(ConcatCache):
        def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, **extra: object) -> Tensor:
            assert query.dtype == key.dtype == value.dtype == torch.bfloat16
            return super().attend(layer, query, key, value)

    with torch.no_grad():
        exact, rounded = (
            model(None, model.prepare_classes([1]), model.schedule[0], cache)
            for model, cache in ((wide, ConcatCache()), (narrow, Watching()))
        )
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=0.1, rtol=0.05)


def test_the_projected_query_is_bare() -> None:
    model = tiny_transformer()
    seen = {}

    class Asking(ConcatCache):
        def attend(self, layer, query, key, value, *, projected_query=None):
            seen[layer] = projected_query(torch.tensor([0]))
            return super().attend(layer, query, key, value)

    with torch.no_grad():
        inputs = []
        model.ordered_blocks[0].attn.register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
        model(None, model.prepare_classes([1], guided=False), model.schedule[0], Asking())
        weight = model.ordered_blocks[0].attn.mat_qkv.weight[:64]
    gap(seen[0].transpose(1, 2).flatten(2), inputs[0] @ weight.T, 1e-6)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_heads": 5}, "with 5 heads cannot be made"),
        ({"depth": 0}, "depth 0"),
        ({"patch_nums": ()}, "patch_nums is empty"),
    ],
)
def test_impossible_sizes(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        tiny_transformer(**sizes)


def test_what_does_not_fit_is_refused() -> None:
    model, cache = tiny_transformer(), ConcatCache()
    with pytest.raises(InvalidInput, match="Class 6 does not exist; this model has classes 0 to 4"):
        model.prepare_classes([6])
    with pytest.raises(InvalidInput, match="at least one image"):
        model.prepare_classes([])
    condition, segment = model.prepare_classes([1]), model.schedule[1]
    with pytest.raises(InvalidInput, match=r"takes tokens of shape \(1, 4, 6\), got \(1, 9, 6\)"):
        model(torch.zeros(1, 9, 6), condition, segment, cache)
    other = tiny_transformer(patch_nums=(1, 3)).schedule[1]
    with pytest.raises(InvalidInput, match="has positions for 1x1 2x2 3x3 5x5, got segment 1, 3x3"):
        model(torch.zeros(1, 9, 6), condition, other, cache)
