"""Cache plans: what every layer holds at every moment of a run, in exact bytes, before a weight is loaded.

A plan is the policy's decision for one geometry and budget. The cache executes it to the byte, so the figures here are
the figures that are measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from scalekv.planning.geometry import CacheGeometry, Convention

SELECTION_BYTES = 32
"""Bytes that choosing the survivors takes per candidate token of one head and one row (scores, marks, ranks)."""

SCORING_BLOCK = 256
"""Candidate keys that are widened to float32 together while scores are computed."""

SCORING_LIMIT = 64 * 2**20
"""Rows are scored together as long as their scratch stays under this many bytes; one row always is."""

FLOAT_BYTES = 4
"""Scores are computed in float32."""

INDEX_BYTES = 8
"""Bytes of one survivor's index while survivors are copied."""


@dataclass(frozen=True)
class HeadGroup:
    """Heads of one layer that always hold equally many tokens.

    Args:
        heads: head indices, ascending.
        capacity: for every segment, the tokens of history (per head and row) that the segment reads.
    """

    heads: tuple[int, ...]
    capacity: tuple[int, ...]


@dataclass(frozen=True)
class Moment:
    """The bytes of the cache while one layer works on one segment.

    Args:
        segment: segment index.
        layer: layer index.
        before: history held when the layer begins.
        peak: the most that is allocated while it works, scratch included.
        after: history held when it is done.
    """

    segment: int
    layer: int
    before: int
    peak: int
    after: int


@dataclass(frozen=True)
class CachePlan:
    """Per layer its head groups, per group and segment a capacity; everything else follows by arithmetic.

    Args:
        geometry: the shape of the run.
        policy: name of the policy that decided.
        limit_bytes: the budget in bytes.
        layers: head groups of every layer; the groups of a layer partition its heads.
        strict: whether ``peak_bytes`` (rather than ``nominal_bytes``) was held under ``limit_bytes``.
        origin_bytes: bytes kept per token, head and row to remember where a token came from (0 or 4).
        scoring_bytes: scratch per candidate token, head and row that scoring takes beside logits.
        observation: for every segment, the queries that score its candidates; empty for none anywhere.

    Raises:
        ValueError: heads not partitioned, or a capacity larger than what the layer can hold. A policy that builds
            such a plan has a bug; no user input leads here.
    """

    geometry: CacheGeometry
    policy: str
    limit_bytes: int
    layers: tuple[tuple[HeadGroup, ...], ...]
    strict: bool = False
    origin_bytes: int = 0
    scoring_bytes: int = 0
    observation: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.layers) != self.geometry.layers:
            raise ValueError(f"plan has {len(self.layers)} layers, geometry {self.geometry.layers}")
        checked: set[tuple[int, ...]] = set()
        for groups in self.layers:
            if sorted(head for group in groups for head in group.heads) != list(range(self.geometry.heads)):
                raise ValueError("the head groups of a layer must partition its heads")
            for group in groups:
                if group.capacity not in checked:
                    self._check_capacity(group.capacity)
                    checked.add(group.capacity)

    def _check_capacity(self, capacity: tuple[int, ...]) -> None:
        tokens = self.geometry.schedule.tokens
        if len(capacity) != len(tokens) or capacity[0] != 0:
            raise ValueError(f"expected one capacity per segment, the first 0, got {capacity}")
        for index in range(1, len(tokens)):
            if not 0 <= capacity[index] <= capacity[index - 1] + tokens[index - 1]:
                raise ValueError(f"capacity {capacity[index]} at segment {index} is more than can be held")

    @property
    def head_token_bytes(self) -> int:
        """Bytes one kept token takes in one head, over all rows, its origin mark included."""
        return self.geometry.head_token_bytes + self.geometry.rows * self.origin_bytes

    def group_bytes(self, group: HeadGroup, segment: int) -> int:
        """Bytes of history that ``group`` holds for ``segment``; 0 past the last segment."""
        if segment >= len(group.capacity):
            return 0
        return len(group.heads) * group.capacity[segment] * self.head_token_bytes

    def layer_bytes(self, layer: int, segment: int) -> int:
        """Bytes of history that ``layer`` holds for ``segment``; 0 past the last segment."""
        return sum(self.group_bytes(group, segment) for group in self.layers[layer])

    def held_bytes(self, segment: int) -> int:
        """Bytes of history that all layers together hold when ``segment`` begins."""
        return sum(self.layer_bytes(layer, segment) for layer in range(self.geometry.layers))

    def layer_tokens(self, layer: int, segment: int) -> float:
        """Mean tokens per head that ``layer`` holds for ``segment``."""
        held = sum(len(group.heads) * group.capacity[segment] for group in self.layers[layer])
        return held / self.geometry.heads

    @cached_property
    def nominal_bytes(self) -> int:
        """The most that is held between two segments: the sum of capacities, as papers print it."""
        return max(self.held_bytes(segment) for segment in range(len(self.geometry.schedule)))

    @cached_property
    def peak_bytes(self) -> int:
        """The most that is allocated at any moment, scratch included."""
        return max(moment.peak for moment in self.moments())

    @cached_property
    def scratch_bytes(self) -> int:
        """The most that is allocated beside the held history at any moment."""
        return max(moment.peak - min(moment.before, moment.after) for moment in self.moments())

    def nominal_in(self, convention: Convention) -> int:
        """``nominal_bytes`` as a paper counts them.

        Args:
            convention: the bytes of a key and a value element, and whether the last segment's tokens are added.
        """
        schedule, elements = self.geometry.schedule, self.geometry.head_dim * self.geometry.rows
        held = self.nominal_bytes // self.head_token_bytes
        if convention.last_segment:
            held += self.geometry.layers * self.geometry.heads * schedule[len(schedule) - 1].tokens
        return elements * held * (convention.key_bytes + convention.value_bytes)

    @cached_property
    def mean_tokens(self) -> float:
        """Tokens per head and layer at the boundary where most is held."""
        schedule, layers = self.geometry.schedule, range(self.geometry.layers)
        totals = (sum(self.layer_tokens(layer, index) for layer in layers) for index in range(len(schedule)))
        return max(totals) / self.geometry.layers

    def moments(self) -> Iterator[Moment]:
        """Every (segment, layer) moment in the order of execution."""
        held = 0
        for segment in range(len(self.geometry.schedule)):
            for layer, groups in enumerate(self.layers):
                before, peak = held, held
                for group in groups:
                    now, later = self.group_bytes(group, segment), self.group_bytes(group, segment + 1)
                    peak = max(peak, held - now + self.working_bytes(group, segment))
                    held += later - now
                peak += self.observed_bytes(segment)
                yield Moment(segment, layer, before, max(peak, held), held)

    def trims(self, segment: int) -> bool:
        """Whether any head group drops tokens after ``segment``."""
        tokens = self.geometry.schedule.tokens
        return segment + 1 < len(tokens) and any(
            0 < group.capacity[segment + 1] < group.capacity[segment] + tokens[segment]
            for groups in self.layers
            for group in groups
        )

    def observed_bytes(self, segment: int) -> int:
        """Bytes of the observation queries of one layer, set aside while it works on ``segment``."""
        queries = self.observation[segment] if self.observation and self.trims(segment) else 0
        return queries * self.geometry.layer_token_bytes // 2

    def gathered_bytes(self, group: HeadGroup, segment: int) -> int:
        """Bytes of the current query, key and value of ``group`` where it is only part of a layer's heads."""
        if len(group.heads) == self.geometry.heads:
            return 0
        return 3 * len(group.heads) * self.geometry.schedule.tokens[segment] * self.geometry.head_token_bytes // 2

    def working_bytes(self, group: HeadGroup, segment: int) -> int:
        """The most that ``group`` itself allocates during ``segment``.

        Keys and values are assembled one after the other as [history ; current], each freeing its old copy, and
        survivors are copied out one after the other too, so that at most half of a second copy ever exists.
        """
        heads, rows = len(group.heads), self.geometry.rows
        held = group.capacity[segment]
        kept = 0 if segment + 1 == len(group.capacity) else group.capacity[segment + 1]
        candidates = held + self.geometry.schedule.tokens[segment]
        half = heads * self.geometry.head_token_bytes // 2
        origin = heads * rows * self.origin_bytes
        origins = origin * candidates if kept else 0
        pool = 2 * half * candidates if held or kept else 0
        moments = [(2 * half + origin) * held + origins, pool + origins + (half * held if pool else 0)]
        if 0 < kept < candidates:
            indices = heads * rows * kept * INDEX_BYTES
            choosing = self.choosing_bytes(heads, candidates)
            moments.append(pool + origins + indices + max(choosing, half * kept))
        return max(moments) + self.gathered_bytes(group, segment)

    def scored_rows(self, heads: int, candidates: int) -> int:
        """Rows of ``heads`` heads that are scored together; a strict plan scores one by one."""
        if self.strict:
            return 1
        return min(self.geometry.rows, max(1, SCORING_LIMIT // self._row_bytes(heads, candidates)))

    def choosing_bytes(self, heads: int, candidates: int) -> int:
        """Scratch for scoring ``candidates`` tokens of ``heads`` heads and choosing the survivors."""
        return self.scored_rows(heads, candidates) * self._row_bytes(heads, candidates)

    def _row_bytes(self, heads: int, candidates: int) -> int:
        queries = max(self.observation, default=0)
        scores = candidates * (SELECTION_BYTES + self.scoring_bytes + FLOAT_BYTES * queries)
        widened = min(SCORING_BLOCK, candidates) * FLOAT_BYTES * (self.geometry.head_dim + queries) if queries else 0
        return heads * (scores + widened)
