"""Tiny Infinity networks with settled random weights, for tests without recorded data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scalekv.models.infinity import BSQAutoencoder, InfinityTransformer
from scalekv.planning import Schedule

SCHEDULE = Schedule.from_shapes([(1, 1), (2, 2), (3, 4), (4, 6)])
EXTENT = (16, 24)
FLAGS: list[dict[str, Any]] = [
    {},
    {"patchify": True},
    {"block_chunks": 1},
    {"level_embedding_per_chunk": True},
    {"shared_aln": False},
    {"head_aln": False},
    {"head_depth": 2},
    {"head_aln": False, "head_depth": 2},
    {"rms_norm": True},
    {"rms_norm": True, "head_aln": False},
    {"swiglu": True},
    {"input_norm": True},
    {"cos_attn": False, "tau": 2.0},
    {"cross_attn_layer_scale": 0.5},
    {"rand_uncond": True},
    {"rope_mode": 0},
    {"rope_mode": 1},
]


def tiny_transformer(**flags: Any) -> InfinityTransformer:
    sizes = {"depth": 4, "width": 64, "num_heads": 4, "codebook_bits": 6, "text_channels": 128, "text_maxlen": 12}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return InfinityTransformer(**{"block_chunks": 2, **sizes, **flags}).eval()


def tiny_autoencoder(**sizes: Any) -> BSQAutoencoder:
    defaults = {
        "codebook_bits": 6,
        "patch_size": 4,
        "base_channels": 24,
        "encoder_multipliers": (1, 1, 2),
        "decoder_multipliers": (1, 1, 2),
        "num_res_blocks": 1,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BSQAutoencoder(**{**defaults, **sizes}).eval()


def texts(*lengths: int, channels: int = 128) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randn(length, channels, generator=generator) for length in lengths]
