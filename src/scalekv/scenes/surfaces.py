"""Stripes, checks and dots on solids: which points of a surface carry the second colour.

Patterns are coarse on purpose: about seven marks across a thing, so that a small picture can show them.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from scalekv.scenes import solids
from scalekv.scenes.camera import Array

Mask = NDArray[np.bool_]

_GOLDEN = (1 + math.sqrt(5)) / 2


def _dodecahedron() -> Array:
    corners = [(a, b, c) for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]
    for a in (-1 / _GOLDEN, 1 / _GOLDEN):
        for b in (-_GOLDEN, _GOLDEN):
            corners += [(0, a, b), (a, b, 0), (b, 0, a)]  # type: ignore[list-item]
    points = np.array(corners, dtype=np.float32) / math.sqrt(3)
    tilt = math.radians(20)
    turned = np.array([[1, 0, 0], [0, math.cos(tilt), -math.sin(tilt)], [0, math.sin(tilt), math.cos(tilt)]])
    out: Array = (points @ turned.T).astype(np.float32)
    return out


_SPOTS = _dodecahedron()


def marked(shape: str, pattern: str, point: Array, normal: Array) -> Mask:
    """Which of n surface points carry the pattern's second colour.

    Args:
        shape: the solid.
        pattern: ``"striped"``, ``"checkered"`` or ``"dotted"``.
        point: (3, n) in the solid's own frame.
        normal: (3, n) outward.
    """
    if shape == "sphere" and pattern == "dotted":
        out: Mask = (_SPOTS @ point).max(0) > math.cos(0.27)
        return out
    if shape == "cube":
        return _cube(pattern, point, normal)
    across, along, half_turns, rows = _unrolled(shape, point)
    if pattern == "striped":
        marks = np.floor(across * 12 / (2 * math.pi)) if shape == "torus" else np.floor(along * (rows + 0.5))
        flags = marks % 2 == 0
    elif pattern == "checkered":
        flags = (np.floor(across * half_turns / math.pi) + np.floor(along * rows)) % 2 == 0
    else:
        flags = _spots(shape, across, along, half_turns, rows)
    if shape == "cylinder":
        flags &= normal[1] < 0.5
    return np.asarray(flags)


def _unrolled(shape: str, point: Array) -> tuple[Array, Array, int, int]:
    """Angle around the axis, place along it from 0 to 1, cells per half turn, and rows along the axis."""
    if shape == "torus":
        across = np.arctan2(point[1], point[0])
        around = np.arctan2(point[2], np.hypot(point[0], point[1]) - solids.RING_LARGE)
        return across, around / (2 * math.pi) + 0.5, 6, 4
    turn = np.arctan2(point[2], point[0])
    if shape == "sphere":
        return turn, np.arcsin(np.clip(point[1], -1, 1)) / math.pi + 0.5, 5, 6
    half = solids.CAN_HALF if shape == "cylinder" else solids.CONE_HALF
    return turn, (point[1] / half + 1) / 2, 5, 6 if shape == "cone" else 5


def _spots(shape: str, across: Array, along: Array, half_turns: int, rows: int) -> Mask:
    """Round dots in rows; every other row is shifted by half a cell."""
    if shape == "torus":
        ahead = np.abs(along * 2 * math.pi - math.pi / 2)
        cell = (across * 5 / math.pi) % 1 - 0.5
        out: Mask = np.hypot(cell * math.pi / 5 * solids.RING_LARGE, ahead * solids.RING_SMALL) < 0.15
        return out
    half = solids.CAN_HALF if shape == "cylinder" else solids.CONE_HALF
    level = along * (rows - 1.5)
    row = np.floor(level)
    height = (level % 1 - 0.5) * 2 * half / (rows - 1.5)
    radius = solids.CAN_RADIUS if shape == "cylinder" else solids.CONE_RADIUS * (1 - (row + 0.5) / (rows - 1.5))
    cells = np.maximum(np.round(np.asarray(radius) * half_turns * 1.1), 1.5)
    cell = (across * cells / math.pi + row / 2) % 1 - 0.5
    return np.asarray(np.hypot(cell * math.pi / cells * radius, height) < (0.17 if shape == "cylinder" else 0.15))


def _cube(pattern: str, point: Array, normal: Array) -> Mask:
    face = np.abs(normal).argmax(0)
    scaled = (point / solids.CUBE + 1) / 2
    level = np.where(face == 1, scaled[2], scaled[1])
    side = np.where(face == 0, scaled[2], scaled[0])
    if pattern == "striped":
        return np.asarray(np.floor(level * 4.999) % 2 == 1)
    if pattern == "checkered":
        return np.asarray((np.floor(level * 2.999) + np.floor(side * 2.999)) % 2 == 0)
    return np.asarray(np.hypot((level * 3) % 1 - 0.5, (side * 3) % 1 - 0.5) < 0.3)
