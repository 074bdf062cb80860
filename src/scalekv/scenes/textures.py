"""Floors and walls: pale patterns with fine detail, so that things stand out and late scales have something to draw."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from scalekv.scenes.camera import Array

_TINTS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "wood": ((0.66, 0.52, 0.39), (0.55, 0.42, 0.32), (0.74, 0.64, 0.50)),
    "tiles": ((0.72, 0.74, 0.76), (0.62, 0.68, 0.70), (0.76, 0.72, 0.68)),
    "grass": ((0.46, 0.56, 0.36), (0.52, 0.58, 0.40)),
    "marble": ((0.70, 0.69, 0.67), (0.66, 0.68, 0.72)),
    "carpet": ((0.58, 0.50, 0.56), (0.48, 0.54, 0.62), (0.62, 0.56, 0.48)),
    "brick": ((0.64, 0.47, 0.41), (0.70, 0.62, 0.54), (0.58, 0.56, 0.56)),
    "lines": ((0.72, 0.76, 0.80), (0.80, 0.76, 0.68), (0.76, 0.70, 0.72)),
    "polka": ((0.70, 0.76, 0.74), (0.78, 0.72, 0.74), (0.76, 0.76, 0.68)),
    "panels": ((0.60, 0.52, 0.44), (0.72, 0.70, 0.66), (0.56, 0.60, 0.62)),
    "plaster": ((0.78, 0.77, 0.74), (0.68, 0.72, 0.76), (0.74, 0.70, 0.66)),
}


def _shade(cells: list[NDArray[np.int64]], seed: int, amount: float) -> Array:
    """A brightness for every cell, 1 +- ``amount``, by hashing cell numbers."""
    mixed = np.full(cells[0].shape, seed * 2654435761 % 2**31, dtype=np.int64)
    for cell in cells:
        mixed = (mixed ^ (cell * 374761393)) * 668265263 & 0x7FFFFFFF
        mixed ^= mixed >> 13
    return (1 + amount * ((mixed & 0xFFFF) / 32767.5 - 1)).astype(np.float32)


def _cells(*coordinates: Array) -> list[NDArray[np.int64]]:
    return [np.floor(one).astype(np.int64) for one in coordinates]


def _joint(coordinate: Array, width: float, depth: float) -> Array:
    """Darkness of the joints at whole numbers of ``coordinate``."""
    return (1 - depth * (np.abs(coordinate - np.round(coordinate)) < width)).astype(np.float32)


def _wood(x: Array, z: Array, seed: int) -> Array:
    plank = x / 0.42
    end = z / 1.6 + 0.37 * np.floor(plank)
    grain = 0.03 * np.sin(40 * x + 3 * np.sin(2.5 * z + 1.7 * np.floor(plank)))
    out: Array = _shade(_cells(plank, end), seed, 0.11) * _joint(plank, 0.05, 0.35) * _joint(end, 0.018, 0.3) + grain
    return out


def _tiles(x: Array, z: Array, seed: int) -> Array:
    across, deep = x / 0.55, z / 0.55
    return _shade(_cells(across, deep), seed, 0.06) * _joint(across, 0.05, 0.3) * _joint(deep, 0.05, 0.3)


def _grass(x: Array, z: Array, seed: int) -> Array:
    phase = seed % 97
    waves = np.sin(9 * x + 4 * np.sin(3.1 * z + phase)) * np.sin(8 * z + 3 * np.sin(2.3 * x + phase))
    fine = np.sin(23 * x + 5 * np.sin(4 * z)) * np.sin(15 * z + phase)
    out: Array = (1 + 0.10 * waves + 0.07 * fine).astype(np.float32)
    return out


def _marble(x: Array, z: Array, seed: int) -> Array:
    across, deep = _cells((x + z) / 0.85, (x - z) / 0.85)
    vein = np.abs(np.sin(5 * x + 2 * np.sin(4 * z + seed % 89)))
    dark = 1 - 0.22 * ((across + deep) % 2)
    out: Array = (dark * (1 - 0.10 * (vein < 0.12))).astype(np.float32)
    return out


def _carpet(x: Array, z: Array, seed: int) -> Array:
    weave = np.sin(2 * math.pi * (x + 0.6 * z) / 0.40) * np.sin(2 * math.pi * (x - 0.6 * z) / 0.40)
    border = 0.12 * (np.abs(np.abs(x) - 1.7) < 0.06)
    out: Array = (1 + 0.11 * np.tanh(3 * weave) - border).astype(np.float32) + np.float32(0 * seed)
    return out


def _brick(x: Array, y: Array, seed: int) -> Array:
    row = y / 0.26
    column = x / 0.56 + 0.5 * (np.floor(row) % 2)
    return _shade(_cells(column, row), seed, 0.12) * (1 + 0.25 * (1 - _joint(column, 0.05, 1) * _joint(row, 0.1, 1)))


def _lines(x: Array, y: Array, seed: int) -> Array:
    out: Array = 1 - 0.13 * (np.sin(2 * math.pi * x / 0.42 + seed % 7) > 0.2) - 0.02 * y
    return out


def _polka(x: Array, y: Array, seed: int) -> Array:
    row = y / 0.4
    column = x / 0.46 + 0.5 * (np.floor(row) % 2)
    away = np.hypot((column % 1 - 0.5) * 0.46, (row % 1 - 0.5) * 0.4)
    out: Array = 1 - 0.16 * (away < 0.1).astype(np.float32) + np.float32(0 * seed)
    return out


def _panels(x: Array, y: Array, seed: int) -> Array:
    board = x / 0.5
    rail = 0.14 * (np.abs(y - 1.0) < 0.06)
    out: Array = _shade(_cells(board), seed, 0.07) * _joint(board, 0.05, 0.3) - rail
    return out


def _plaster(x: Array, y: Array, seed: int) -> Array:
    phase = seed % 101
    out: Array = 1 + 0.04 * np.sin(2.1 * x + phase) * np.sin(2.7 * y + 0.5 * phase) - 0.03 * y
    return out


TEXTURES: dict[str, Callable[[Array, Array, int], Array]] = {
    "wood": _wood,
    "tiles": _tiles,
    "grass": _grass,
    "marble": _marble,
    "carpet": _carpet,
    "brick": _brick,
    "lines": _lines,
    "polka": _polka,
    "panels": _panels,
    "plaster": _plaster,
}
"""Brightness by name of floor or wall: (x, depth or height, seed) to factors around 1."""


def paint(name: str, first: Array, second: Array, seed: int) -> Array:
    """Colour a floor or wall.

    Args:
        name: which one.
        first: (h, w) world x.
        second: (h, w) world depth (floors) or height (walls).
        seed: of the tint and of single shades.

    Returns:
        (3, h, w) of about 0 to 1.
    """
    random = np.random.default_rng(seed)
    tints = _TINTS[name]
    tint = np.array(tints[int(random.integers(len(tints)))]) * random.uniform(0.94, 1.06)
    moved = first + np.float32(random.uniform(-1, 1)) if name != "carpet" else first
    bright = TEXTURES[name](moved, second, int(random.integers(2**31)))
    return (tint[:, None, None] * bright).astype(np.float32)
