"""Bytes while a head group's history is coded, or becomes so. Pure arithmetic, in the order in which the cache works.

A coded history stays where it is while it is read: some rows at a time are decoded straight into [history ; current],
attended and let go. Survivors are copied as they are stored, newcomers are encoded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from scalekv.planning.codecs import VectorCodec, block_tokens

if TYPE_CHECKING:
    from scalekv.planning.plan import CachePlan, HeadGroup

POSITION_BYTES = 48
"""Scratch of one survivor's vector for positions, and whether it is history, while it is carried on."""

INDEX_BYTES = 8


class Carrying(NamedTuple):
    """How keys or values are carried on.

    Args:
        tokens: that are encoded together.
        scratch: bytes that takes.
    """

    tokens: int
    scratch: int


def decoded_rows(plan: CachePlan, group: HeadGroup, segment: int) -> int:
    """Rows of coded history that are decoded together: as many as fit where the segment's own keys and values would.

    So no more is assembled than a plan without codecs assembles; at least one row, under a strict plan only one.
    """
    if plan.strict:
        return 1
    room = plan.geometry.rows * plan.geometry.schedule.tokens[segment]
    return min(plan.geometry.rows, max(1, room // plan.candidates(group, segment)))


def decoding_tokens(plan: CachePlan, group: HeadGroup, codec: VectorCodec, rows: int) -> int:
    """Tokens of history that are decoded together."""
    return block_tokens(rows * len(group.heads), codec.decoding_bytes(plan.geometry.head_dim), plan.strict)


def decoding_scratch(plan: CachePlan, group: HeadGroup, segment: int, codec: VectorCodec, rows: int) -> int:
    """Scratch of decoding keys or values of ``rows`` rows."""
    tokens = min(group.capacity[segment], decoding_tokens(plan, group, codec, rows))
    return rows * len(group.heads) * tokens * codec.decoding_bytes(plan.geometry.head_dim)


def carrying(plan: CachePlan, group: HeadGroup, segment: int, codec: VectorCodec) -> Carrying:
    """How keys or values are carried on from ``segment``; all rows together."""
    geometry = plan.geometry
    each = codec.encoding_bytes(geometry.head_dim, geometry.element_bytes)
    if chosen(plan, group, segment):
        gathered = geometry.head_dim * geometry.element_bytes
        each += gathered + 3 * codec.vector_bytes(geometry.head_dim, geometry.element_bytes) + POSITION_BYTES
    vectors = geometry.rows * len(group.heads)
    tokens = min(plan.carried(group, segment), block_tokens(vectors, each, plan.strict))
    return Carrying(tokens, vectors * tokens * each)


def chosen(plan: CachePlan, group: HeadGroup, segment: int) -> bool:
    """Whether survivors are chosen by scores."""
    return group.sources is None and 0 < plan.carried(group, segment) < plan.candidates(group, segment)


def coded_working_bytes(plan: CachePlan, group: HeadGroup, segment: int) -> int:
    """The most that ``group`` itself allocates during ``segment``, where it reads or writes coded history."""
    held, candidates, kept = group.capacity[segment], plan.candidates(group, segment), plan.carried(group, segment)
    reads = plan.reads_coded(group, segment)
    whole = len(group.heads) * plan.geometry.head_token_bytes // 2
    mark = len(group.heads) * plan.geometry.rows * plan.mark_bytes
    judged = plan.judges(group, segment)
    marks = mark * candidates if kept or judged else 0
    stored = plan.group_bytes(group, segment) - mark * held
    indices = _indices(plan, group, segment)
    moments = [stored + mark * held + marks]
    if reads:
        rows, base = decoded_rows(plan, group, segment), stored + marks
        part = whole * rows // plan.geometry.rows * candidates
        for number, codec in enumerate(group.halves_at(segment), start=1):
            moments.append(base + indices + number * part + decoding_scratch(plan, group, segment, codec, rows))
    else:
        rows, base, part = plan.geometry.rows, marks, whole * candidates
        moments.append(base + 2 * part + whole * held)
    read = base + indices + 2 * part
    if plan.remembers(segment):
        moments.append(read + _choosing(plan, group, segment, rows))
    if judged:
        moments.append(read + _judging(plan, group, segment, rows))
    if kept:
        moments.append(indices + carrying_peak(plan, group, segment, reads))
    return max(*moments, read) + plan.gathered_bytes(group, segment)


def _indices(plan: CachePlan, group: HeadGroup, segment: int) -> int:
    """Bytes of the chosen positions, of all rows."""
    if not plan.judges(group, segment):
        return 0
    return len(group.heads) * plan.geometry.rows * INDEX_BYTES * sum(plan.chosen(group, segment))


def _choosing(plan: CachePlan, group: HeadGroup, segment: int, rows: int) -> int:
    return plan.choosing_bytes(len(group.heads), plan.candidates(group, segment), rows)


def _judging(plan: CachePlan, group: HeadGroup, segment: int, rows: int) -> int:
    """Scratch beside the candidates of ``rows`` rows: scores, or a copy of those that are attended to."""
    attended, copies = plan.attended(group, segment), 0
    if attended < plan.candidates(group, segment):
        geometry = plan.geometry
        vector = 2 * geometry.head_dim * geometry.element_bytes
        copies = rows * len(group.heads) * attended * (vector + INDEX_BYTES)
    return max(_choosing(plan, group, segment, rows), copies)


def carrying_peak(plan: CachePlan, group: HeadGroup, segment: int, reads: bool) -> int:
    """The most while keys, then values, then marks are carried on, each letting go of its source."""
    geometry, heads = plan.geometry, len(group.heads) * plan.geometry.rows
    held, candidates, kept = group.capacity[segment], plan.candidates(group, segment), plan.carried(group, segment)
    marks = heads * plan.mark_bytes * candidates
    halves = group.halves_at(segment + 1)
    new = [heads * kept * half.vector_bytes(geometry.head_dim, geometry.element_bytes) for half in halves]
    if reads:
        old = [heads * held * half.vector_bytes(geometry.head_dim, geometry.element_bytes) for half in halves]
    else:
        old = [heads * candidates * geometry.head_dim * geometry.element_bytes] * 2
    scratch = [carrying(plan, group, segment, half).scratch for half in halves]
    moments = [
        marks + sum(old) + new[0] + scratch[0],
        marks + old[1] + sum(new) + scratch[1],
    ]
    if kept < candidates:
        moments.append(sum(new) + marks + heads * plan.mark_bytes * kept)
    return max(moments)
