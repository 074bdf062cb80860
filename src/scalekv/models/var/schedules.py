"""The published VAR schedules. Readable without torch.

A network has learned positions for exactly one schedule of square segments.
"""

from __future__ import annotations

SIDES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
"""Tokens per side of the segments of all 256-pixel models."""

SIDES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)
"""Tokens per side of the segments of the 512-pixel model."""

PUBLISHED = (SIDES_256, SIDES_512)

PIXELS_PER_TOKEN = 16
"""Image pixels per token and side, of the one published tokenizer."""


def sides_with(tokens: int) -> tuple[int, ...] | None:
    """The published schedule of so many tokens in all, if there is one."""
    return next((sides for sides in PUBLISHED if sum(side * side for side in sides) == tokens), None)
