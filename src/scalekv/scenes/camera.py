"""The one camera of the world: a pinhole that looks slightly down on the middle of the floor."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

SIDE = 128
"""Pixels per side of a picture."""
SAMPLES = 2
"""Rays per pixel and side."""
WALL = 2.7
"""Depth at which the wall stands, world units."""

_DISTANCE = 9.0
_HALF = 2.0
_PITCH = math.radians(20)
_TARGET = np.array([0.0, 0.9, 0.0])
FORWARD = np.array([0.0, -math.sin(_PITCH), math.cos(_PITCH)])
_UP = np.array([0.0, math.cos(_PITCH), math.sin(_PITCH)])
EYE = _TARGET - _DISTANCE * FORWARD


def project(x: float, y: float, z: float) -> tuple[float, float, float]:
    """Where a world point is in the picture.

    Returns:
        column and row in pixels, and pixels per world unit at its depth.
    """
    offset = np.array([x, y, z]) - EYE
    scale = SIDE / 2 / _HALF * _DISTANCE / float(offset @ FORWARD)
    return SIDE / 2 + x * scale, SIDE / 2 - float(offset @ _UP) * scale, scale


@cache
def rays() -> Array:
    """Directions of all rays, (3, SIDE * SAMPLES, SIDE * SAMPLES); not of unit length: their depth is 1."""
    count = SIDE * SAMPLES
    steps = ((np.arange(count) + 0.5) / count * 2 - 1) * _HALF / _DISTANCE
    across, down = steps[None, :], steps[:, None]
    directions = [np.broadcast_to(across, (count, count)), -down * _UP[1] + FORWARD[1], -down * _UP[2] + FORWARD[2]]
    return np.stack([np.broadcast_to(one, (count, count)) for one in directions]).astype(np.float32)


@cache
def backdrop() -> tuple[int, Array, Array, Array, Array]:
    """Where the rays end that hit no thing.

    Returns:
        rows of rays that end at the wall; wall x and height (rows, rays); floor x and depth (the other rows, rays).
    """
    directions = rays()
    wall_reach = (WALL - EYE[2]) / directions[2]
    heights = EYE[1] + wall_reach * directions[1]
    rows = int((heights[:, 0] > 0).sum())
    floor_reach = -EYE[1] / directions[1][rows:]
    wall_x = (wall_reach * directions[0])[:rows]
    floor_x, floor_z = floor_reach * directions[0][rows:], EYE[2] + floor_reach * directions[2][rows:]
    single = (part.astype(np.float32) for part in (wall_x, heights[:rows], floor_x, floor_z))
    a, b, c, d = single
    return rows, a, b, c, d


def window(x: float, y: float, z: float, radius: float) -> tuple[slice, slice]:
    """Rows and columns of rays that can hit a ball; empty slices if none can."""
    column, row, scale = project(x, y, z)
    reach = radius * scale * 1.1 + 1
    edges = []
    for middle in (row, column):
        low, high = (int(np.clip(round((middle + sign * reach) * SAMPLES), 0, SIDE * SAMPLES)) for sign in (-1, 1))
        edges.append(slice(low, high))
    return edges[0], edges[1]


def unproject(column: float, row: float, z: float) -> tuple[float, float]:
    """World x and y of the point at depth ``z`` that is seen at a pixel; the inverse of `project`."""
    across, down = ((place / SIDE * 2 - 1) * _HALF / _DISTANCE for place in (column, row))
    ray = np.array([across, -down * _UP[1] + FORWARD[1], -down * _UP[2] + FORWARD[2]])
    reach = (z - EYE[2]) / ray[2]
    return float(reach * ray[0]), float(EYE[1] + reach * ray[1])
