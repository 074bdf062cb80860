"""Segments and schedules: the ordered token maps that a next-scale model draws.

A schedule of K segments fixes every token count of a run in advance, which is what makes a cache plan pure arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from scalekv.errors import ScheduleError


@dataclass(frozen=True)
class Segment:
    """One step's token map: ``height x width`` tokens (times ``frames``), all drawn at once.

    Args:
        index: position in the schedule, from 0.
        height: rows of tokens, at least 1.
        width: columns of tokens, at least 1.
        frames: token maps in time; 1 for images.
    """

    index: int
    height: int
    width: int
    frames: int = 1

    @property
    def tokens(self) -> int:
        """Number of tokens ``n_k`` of this segment."""
        return self.frames * self.height * self.width

    def __str__(self) -> str:
        grid = f"{self.height}x{self.width}"
        return grid if self.frames == 1 else f"{self.frames}x{grid}"


@dataclass(frozen=True)
class Schedule:
    """The ordered segments of one generation.

    Args:
        segments: at least one segment, indices 0 .. K-1 in order.

    Raises:
        ScheduleError: no segments, an index out of order, or a side below 1.
    """

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        if not self.segments:
            raise ScheduleError("A schedule needs at least one segment, got none.")
        for position, segment in enumerate(self.segments):
            if segment.index != position:
                raise ScheduleError(
                    f"Segment {position} carries index {segment.index}; number segments 0, 1, 2, ... in order."
                )
            if min(segment.height, segment.width, segment.frames) < 1:
                raise ScheduleError(f"Segment {position} is {segment}; every side must be at least 1 token.")

    @classmethod
    def from_shapes(cls, shapes: Iterable[Sequence[int]]) -> Schedule:
        """Build a schedule from ``(height, width)`` or ``(frames, height, width)`` triples.

        Raises:
            ScheduleError: an entry is not two or three positive integers.
        """
        segments = []
        for index, shape in enumerate(shapes):
            if len(shape) not in (2, 3) or any(int(side) != side for side in shape):
                raise ScheduleError(
                    f"Segment {index} is {tuple(shape)!r}; expected (height, width) or (frames, height, width)."
                )
            *frames, height, width = (int(side) for side in shape)
            segments.append(Segment(index, height, width, *frames))
        return cls(tuple(segments))

    @classmethod
    def from_sides(cls, sides: Iterable[int]) -> Schedule:
        """Build a schedule of square segments, e.g. ``(1, 2, 4)`` for 1x1, 2x2, 4x4."""
        return cls.from_shapes((side, side) for side in sides)

    def __len__(self) -> int:
        return len(self.segments)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)

    def __getitem__(self, index: int) -> Segment:
        return self.segments[index]

    def __str__(self) -> str:
        return " ".join(str(segment) for segment in self.segments)

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        ends, total = [], 0
        for segment in self.segments:
            total += segment.tokens
            ends.append(total)
        return tuple(ends)

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """Tokens of every segment, ``(n_0, ..., n_{K-1})``."""
        return tuple(segment.tokens for segment in self.segments)

    @property
    def total_tokens(self) -> int:
        """Tokens of all segments together; what the stock implementations store."""
        return self._ends[-1]

    @property
    def history_tokens(self) -> int:
        """Tokens before the last segment: all that an exact cache ever has to hold per head."""
        return self.start(len(self) - 1)

    def start(self, index: int) -> int:
        """Tokens before segment ``index``: the untouched history that this segment reads."""
        return self._ends[index - 1] if index else 0

    def is_last(self, segment: Segment) -> bool:
        """Whether nothing reads the keys and values of ``segment``."""
        return segment.index == len(self.segments) - 1

    @property
    def key(self) -> str:
        """Text that identifies the schedule in files, such as ``1x1-2x2-4x4``."""
        return "-".join(str(segment) for segment in self.segments)
