"""What a pipeline call returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusers.utils import BaseOutput
from torch import Tensor

from scalekv.cache import CacheReport
from scalekv.planning import Schedule


@dataclass
class InfinityPipelineOutput(BaseOutput):
    """Pictures and what drawing them took.

    Args:
        images: a list of PIL pictures (``"pil"``), an array (images, height, width, 3) of 0..1 (``"np"``), a tensor
            (images, 3, height, width) of 0..1 (``"pt"``), or the summed codes (images, codebook_dim, latent height,
            latent width) (``"latent"``). Images of one prompt are neighbours.
        cache: planned and measured bytes of the KV cache; ``cache.seconds`` is the time of the whole call.
        schedule: the segments that were drawn.
        seeds: one per image, the initial seed of its generator; ``None`` where no generator was given. One generator
            for several images repeats its seed.
        truncated: indices of the prompts that were longer than the text encoder reads.
        drawn: per drawn segment the bits (images, latent height, latent width, codebook bits) uint8, in the form that
            ``forced_bits`` takes.
        interrupted: whether ``pipeline.interrupt`` ended the call before the last segment.
    """

    images: Any
    cache: CacheReport
    schedule: Schedule
    seeds: list[int | None]
    truncated: list[int]
    drawn: list[Tensor]
    interrupted: bool = False


@dataclass
class VARPipelineOutput(BaseOutput):
    """Pictures and what drawing them took.

    Args:
        images: as in :class:`InfinityPipelineOutput`; the latent has (images, latent channels, latent height, latent
            width). Images of one class are neighbours.
        cache: planned and measured bytes of the KV cache; ``cache.seconds`` is the time of the whole call.
        schedule: the segments that were drawn.
        seeds: one per image, as in :class:`InfinityPipelineOutput`.
        labels: class of every image; -1 is none.
        drawn: per drawn segment the tokens (images, height, width) int64, in the form that ``forced_tokens`` takes.
        interrupted: whether ``pipeline.interrupt`` ended the call before the last segment.
    """

    images: Any
    cache: CacheReport
    schedule: Schedule
    seeds: list[int | None]
    labels: list[int]
    drawn: list[Tensor]
    interrupted: bool = False
