"""The network behind the detector: one peak for every thing's centre, and what the thing is beside it.

Outputs live on a grid of a quarter of the picture's side: certainty of a centre, scores of shapes, colours, patterns
and sizes, the centre's place inside of its cell, and its depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from scalekv.scenes import camera, words
from scalekv.scenes.graph import Placed, Thing

STRIDE = 4
_HEADS = (1, len(words.SHAPES), len(words.COLOURS), len(words.PATTERNS), len(words.SIZES), 2, 1)


def _conv(source: int, target: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(source, target, 3, stride, 1, bias=False), nn.BatchNorm2d(target), nn.SiLU(inplace=True)
    )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(channels, channels), _conv(channels, channels))

    def forward(self, states: Tensor) -> Tensor:
        out: Tensor = states + self.body(states)
        return out


@dataclass(frozen=True)
class Reading:
    """What the network says of every cell, logits throughout.

    Args:
        centre: (n, 32, 32).
        shape: (n, 5, 32, 32), and likewise colour, pattern and size.
        colour: see ``shape``.
        pattern: see ``shape``.
        size: see ``shape``.
        place: (n, 2, 32, 32), column and row of the centre inside of the cell, 0 to 1.
        depth: (n, 32, 32), world units.
    """

    centre: Tensor
    shape: Tensor
    colour: Tensor
    pattern: Tensor
    size: Tensor
    place: Tensor
    depth: Tensor


class SceneReader(nn.Module):
    """A convolutional pyramid, 0.9 M parameters.

    Args:
        widths: channels at 1/2, 1/4, 1/8 and 1/16 of the side.
    """

    def __init__(self, widths: tuple[int, int, int, int] = (24, 48, 80, 104)) -> None:
        super().__init__()
        half, quarter, eighth, sixteenth = widths
        self.stem = nn.Sequential(_conv(3, half, 2), _conv(half, quarter, 2), _Residual(quarter))
        self.middle = nn.Sequential(_conv(quarter, eighth, 2), _Residual(eighth), _Residual(eighth))
        self.coarse = nn.Sequential(_conv(eighth, sixteenth, 2), _Residual(sixteenth), _Residual(sixteenth))
        self.from_coarse = nn.Conv2d(sixteenth, eighth, 1)
        self.from_middle = nn.Conv2d(eighth, quarter, 1)
        self.head = nn.Sequential(_conv(quarter, eighth), nn.Conv2d(eighth, sum(_HEADS), 1))
        with torch.no_grad():
            self.head[1].bias[0] = -4  # type: ignore[operator]

    def forward(self, images: Tensor) -> Reading:
        """Read (n, 3, 128, 128) images of 0..1."""
        fine = self.stem(images * 2 - 1)
        middle = self.middle(fine)
        middle = middle + F.interpolate(self.from_coarse(self.coarse(middle)), scale_factor=2.0, mode="nearest")
        fine = fine + F.interpolate(self.from_middle(middle), scale_factor=2.0, mode="nearest")
        centre, shape, colour, pattern, size, place, depth = self.head(fine).float().split(_HEADS, dim=1)
        return Reading(centre[:, 0], shape, colour, pattern, size, place, depth[:, 0])

    @torch.no_grad()
    def read(self, pictures: NDArray[np.uint8], threshold: float) -> list[list[Placed]]:
        """The things in (n, 128, 128, 3) pictures, the most certain first."""
        device = next(self.parameters()).device
        images = torch.from_numpy(np.array(pictures)).to(device).permute(0, 3, 1, 2).float() / 255
        reading = self(images)
        heat = reading.centre.sigmoid()
        peak = (heat == F.max_pool2d(heat[:, None], 5, 1, 2)[:, 0]) & (heat >= threshold)
        found = []
        for index in range(len(pictures)):
            rows, columns = peak[index].nonzero().unbind(1)
            order = heat[index, rows, columns].argsort(descending=True)[:8]
            found.append([_thing(reading, index, int(rows[one]), int(columns[one])) for one in order])
        return found


def _thing(reading: Reading, index: int, row: int, column: int) -> Placed:
    def best(names: tuple[str, ...], scores: Tensor) -> str:
        return names[int(scores[index, :, row, column].argmax())]

    thing = Thing(
        best(words.SHAPES, reading.shape),
        best(words.COLOURS, reading.colour),
        best(words.PATTERNS, reading.pattern),
        best(words.SIZES, reading.size),
    )
    across, down = reading.place[index, :, row, column].tolist()
    depth = float(reading.depth[index, row, column])
    x, y = camera.unproject((column + across) * STRIDE, (row + down) * STRIDE, depth)
    return Placed(thing, x, y, depth)
