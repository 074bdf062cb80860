"""Cache plans: what every layer holds at every moment of a run, in exact bytes, before a weight is loaded.

A plan is the policy's decision for one geometry and budget. The cache executes it to the byte, so the figures here are
the figures that are measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from scalekv.planning.codecs import Codec, VectorCodec
from scalekv.planning.coding import coded_working_bytes
from scalekv.planning.geometry import CacheGeometry, Convention
from scalekv.planning.profile import Profile
from scalekv.planning.token_merging import COUNT_BYTES, merging_working_bytes
from scalekv.planning.weighing import mass_bytes, weighing_scratch

SELECTION_BYTES = 32
"""Bytes that choosing the survivors takes per candidate token of one head and one row (scores, marks, ranks)."""

SCORING_BLOCK = 256
"""Candidate keys that are widened to float32 together while scores are computed."""

QUERY_BLOCK = 64
"""Observation queries whose logits exist together while scores are computed."""

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
        attended: for every segment, the tokens of history and current segment together that it attends to; ``None``
            for all of them. Fewer means that the candidates are judged before attention.
        sources: for every segment, the earlier segments that are held whole, for policies that drop whole segments;
            ``None`` for policies that score tokens.
        role: what the policy calls these heads (``"contextual"``), for people and for its own scoring.
        codec: how history is held from segment ``coded_from`` on; ``None`` for the compute dtype throughout.
        coded_from: first segment whose history is in ``codec``, at least 1; what is coded stays coded.
        finer: codecs that history is held in before that, each with its first segment, ascending.
    """

    heads: tuple[int, ...]
    capacity: tuple[int, ...]
    attended: tuple[int, ...] | None = None
    sources: tuple[tuple[int, ...], ...] | None = None
    role: str = ""
    codec: Codec | None = None
    coded_from: int = 1
    finer: tuple[tuple[int, Codec], ...] = ()

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Of what tells groups apart: plans look their groups up many times."""
        return hash((self.heads, self.capacity))

    def codec_at(self, segment: int) -> Codec | None:
        """How history for ``segment`` is held; ``None`` for the compute dtype."""
        for start, codec in self._stages:
            if segment >= start:
                return codec
        return None

    @cached_property
    def _stages(self) -> tuple[tuple[int, Codec], ...]:
        """First segments and codecs, the last one first."""
        return () if self.codec is None else ((self.coded_from, self.codec), *reversed(self.finer))

    def halves_at(self, segment: int) -> tuple[VectorCodec, VectorCodec]:
        """The codecs of keys and values of history for ``segment``, which is coded."""
        codec = self.codec_at(segment)
        assert codec is not None
        return codec.halves


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
        memory_bytes: bytes kept per token, head and row for a score that adds up over segments (0 or 4).
        scoring_bytes: scratch per candidate token, head and row that scoring takes beside logits.
        observation: for every segment, the queries that score its candidates; empty for none anywhere.
        merging: whether candidates are merged to as many as there is room for, instead of dropped.
        profile: the calibration it was planned with, for policies whose scores need it.

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
    memory_bytes: int = 0
    scoring_bytes: int = 0
    observation: tuple[int, ...] = ()
    merging: bool = False
    profile: Profile | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.layers) != self.geometry.layers:
            raise ValueError(f"plan has {len(self.layers)} layers, geometry {self.geometry.layers}")
        checked: set[object] = set()
        for groups in self.layers:
            if sorted(head for group in groups for head in group.heads) != list(range(self.geometry.heads)):
                raise ValueError("the head groups of a layer must partition its heads")
            for group in groups:
                lists = (group.capacity, group.attended, group.sources)
                starts = [start for start, _ in group.finer] + [group.coded_from]
                if group.codec is not None and (starts[0] < 1 or starts != sorted(set(starts))):
                    raise ValueError(f"history cannot be coded from segments {starts} on")
                if lists not in checked:
                    self._check_capacity(group.capacity)
                    self._check_attended(group)
                    self._check_sources(group)
                    checked.add(lists)

    def _check_capacity(self, capacity: tuple[int, ...]) -> None:
        tokens = self.geometry.schedule.tokens
        if len(capacity) != len(tokens) or capacity[0] != 0:
            raise ValueError(f"expected one capacity per segment, the first 0, got {capacity}")
        for index in range(1, len(tokens)):
            if not 0 <= capacity[index] <= capacity[index - 1] + tokens[index - 1]:
                raise ValueError(f"capacity {capacity[index]} at segment {index} is more than can be held")

    def _check_attended(self, group: HeadGroup) -> None:
        attended = group.attended
        if attended is None:
            return
        if group.sources is not None or len(attended) != len(group.capacity):
            raise ValueError(f"expected one attended count per segment and no sources, got {attended}")
        for segment, count in enumerate(attended):
            if not 1 <= count <= self.candidates(group, segment):
                raise ValueError(f"cannot attend to {count} tokens at segment {segment}")

    def _check_sources(self, group: HeadGroup) -> None:
        tokens, sources = self.geometry.schedule.tokens, group.sources
        if sources is None:
            return
        for segment, held in enumerate(sources):
            if sum(tokens[source] for source in held) != group.capacity[segment] or list(held) != sorted(set(held)):
                raise ValueError(f"sources {held} at segment {segment} do not fill {group.capacity[segment]} tokens")
            if segment and not set(held) <= {*sources[segment - 1], segment - 1}:
                raise ValueError(f"sources {held} at segment {segment} were dropped before")

    @property
    def mark_bytes(self) -> int:
        """Bytes kept per token, head and row beside key and value."""
        return self.origin_bytes + self.memory_bytes

    @property
    def head_token_bytes(self) -> int:
        """Bytes one kept token takes in one head, over all rows, its marks included, in the compute dtype."""
        return self.geometry.head_token_bytes + self.geometry.rows * self.mark_bytes

    def holds_coded(self, group: HeadGroup, segment: int) -> bool:
        """Whether history of ``group`` for ``segment`` is held in its codec."""
        return group.codec_at(segment) is not None

    def reads_coded(self, group: HeadGroup, segment: int) -> bool:
        """Whether ``group`` has coded history to decode at ``segment``."""
        return group.capacity[segment] > 0 and self.holds_coded(group, segment)

    def codes(self, group: HeadGroup, segment: int) -> bool:
        """Whether ``group`` reads coded history at ``segment``, or encodes what it carries on."""
        encodes = self.carried(group, segment) > 0 and self.holds_coded(group, segment + 1)
        return encodes or self.reads_coded(group, segment)

    @cached_property
    def coded_from(self) -> int | None:
        """The first segment whose history is coded in some head; ``None`` if nothing ever is."""
        last = len(self.geometry.schedule) - 1
        groups = [group for layer in self.layers for group in layer]
        return next((at for at in range(last + 1) if any(self.holds_coded(group, at) for group in groups)), None)

    @cached_property
    def codec(self) -> str:
        """How history is held in the end: ``"none"``, ``"int8"``, ``"int8/int4"``; several if head groups differ."""
        last = len(self.geometry.schedule) - 1
        names = {
            str(group.codec_at(last)) if self.holds_coded(group, last) else "none"
            for groups in self.layers
            for group in groups
        }
        return ", ".join(sorted(names))

    def candidates(self, group: HeadGroup, segment: int) -> int:
        """Tokens that ``group`` has at ``segment``: its history and the segment itself."""
        return group.capacity[segment] + self.geometry.schedule.tokens[segment]

    def attended(self, group: HeadGroup, segment: int) -> int:
        """Tokens that ``group`` attends to at ``segment``."""
        return self.candidates(group, segment) if group.attended is None else group.attended[segment]

    def carried(self, group: HeadGroup, segment: int) -> int:
        """Tokens that ``group`` keeps after ``segment``; 0 after the last."""
        return group.capacity[segment + 1] if segment + 1 < len(group.capacity) else 0

    def judges(self, group: HeadGroup, segment: int) -> bool:
        """Whether candidates of ``group`` are scored at ``segment``."""
        candidates = self.candidates(group, segment)
        drops = group.sources is None and 0 < self.carried(group, segment) < candidates
        return drops or self.attended(group, segment) < candidates

    def observes(self, segment: int) -> bool:
        """Whether any head group scores at ``segment``, or adds to a score that is used later."""
        if self.memory_bytes:
            return any(self._judged[segment:])
        return self._judged[segment]

    @cached_property
    def _judged(self) -> tuple[bool, ...]:
        groups = [group for layer in self.layers for group in layer]
        return tuple(
            any(self.judges(group, segment) for group in groups) for segment in range(len(self.geometry.schedule))
        )

    def merges(self, group: HeadGroup, segment: int) -> bool:
        """Whether the candidates of ``group`` become other tokens after ``segment``: fewer, or in a coarser codec."""
        if not self.merging or not self.carried(group, segment):
            return False
        now, later = group.codec_at(segment), group.codec_at(segment + 1)
        return self.judges(group, segment) or (self.reads_coded(group, segment) and now != later)

    def counted(self, group: HeadGroup, segment: int) -> bool:
        """Whether history of ``group`` for ``segment`` holds tokens that stand for several, so that all are counted."""
        return self.merging and segment > self._first_merge[group]

    @cached_property
    def _first_merge(self) -> dict[HeadGroup, int]:
        """The first segment after which a group's tokens are merged; the number of segments for never."""
        last = len(self.geometry.schedule)
        groups = {group for layer in self.layers for group in layer}
        return {group: next((at for at in range(last) if self.merges(group, at)), last) for group in groups}

    def group_bytes(self, group: HeadGroup, segment: int) -> int:
        """Bytes of history that ``group`` holds for ``segment``; 0 past the last segment."""
        if segment >= len(group.capacity):
            return 0
        token = self.head_token_bytes
        codec = group.codec_at(segment)
        if codec is not None:
            vectors = codec.token_bytes(self.geometry.head_dim, self.geometry.element_bytes)
            token = self.geometry.rows * (vectors + self.mark_bytes)
        if self.counted(group, segment):
            token += self.geometry.rows * COUNT_BYTES
        return len(group.heads) * group.capacity[segment] * token

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
        """The tokens that are held where most are, as a paper counts their bytes; codecs are not counted.

        Args:
            convention: the bytes of a key and a value element, and whether the last segment's tokens are added.
        """
        schedule, elements = self.geometry.schedule, self.geometry.head_dim * self.geometry.rows
        held = self._most_slots
        if convention.last_segment:
            held += self.geometry.layers * self.geometry.heads * schedule[len(schedule) - 1].tokens
        return elements * held * (convention.key_bytes + convention.value_bytes)

    @cached_property
    def drift_bytes(self) -> int:
        """The most history that is held at any moment, also while only some layers are done with a segment."""
        return max(moment.after for moment in self.moments())

    @cached_property
    def attention_flops(self) -> int:
        """Multiplications and additions of both attention products over the run, all rows, softmax not counted."""
        tokens = self.geometry.schedule.tokens
        pairs = sum(
            len(group.heads) * tokens[segment] * self.attended(group, segment)
            for groups in self.layers
            for group in groups
            for segment in range(len(tokens))
        )
        return 4 * self.geometry.head_dim * self.geometry.rows * pairs

    @property
    def mean_tokens(self) -> float:
        """Tokens per head and layer at the boundary where most is held."""
        return self._most_slots / self.geometry.heads / self.geometry.layers

    @cached_property
    def _most_slots(self) -> int:
        """Tokens of all heads of all layers at the boundary where most are held."""
        groups = [group for layer in self.layers for group in layer]
        segments = range(len(self.geometry.schedule))
        return max(sum(len(group.heads) * group.capacity[segment] for group in groups) for segment in segments)

    def moments(self) -> Iterator[Moment]:
        """Every (segment, layer) moment in the order of execution."""
        for segment in range(len(self.geometry.schedule)):
            yield from self.segment_moments(segment)

    def segment_moments(self, segment: int) -> Iterator[Moment]:
        """The moments of one segment, layer by layer."""
        held = self.held_bytes(segment)
        for layer, groups in enumerate(self.layers):
            before, peak = held, held
            for group in groups:
                now, later = self.group_bytes(group, segment), self.group_bytes(group, segment + 1)
                peak = max(peak, held - now + self.working_bytes(group, segment))
                held += later - now
            peak += self.observed_bytes(segment)
            yield Moment(segment, layer, before, max(peak, held), held)

    def observed_bytes(self, segment: int) -> int:
        """Bytes of the observation queries of one layer, set aside while it works on ``segment``.

        All queries of a segment are read where they are.
        """
        queries = self.observation[segment] if self.observation and self.observes(segment) else 0
        if queries == self.geometry.schedule.tokens[segment]:
            return 0
        return queries * self.geometry.layer_token_bytes // 2

    def gathered_bytes(self, group: HeadGroup, segment: int) -> int:
        """Bytes of the current query, key and value of ``group`` where it is only part of a layer's heads."""
        if len(group.heads) == self.geometry.heads and self.geometry.parts == 1:
            return 0
        share = len(group.heads) * self.geometry.head_token_bytes // 2
        observed = self.observed_bytes(segment) * len(group.heads) // self.geometry.heads
        return 3 * share * self.geometry.schedule.tokens[segment] + observed

    def working_bytes(self, group: HeadGroup, segment: int) -> int:
        """The most that ``group`` itself allocates during ``segment``.

        Keys and values are assembled one after the other as [history ; current], each freeing its old copy, and
        survivors are copied out one after the other too, so that at most half of a second copy ever exists. Where
        fewer tokens are attended than carried, or others, both halves of what is attended are a copy for a while.
        """
        if self.counted(group, segment) or self.merges(group, segment):
            return merging_working_bytes(self, group, segment)
        if self.codes(group, segment):
            return coded_working_bytes(self, group, segment)
        held, candidates = group.capacity[segment], self.candidates(group, segment)
        kept, attended = self.carried(group, segment), self.attended(group, segment)
        if not held and not kept and attended == candidates:
            return self.gathered_bytes(group, segment)
        half = len(group.heads) * self.geometry.head_token_bytes // 2
        mark = len(group.heads) * self.geometry.rows * self.mark_bytes
        judged = self.judges(group, segment)
        marks = mark * candidates if kept or judged else 0
        pool = 2 * half * candidates + marks
        moments = [(2 * half + mark) * held + marks, pool + half * held]
        if self.remembers(segment):
            moments.append(pool + self._remembering_bytes(group, segment))
        if judged:
            moments.append(pool + self._judging_bytes(group, segment))
        elif 0 < kept < candidates:
            moments.append(pool + half * kept)
        return max(moments) + self.gathered_bytes(group, segment)

    def remembers(self, segment: int) -> bool:
        """Whether candidates add to their remembered score at ``segment``."""
        return bool(self.memory_bytes) and self.observes(segment)

    def weighs(self, group: HeadGroup, segment: int) -> bool:
        """Whether candidates add what all queries of ``segment`` pay them, so that the cache can add it up for them."""
        everyone = self.remembers(segment) and self.observation[segment] == self.geometry.schedule.tokens[segment]
        return everyone and self.attended(group, segment) == self.candidates(group, segment)

    def whole(self, group: HeadGroup, segment: int) -> bool:
        """Whether nothing of the history of ``group`` for ``segment`` was ever dropped."""
        return group.capacity[segment] == self.geometry.schedule.start(segment)

    def _remembering_bytes(self, group: HeadGroup, segment: int) -> int:
        """Scratch beside the candidates while they add to their remembered score."""
        heads, candidates = len(group.heads), self.candidates(group, segment)
        scratch, mass = self.choosing_bytes(heads, candidates), 0
        if self.weighs(group, segment):
            queries = self.geometry.schedule.tokens[segment]
            scratch = max(scratch, weighing_scratch(self.geometry, heads, queries, candidates))
            mass = mass_bytes(self.geometry, heads, candidates)
        return scratch + mass

    def _judging_bytes(self, group: HeadGroup, segment: int) -> int:
        """Scratch beside the candidates from scoring to the copied survivors."""
        heads, rows, candidates = len(group.heads), self.geometry.rows, self.candidates(group, segment)
        half = heads * self.geometry.head_token_bytes // 2
        index = heads * rows * INDEX_BYTES
        sizes = self.chosen(group, segment)
        indices = index * sum(sizes)
        copies = max(half * size for size in sizes)
        if self.views(group, segment):
            copies = max(copies, 2 * half * self.attended(group, segment))
        return indices + max(self.choosing_bytes(heads, candidates), copies)

    def chosen(self, group: HeadGroup, segment: int) -> tuple[int, ...]:
        """Sizes of the sets that are chosen at ``segment``, each once: what is attended, what is carried."""
        candidates = self.candidates(group, segment)
        sizes = (self.attended(group, segment), self.carried(group, segment))
        return tuple(dict.fromkeys(size for size in sizes if 0 < size < candidates))

    def views(self, group: HeadGroup, segment: int) -> bool:
        """Whether what is attended is a passing copy: fewer than the candidates, and not what is carried."""
        attended, kept = self.attended(group, segment), self.carried(group, segment)
        return attended < self.candidates(group, segment) and kept not in (0, attended)

    def scored_rows(self, heads: int, candidates: int, rows: int | None = None) -> int:
        """Rows of ``heads`` heads, of ``rows`` or of all, that are scored together; a strict plan scores one by one."""
        if self.strict:
            return 1
        most = self.geometry.rows if rows is None else rows
        return min(most, max(1, SCORING_LIMIT // self._row_bytes(heads, candidates)))

    def choosing_bytes(self, heads: int, candidates: int, rows: int | None = None) -> int:
        """Scratch for scoring ``candidates`` tokens of ``heads`` heads and choosing the survivors."""
        return self.scored_rows(heads, candidates, rows) * self._row_bytes(heads, candidates)

    def _row_bytes(self, heads: int, candidates: int) -> int:
        queries = min(max(self.observation, default=0), QUERY_BLOCK)
        scores = candidates * (SELECTION_BYTES + self.scoring_bytes + FLOAT_BYTES * queries)
        widened = min(SCORING_BLOCK, candidates) * FLOAT_BYTES * (self.geometry.head_dim + queries) if queries else 0
        return heads * (scores + widened)
