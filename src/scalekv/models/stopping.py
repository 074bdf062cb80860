"""How what watches a generation loop ends it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Stop:
    """An answer of ``on_segment`` that ends the run after the segment.

    Args:
        latents: what the run ends with, in the shape of its latents.
    """

    latents: Tensor
