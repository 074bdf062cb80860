"""A complete, small VAR pipeline with random weights: for tests, benchmarks and a first try without any download."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from scalekv.models.var import VARScheduler, VARTransformer, VQAutoencoder
from scalekv.models.var.schedules import SIDES_256
from scalekv.pipelines.tiny import fill_range
from scalekv.pipelines.var import VARPipeline


def tiny_var_pipeline(
    seed: int = 0, *, depth: int = 4, sides: Sequence[int] = SIDES_256, num_classes: int = 1000
) -> VARPipeline:
    """A :class:`VARPipeline`, random but reproducible.

    It draws colourful structure that changes with class and seed, 256 x 256 pixels in 10 segments by default.
    ``save_pretrained`` and ``from_pretrained`` treat it like any other.

    Args:
        seed: of the weights. The global random state is left as it was.
        depth: layers of the transformer.
        sides: tokens per side of the segments.
        num_classes: classes; 1000 have the names of ImageNet.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = VARTransformer(
            depth=depth,
            width=64,
            num_heads=4,
            vocab_size=256,
            latent_channels=16,
            num_classes=num_classes,
            patch_nums=sides,
        )
        vae = VQAutoencoder(
            vocab_size=256,
            latent_channels=16,
            base_channels=24,
            channel_multipliers=(1, 1, 1, 1, 2),
            num_res_blocks=1,
            num_scales=len(sides),
        )
        fill_range(vae.decoder, "conv_out")
        nn.init.normal_(transformer.class_emb.weight, std=1.0)
        nn.init.normal_(transformer.word_embed.weight, std=0.5)
        nn.init.normal_(transformer.head.weight, std=2.0 / math.sqrt(transformer.config.width))
    scheduler = VARScheduler(schedule=[[side, side] for side in sides], top_k=64)
    return VARPipeline(transformer.eval(), vae.eval(), scheduler)
