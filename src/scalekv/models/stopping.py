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


Answer = Tensor | Stop | bool | None
"""What ``on_segment`` may return: other latents, the end with other latents, ``True`` for the end, or nothing."""


def take(answer: Answer, latents: Tensor) -> tuple[Tensor, bool]:
    """What a loop goes on with, ``latents`` unless ``answer`` holds others, and whether it ends."""
    if isinstance(answer, Stop):
        return answer.latents, True
    return (answer, False) if isinstance(answer, Tensor) else (latents, answer is True)
