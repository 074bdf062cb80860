"""The configuration of Infinity networks, read off the names and shapes of their weights."""

from __future__ import annotations

import re
from typing import Any

from scalekv.errors import CheckpointError
from scalekv.models.assembly import ShapeReader, Shapes

QUANTIZER_TABLES = ("quantizer.lfq.mask", "quantize.lfq.mask")
"""Constant tables that published tokenizers carry and bit labels never read."""

TRAINING_KEYS = frozenset(("lvl_1L", "attn_bias_for_masking", "Infinity_visible_kvlen", "Infinity_invisible_qlen"))
"""Tables of training runs; nothing at inference reads them."""

_HEADS_OF_WIDTH = {768: 8, 1152: 12, 1536: 16, 2048: 16, 2080: 20, 2688: 24, 3360: 28, 3584: 28, 4608: 36}
"""Published sizes, for networks whose weights do not tell the number of heads."""

_MIXED = re.compile(r"^(?:blocks\.(?P<block>\d+)|block_chunks\.(?P<chunk>\d+)\.module\.(?P<member>\d+))\.")

_CONVOLUTIONS = ("conv", "conv1", "conv2", "conv_in", "conv_out", "nin_shortcut", "q", "k", "v", "proj_out")
_NORMS = ("norm", "norm1", "norm2", "norm_out")


def transformer_config(shapes: Shapes, origin: str, codebook_bits: int | None, patchify: bool | None) -> dict[str, Any]:
    """Constructor arguments of the ``InfinityTransformer`` with these weights.

    Args:
        shapes: shape of every tensor, official names.
        origin: the file, for messages.
        codebook_bits: bits per latent pixel of the tokenizer it goes with, if known.
        patchify: whether tokens cover 2 x 2 latent pixels, if known; the weights alone do not tell.

    Raises:
        CheckpointError: a tensor that decides something is missing or has an impossible shape, or the tokenizer
            does not fit.
    """
    read = ShapeReader(shapes, origin)
    width, token_bits = read.side("word_embed.weight", 2, 0), read.side("word_embed.weight", 2, 1)
    chunks, per_chunk = _chunks(shapes, origin)
    first = "blocks.0." if chunks == 0 else "block_chunks.0.module.0."
    bits, patchify = _pixel_bits(token_bits, codebook_bits, patchify, origin)
    swiglu = f"{first}ffn.fcg.weight" in shapes
    return {
        "depth": per_chunk * max(chunks, 1),
        "width": width,
        "num_heads": _heads(shapes, first, width, origin),
        "codebook_bits": bits,
        "patchify": patchify,
        "text_channels": read.side("text_norm.weight", 1, 0),
        "text_maxlen": read.side("cfg_uncond", 2, 0),
        "block_chunks": max(chunks, 1),
        "mlp_ratio": _mlp_ratio(read.side(f"{first}ffn.fc1.weight", 2, 0), width, swiglu),
        "shared_aln": "shared_ada_lin.1.weight" in shapes,
        "head_aln": any(name.startswith("head_nm.") for name in shapes),
        "head_depth": 2 if {"head.2.weight", "head.3.weight"} & set(shapes) else 1,
        "rms_norm": f"{first}ca_norm.bias" not in shapes,
        "swiglu": swiglu,
        "input_norm": "norm0_ve.weight" in shapes,
        "cos_attn": f"{first}sa.scale_mul_1H11" in shapes,
        "cross_attn_layer_scale": 1.0 if f"{first}ca_gamma" in shapes else -1.0,
    }


def _chunks(shapes: Shapes, origin: str) -> tuple[int, int]:
    """Chunks (0: unchunked names) and blocks per chunk."""
    matches = [match for match in map(_MIXED.match, shapes) if match]
    flat = {int(match["block"]) for match in matches if match["block"]}
    chunked = {(int(match["chunk"]), int(match["member"])) for match in matches if match["chunk"]}
    if bool(flat) == bool(chunked):
        found = "both" if flat else "neither"
        raise CheckpointError(
            f"{origin} should hold blocks named 'block_chunks.0.module.0...' or 'blocks.0...', found {found}; the file "
            f"is incomplete or of another model."
        )
    if flat:
        return 0, max(flat) + 1
    return max(chunk for chunk, _ in chunked) + 1, max(member for _, member in chunked) + 1


def _heads(shapes: Shapes, first: str, width: int, origin: str) -> int:
    shape = shapes.get(f"{first}sa.scale_mul_1H11")
    if shape is not None:
        heads = 1
        for side in shape:
            heads *= side
    else:
        heads = _HEADS_OF_WIDTH.get(width, 0)
    if heads < 1 or width % heads:
        raise CheckpointError(
            f"Cannot tell the heads of {origin}: {first}sa.scale_mul_1H11 is {shape} for width {width}; expected "
            f"(1, heads, 1, 1) with heads dividing the width."
        )
    return heads


def _pixel_bits(token_bits: int, codebook_bits: int | None, patchify: bool | None, origin: str) -> tuple[int, bool]:
    if patchify and token_bits % 4:
        raise CheckpointError(
            f"{origin} has {token_bits} bits per token, which are no 2 x 2 latent pixels; load it with patchify=False."
        )
    if codebook_bits is None:
        return (token_bits // 4, True) if patchify else (token_bits, False)
    accepted = {False: codebook_bits, True: 4 * codebook_bits}
    if patchify is not None:
        accepted = {patchify: accepted[patchify]}
    for choice, expected in accepted.items():
        if token_bits == expected:
            return codebook_bits, choice
    expected_text = " or ".join(str(expected) for expected in accepted.values())
    raise CheckpointError(
        f"The VAE does not fit the transformer: word_embed.weight of {origin} has {token_bits} bits per token, a VAE "
        f"of {codebook_bits} bits per latent pixel needs {expected_text}; use the VAE it was trained with."
    )


def _mlp_ratio(hidden: int, width: int, swiglu: bool) -> float:
    from scalekv.models.infinity.blocks import feed_forward_width

    ratios = (4.0, 1.5 * hidden / width if swiglu else hidden / width)
    return next((ratio for ratio in ratios if feed_forward_width(width, ratio, swiglu) == hidden), ratios[-1])


def canonical_vae_name(name: str) -> str:
    """``name`` in the published spelling: original-style names lack the wrapper level."""
    parts = name.split(".")
    if len(parts) < 3 or parts[-1] not in ("weight", "bias"):
        return name
    module, parent = parts[-2], parts[-3]
    if (module == "conv" and parent in _CONVOLUTIONS) or (module == "norm" and parent in _NORMS):
        return name
    wrapper = "conv" if module in _CONVOLUTIONS else "norm" if module in _NORMS else None
    return name if wrapper is None else ".".join([*parts[:-1], wrapper, parts[-1]])


def autoencoder_config(shapes: Shapes, origin: str) -> dict[str, Any]:
    """Constructor arguments of the ``BSQAutoencoder`` with these weights, canonical names.

    Raises:
        CheckpointError: a tensor that decides something is missing or has an impossible shape.
    """
    read = ShapeReader(shapes, origin)
    base = read.side("encoder.conv_in.conv.weight", 4, 0)
    encoder, decoder = read.count("encoder.down"), read.count("decoder.up")
    if not encoder or not decoder:
        raise CheckpointError(
            f"{origin} lacks encoder.down.* or decoder.up.* blocks; the file is incomplete or of another VAE."
        )
    return {
        "codebook_bits": read.side("decoder.conv_in.conv.weight", 4, 1),
        "base_channels": base,
        "encoder_multipliers": [
            read.multiplier(f"encoder.down.{level}.block.0.conv1.conv.weight", base) for level in range(encoder)
        ],
        "decoder_multipliers": [
            read.multiplier(f"decoder.up.{level}.block.0.conv1.conv.weight", base) for level in range(decoder)
        ],
        "num_res_blocks": sum(
            name.startswith("encoder.down.0.block.") and name.endswith(".conv1.conv.weight") for name in shapes
        ),
        "patch_size": 2 ** sum(name.endswith("downsample.conv.conv.weight") for name in shapes),
    }
