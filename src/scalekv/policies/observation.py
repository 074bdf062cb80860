"""Which queries of the current segment judge the history: a property of every method that scores by attention."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import lru_cache

from scalekv.errors import InvalidInput
from scalekv.planning import Segment
from scalekv.policies.base import Policy

PATCHES = 4

_FORMS = "'centers', 'all', 'uniform:32', 'random:32' or 'last:32'"


@dataclass(frozen=True)
class Observation:
    """A rule that picks observation queries.

    Args:
        kind: ``"centers"`` of a 4 x 4 grid of patches (ScaleKV), ``"uniform"``: evenly spaced in raster order, at
            ``floor((2i + 1) * tokens / (2 * count))`` (HACK, arXiv 2504.09261), ``"random"`` without replacement,
            ``"last"`` in raster order (SnapKV, arXiv 2404.14469), or ``"all"``.
        count: how many; a segment with fewer tokens gives all of them. 0 for ``"centers"`` and ``"all"``.
    """

    kind: str
    count: int = 0

    @classmethod
    def parse(cls, text: str) -> Observation:
        """Read ``"centers"``, ``"all"``, ``"uniform:32"``, ``"random:32"`` or ``"last:32"``.

        Raises:
            InvalidInput: it is none of these.
        """
        words = str(text).strip().lower()
        if words in ("centers", "all"):
            return cls(words)
        match = re.fullmatch(r"(uniform|random|last):([0-9]{1,9})", words)
        if match is None or int(match[2]) < 1:
            raise InvalidInput(f"queries must be {_FORMS}; got {text!r}.")
        return cls(match[1], int(match[2]))

    def positions(self, segment: Segment) -> tuple[int, ...]:
        """Ascending raster positions in ``segment``, at least one."""
        return _positions(self, segment)


@lru_cache(maxsize=4096)
def _positions(rule: Observation, segment: Segment) -> tuple[int, ...]:
    tokens, count = segment.tokens, rule.count
    if rule.kind == "centers":
        return patch_centers(segment)
    if rule.kind == "all" or count >= tokens:
        return tuple(range(tokens))
    if rule.kind == "uniform":
        return tuple((2 * index + 1) * tokens // (2 * count) for index in range(count))
    if rule.kind == "last":
        return tuple(range(tokens - count, tokens))
    return tuple(sorted(random.Random(f"{count} of {tokens} at {segment.index}").sample(range(tokens), count)))


@dataclass(frozen=True)
class ObservingPolicy(Policy):
    """A method that scores candidates by the attention of some queries of the current segment.

    Args:
        queries: which of them, see :class:`Observation`.

    Raises:
        InvalidInput: an unknown rule for ``queries``.
    """

    queries: str = "uniform:32"

    def __post_init__(self) -> None:
        super().__post_init__()
        Observation.parse(self.queries)

    def observation(self, segment: Segment) -> tuple[int, ...]:
        """The positions that ``queries`` picks."""
        return Observation.parse(self.queries).positions(segment)


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
