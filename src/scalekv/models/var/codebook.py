"""From tokens to the latent: code vectors, the smoothing convolutions, and what the next segment sees.

Layouts: tokens (B, h, w) int64, codes and latents (B, latent_channels, h, w) float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@cache
def phi_indices(phis: int, segments: int) -> tuple[int, ...]:
    """Which of ``phis`` convolutions smooths each of ``segments``: the one whose tick is nearest to s / (K - 1).

    Ticks lie evenly on 0 .. 1. With 10 segments two are exact ties, which published networks broke by the rounding of
    double precision; hence numpy's ``linspace`` and not a formula.
    """
    margin = 1 / 3 / phis if phis == 4 else 1 / 2 / phis
    ticks = np.linspace(margin, 1 - margin, phis)
    return tuple(int(np.argmin(np.abs(ticks - step / max(1, segments - 1)))) for step in range(segments))


@dataclass(frozen=True)
class Codebook:
    """The part of a tokenizer that a generation needs at every segment, copied to its device.

    Args:
        embedding: (vocab_size, latent_channels) float32.
        phis: (weight, bias) of every smoothing convolution, float32; empty without smoothing.
        ratio: share of the convolution in what is added, |quant_resi|.
        unit_norm: encode by direction only [using_znorm].
    """

    embedding: Tensor
    phis: tuple[tuple[Tensor, Tensor], ...]
    ratio: float
    unit_norm: bool = False

    def lookup(self, tokens: Tensor) -> Tensor:
        """Codes of (B, h, w) ``tokens``."""
        return self.embedding[tokens].permute(0, 3, 1, 2)

    def mixture(self, weights: Tensor) -> Tensor:
        """Codes of (B, h, w, vocab_size) soft choices."""
        return (weights @ self.embedding).permute(0, 3, 1, 2)

    def residual(self, codes: Tensor, step: int, segments: int, final: tuple[int, int]) -> Tensor:
        """What the codes of segment ``step`` of ``segments`` add to a latent of the size ``final``."""
        grown = codes
        if step < segments - 1:
            grown = F.interpolate(codes, size=final, mode="bicubic", align_corners=False)
        if not self.phis:
            return grown.contiguous()
        weight, bias = self.phis[phi_indices(len(self.phis), segments)[step]]
        smoothed = F.conv2d(grown, weight, bias, padding=weight.shape[-1] // 2)
        # The order of numbers in memory decides the rounding of the averages that segments see.
        return (grown * (1 - self.ratio) + smoothed * self.ratio).contiguous()

    def accumulate(self, tokens: Sequence[Tensor], segments: int, final: tuple[int, int]) -> Iterator[Tensor]:
        """The latent after each of the first segments, a new tensor each; ``tokens`` (B, h, w) per segment."""
        total: Tensor | None = None
        for step, drawn in enumerate(tokens):
            added = self.residual(self.lookup(drawn), step, segments, final)
            total = added if total is None else total + added
            yield total

    def nearest(self, states: Tensor) -> Tensor:
        """Tokens (B, h, w) whose codes are nearest to the latent pixels (B, latent_channels, h, w)."""
        rows = states.permute(0, 2, 3, 1)
        if self.unit_norm:
            return (F.normalize(rows, dim=-1) @ F.normalize(self.embedding, dim=-1).T).argmax(-1)
        flat = rows.flatten(0, 2)
        squares = flat.square().sum(1, keepdim=True) + self.embedding.square().sum(1)
        return torch.addmm(squares, flat, self.embedding.T, alpha=-2).argmin(1).view(rows.shape[:3])


def shrink(latent: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, latent_channels, h, w) averaged over areas to ``grid``; unchanged if it fits already."""
    return latent if latent.shape[-2:] == grid else F.interpolate(latent, size=grid, mode="area")
