"""Tables of numbers in a profile: one cell per segment, nested tuples of one shape inside a cell."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from scalekv.errors import ProfileError
from scalekv.planning.curves import curve_ranks, resampled
from scalekv.planning.schedule import Schedule

Table = tuple[tuple[float, ...], ...]
"""``[segment][layer]``, or one cell ``[layer][head]``."""

HeadTable = tuple[Table, ...]
"""``[segment][layer][head]``."""

SourceTable = tuple[HeadTable, ...]
"""``[segment][source][layer][head]``, sources 0 up to the segment itself; or ``[segment][layer][head][point]``."""

DIGITS = 6
"""Significant digits of a measured number; more are noise, and make files long."""

_CELLS: dict[str, Callable[[Schedule, int, int, int], tuple[int, ...]]] = {
    "statistics": lambda schedule, layers, heads, segment: (layers,),
    "head_statistics": lambda schedule, layers, heads, segment: (layers, heads),
    "source_statistics": lambda schedule, layers, heads, segment: (segment + 1, layers, heads),
    "curves": lambda schedule, layers, heads, segment: (
        layers,
        heads,
        len(curve_ranks(schedule.start(segment + 1))),
    ),
}

KINDS = tuple(_CELLS)
"""Fields of a profile that hold tables by name."""


def cell_shape(kind: str, schedule: Schedule, layers: int, heads: int, segment: int) -> tuple[int, ...]:
    """The sides of the cell of ``segment`` in a table of ``kind``, one of ``KINDS``."""
    return _CELLS[kind](schedule, layers, heads, segment)


def check_table(name: str, table: Any, shapes: Sequence[tuple[int, ...]], model: str) -> None:
    """Refuse a table that is not made of finite numbers in cells of the given shapes.

    Raises:
        ProfileError: it is not; names the table and the model.
    """
    if len(table) != len(shapes):
        raise ProfileError(
            f"The table {name!r} of the profile for {model} has {len(table)} segments, the schedule has "
            f"{len(shapes)}; calibrate again."
        )
    for segment, (cell, shape) in enumerate(zip(table, shapes, strict=True)):
        if not _has_shape(cell, shape):
            sides = " x ".join(str(side) for side in shape)
            raise ProfileError(
                f"The table {name!r} of the profile for {model} is not {sides} numbers at segment {segment}; "
                f"calibrate again."
            )
        if not _finite(cell):
            raise ProfileError(
                f"The table {name!r} of the profile for {model} holds values that are no numbers; calibrate again."
            )


def _has_shape(value: Any, shape: tuple[int, ...]) -> bool:
    if not shape:
        return isinstance(value, (int, float))
    inside = isinstance(value, tuple) and len(value) == shape[0]
    return inside and all(_has_shape(part, shape[1:]) for part in value)


def _finite(value: Any) -> bool:
    return all(_finite(part) for part in value) if isinstance(value, tuple) else math.isfinite(value)


def frozen(rows: Any, depth: int) -> Any:
    """Lists of lists as tuples of floats, ``depth`` deep.

    Raises:
        TypeError: something that is no list above, or no number below.
        ValueError: text that is no number.
    """
    if depth == 0:
        return float(rows)
    if not isinstance(rows, (list, tuple)):
        raise TypeError(f"a list was expected, got {type(rows).__name__}")
    return tuple(frozen(row, depth - 1) for row in rows)


def thawed(table: Any) -> Any:
    """A table as lists, for JSON, its numbers short."""
    return [thawed(part) for part in table] if isinstance(table, tuple) else short(table)


def depth_of(kind: str) -> int:
    """How many brackets a table of ``kind`` has."""
    return {"statistics": 2, "head_statistics": 3}.get(kind, 4)


def short(value: float) -> float:
    """``value`` in ``DIGITS`` significant digits."""
    return float(f"{value:.{DIGITS}g}")


def weighted_mean(tables: Sequence[Any], weights: Sequence[int]) -> Any:
    """The mean of tables of one shape, in short numbers."""
    if isinstance(tables[0], tuple):
        return tuple(weighted_mean(parts, weights) for parts in zip(*tables, strict=True))
    total = math.fsum(value * weight for value, weight in zip(tables, weights, strict=True))
    return short(total / sum(weights))


def moved(kind: str, table: Any, old: Schedule, new: Schedule) -> Any:
    """A table on another schedule, segments and sources matched by position from the last [ours].

    A longer schedule repeats the earliest known segment. Curves are stretched to the new number of candidates.
    """
    known = matched_segments(old, new)
    if kind == "source_statistics":
        return tuple(tuple(table[known[at]][known[source]] for source in range(at + 1)) for at in range(len(new)))
    if kind != "curves":
        return tuple(table[index] for index in known)
    return tuple(
        tuple(
            tuple(resampled(curve, old.start(index + 1), new.start(at + 1)) for curve in heads)
            for heads in table[index]
        )
        for at, index in enumerate(known)
    )


def matched_segments(old: Schedule, new: Schedule) -> list[int]:
    """For every segment of ``new`` the one of ``old`` at the same distance from the last, or the first."""
    shift = len(old) - len(new)
    return [max(index + shift, 0) for index in range(len(new))]
