"""Which queries of the current segment judge the history."""

from __future__ import annotations

from functools import lru_cache

from scalekv.planning import Segment

PATCHES = 4


@lru_cache(maxsize=4096)
def patch_centers(segment: Segment, centered: bool = False) -> tuple[int, ...]:
    """Raster positions of the centres of a 4 x 4 grid of patches (ScaleKV, arXiv 2505.19602, and its code).

    Args:
        segment: the current map; height and width are treated apart, a side below 4 uses every row or column.
        centered: ``floor((2i + 1) * side / 8)`` [ours], which centres better when the side is no multiple of 8;
            the default is the released code's ``i * p + (p - 1) // 2`` with ``p = side // 4``.

    Returns:
        At most 16 ascending positions.
    """
    rows, columns = _axis(segment.height, centered), _axis(segment.width, centered)
    return tuple(row * segment.width + column for row in rows for column in columns)


def _axis(side: int, centered: bool) -> list[int]:
    if side < PATCHES:
        return list(range(side))
    if centered:
        return [(2 * index + 1) * side // (2 * PATCHES) for index in range(PATCHES)]
    patch = side // PATCHES
    return [index * patch + (patch - 1) // 2 for index in range(PATCHES)]
