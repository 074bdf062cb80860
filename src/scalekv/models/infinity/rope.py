"""Two-dimensional rotary position tables of Infinity (infinity/models/basic.py, restated), for any schedule.

Half of a head's channel pairs turns with the token's row, the other half with its column. Tables and rotation are
computed in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scalekv.errors import InvalidInput
from scalekv.planning import Schedule, Segment

ROPE_MODES = (0, 1, 2)
_BASE = 10000.0
_GRID = 128
"""Side of the integer grid on which mode 1 lays its table before resizing it."""


class RopeTables:
    """Cosines and sines of every token of one schedule.

    Args:
        cos: (tokens, head_dim / 2), float32.
        sin: (tokens, head_dim / 2), float32.
        schedule: the schedule whose tokens these are, in order.
    """

    def __init__(self, cos: Tensor, sin: Tensor, schedule: Schedule) -> None:
        self.cos = cos
        self.sin = sin
        self.schedule = schedule

    def at(self, segment: Segment) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the tokens of ``segment``, each (tokens, head_dim / 2)."""
        start = self.schedule.start(segment.index)
        window = slice(start, start + segment.tokens)
        return self.cos[window], self.sin[window]


def rope_tables(
    schedule: Schedule,
    head_dim: int,
    extent: tuple[int, int],
    mode: int = 2,
    device: torch.device | str | None = None,
) -> RopeTables:
    """Build the tables of ``schedule``.

    Args:
        schedule: the segments to place.
        head_dim: channels per head, a multiple of 4.
        extent: (rows, columns) of the largest map of this aspect ratio (64 x 64 for square images); coordinates are
            measured on it, so that one place in the image has one position at every scale.
        mode: 2 stretches token coordinates to the extent and rounds half to even (every published checkpoint), 0 takes
            them as they are, 1 resizes the cosine and sine maps of a 128 x 128 grid.
        device: where the tables are put; they are computed on the CPU, so that every device gets the same numbers.

    Raises:
        InvalidInput: ``head_dim`` not a multiple of 4, an unknown mode, an extent below 1, or a video schedule.
    """
    if any(segment.frames != 1 for segment in schedule):
        raise InvalidInput(f"Infinity draws images: every segment needs 1 frame, got the schedule {schedule}.")
    if head_dim % 4:
        raise InvalidInput(f"2-D rotary positions need head_dim to be a multiple of 4, got {head_dim}.")
    if mode not in ROPE_MODES:
        raise InvalidInput(f"Unknown rotary mode {mode!r}; choose one of {ROPE_MODES}.")
    if min(extent) < 1:
        raise InvalidInput(f"The rotary extent must be at least 1 x 1 tokens, got {tuple(extent)}.")
    place = _resized_maps if mode == 1 else _direct_maps
    maps = [place(segment, head_dim, extent, mode) for segment in schedule]
    cos, sin = torch.cat(maps, dim=1).to(device).unbind(0)
    return RopeTables(cos, sin, schedule)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn adjacent channel pairs of ``states`` (rows, heads, tokens, head_dim) by the angles of the tables."""
    even, odd = states[..., 0::2], states[..., 1::2]
    return torch.stack((cos * even - sin * odd, sin * even + cos * odd), dim=-1).flatten(-2)


def _frequencies(head_dim: int) -> Tensor:
    half = head_dim // 2
    return 1.0 / _BASE ** (torch.arange(0, half, 2) / half)


def _cos_sin(rows: Tensor, columns: Tensor, head_dim: int) -> Tensor:
    """(2, len(rows), len(columns), head_dim / 2): cosines and sines on the grid rows x columns."""
    frequencies = _frequencies(head_dim)
    grid = (len(rows), len(columns), len(frequencies))
    row_angles = torch.outer(rows.float(), frequencies)[:, None].expand(grid)
    column_angles = torch.outer(columns.float(), frequencies)[None].expand(grid)
    angles = torch.cat((row_angles, column_angles), dim=-1)
    return torch.stack((angles.cos(), angles.sin()))


def _direct_maps(segment: Segment, head_dim: int, extent: tuple[int, int], mode: int) -> Tensor:
    sides = (segment.height, segment.width)
    places = [torch.arange(side, dtype=torch.float32) for side in sides]
    if mode == 2:
        places = [(place * (reach / side)).round() for place, reach, side in zip(places, extent, sides, strict=True)]
    return _cos_sin(places[0], places[1], head_dim).flatten(1, 2)


def _resized_maps(segment: Segment, head_dim: int, extent: tuple[int, int], mode: int) -> Tensor:
    rows, columns = extent
    if rows >= columns:
        crop = (_GRID, max(1, int(_GRID / rows * columns)))
    else:
        crop = (max(1, int(_GRID / columns * rows)), _GRID)
    maps = _cos_sin(torch.arange(crop[0]), torch.arange(crop[1]), head_dim).permute(0, 3, 1, 2)
    size = (segment.height, segment.width)
    resized = F.interpolate(maps, size=size, mode="bilinear", align_corners=True)
    return resized.flatten(2).transpose(1, 2)
