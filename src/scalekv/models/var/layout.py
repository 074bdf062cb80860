"""The configuration of VAR networks, read off the names and shapes of their weights.

Attention mode and adaptive norms are told by the presence of keys, never by depth: the published files changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

import torch

from scalekv.errors import CheckpointError
from scalekv.models.assembly import ShapeReader, Shapes
from scalekv.models.var.schedules import sides_with
from scalekv.models.weights import WeightTable

TRAINING_KEYS = ("lvl_1L", "attn_bias_for_masking")
"""Tables that published files carry, the scale of every token and the mask of training; the schedule says the same."""

HEAD_DIM = 64
"""Of every published model; plain attention leaves no trace of it in the weights."""

_HEAD_SCALES = "blocks.0.attn.scale_mul_1H11"


def transformer_config(
    shapes: Shapes, origin: str, patch_nums: Sequence[int], num_heads: int | None = None
) -> dict[str, Any]:
    """Constructor arguments of the ``VARTransformer`` with these weights.

    Args:
        shapes: shape of every tensor, official names.
        origin: the file, for messages.
        patch_nums: tokens per side of every segment, see `patch_nums_of`.
        num_heads: heads, for networks whose weights do not tell them; default 64 channels per head.

    Raises:
        CheckpointError: a tensor that decides something is missing or has an impossible shape.
    """
    read = ShapeReader(shapes, origin)
    width = read.side("word_embed.weight", 2, 0)
    unit_norm = _HEAD_SCALES in shapes
    return {
        "depth": read.count("blocks"),
        "width": width,
        "num_heads": _heads(read, width, num_heads, unit_norm),
        "vocab_size": read.side("head.weight", 2, 0),
        "latent_channels": read.side("word_embed.weight", 2, 1),
        "num_classes": read.side("class_emb.weight", 2, 0) - 1,
        "patch_nums": list(patch_nums),
        "mlp_ratio": read.side("blocks.0.ffn.fc1.weight", 2, 0) / width,
        "shared_aln": "shared_ada_lin.1.weight" in shapes,
        "attn_l2_norm": unit_norm,
    }


def _heads(read: ShapeReader, width: int, num_heads: int | None, unit_norm: bool) -> int:
    told = read.side(_HEAD_SCALES, 4, 1) if unit_norm else None
    if told is not None and num_heads not in (None, told):
        raise CheckpointError(f"{read.origin} has {told} heads ({_HEAD_SCALES}), expected {num_heads}.")
    heads = told or num_heads or width // HEAD_DIM
    if heads < 1 or width % heads or (told is None and num_heads is None and width % HEAD_DIM):
        raise CheckpointError(
            f"Cannot tell the heads of {read.origin}: width {width} does not split into {heads or 'any'} heads; give "
            f"num_heads."
        )
    return heads


def patch_nums_of(table: WeightTable, given: Sequence[int] | None = None) -> tuple[int, ...]:
    """Tokens per side of the segments that a transformer was trained on.

    Args:
        table: the weights; its ``lvl_1L`` tells the scale of every token.
        given: for tables without it and with another number of tokens than the published ones.

    Raises:
        CheckpointError: they cannot be told, or two sources contradict each other.
    """
    read = ShapeReader(table.shapes, table.origin)
    tokens, scales = read.side("pos_1LC", 3, 1), read.side("lvl_embed.weight", 2, 0)
    sides = tuple(given) if given is not None else _sides_in(table) or sides_with(tokens)
    if sides is None:
        raise CheckpointError(
            f"Cannot tell the segments of {table.origin}: it lacks lvl_1L and has {tokens} tokens, expected 680 or "
            f"2240; give patch_nums."
        )
    if len(sides) != scales or sum(side * side for side in sides) != tokens:
        raise CheckpointError(
            f"{table.origin} has {scales} segments and {tokens} tokens (lvl_embed.weight, pos_1LC), which segments of "
            f"{', '.join(map(str, sides))} tokens per side are not; the file is damaged or of another model."
        )
    return sides


def _sides_in(table: WeightTable) -> tuple[int, ...] | None:
    if "lvl_1L" not in table.shapes:
        return None
    levels = table.read("lvl_1L").flatten().long()
    counts = torch.bincount(levels.clamp_min(0)).tolist()
    sides = tuple(isqrt(count) for count in counts)
    ordered = bool((levels[1:] >= levels[:-1]).all()) and 0 not in sides
    if not ordered or [side * side for side in sides] != counts:
        raise CheckpointError(
            f"lvl_1L of {table.origin} does not number the tokens of square segments in order; the file is damaged."
        )
    return sides


def autoencoder_config(shapes: Shapes, origin: str) -> dict[str, Any]:
    """Constructor arguments of the ``VQAutoencoder`` with these weights.

    Raises:
        CheckpointError: a tensor that decides something is missing or has an impossible shape.
    """
    read = ShapeReader(shapes, origin)
    base, levels = read.side("encoder.conv_in.weight", 4, 0), read.count("encoder.down")
    stem = "quantize.quant_resi"
    phis = read.count(f"{stem}.qresi_ls") or int(f"{stem}.qresi.weight" in shapes)
    smooth = any(name.startswith(f"{stem}.") for name in shapes)
    return {
        "vocab_size": read.side("quantize.embedding.weight", 2, 0),
        "latent_channels": read.side("quantize.embedding.weight", 2, 1),
        "base_channels": base,
        "channel_multipliers": [
            read.multiplier(f"encoder.down.{level}.block.0.conv1.weight", base) for level in range(levels)
        ],
        "num_res_blocks": read.count("encoder.down.0.block"),
        "num_scales": read.side("quantize.ema_vocab_hit_SV", 2, 0),
        "shared_phis": phis,
        "quant_resi": 0.5 if smooth else 0.0,
        "quant_conv_kernel": read.side("quant_conv.weight", 4, 2),
    }
