"""Bytes while a head group's candidates are merged, or merged ones are read. Pure arithmetic, in the cache's order.

Every merged token stands for a number of tokens; attention adds its logarithm to the logit. Candidates are assembled as
ever, attended, sorted into groups some rows and heads at a time, and the mean key and value of every group written to
the new history, which takes the place of the old one when all are done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalekv.planning.codecs import block_tokens
from scalekv.planning.coding import carrying_peak, decoded_rows, decoding_scratch

if TYPE_CHECKING:
    from scalekv.planning.plan import CachePlan, HeadGroup

COUNT_BYTES = 4
"""Of the number of tokens that one token stands for, in one head and row."""

MERGING_BLOCK = 1024
"""Candidates that are added to the means of their groups together."""

SEARCH_BLOCK = 64
"""Candidates of like height that look for their nearest centre together."""

MERGING_LIMIT = 3 * 2**20
"""Where segments are small, scratch of the rows and heads that are merged together, in bytes; at least one head is."""

_INDEX_BYTES, _FLOAT_BYTES = 8, 4


def merged_together(plan: CachePlan, group: HeadGroup, segment: int, rows: int) -> tuple[int, int]:
    """Rows, and heads of each, that are merged together; a strict plan merges one head of one row at a time."""
    if plan.strict:
        return 1, 1
    heads = len(group.heads)
    vectors = max(1, _limit(plan) // _scratch(plan, group, segment, 1))
    return min(rows, max(1, vectors // heads)), min(heads, vectors)


def merging_scratch(plan: CachePlan, group: HeadGroup, segment: int, rows: int) -> int:
    """Scratch of merging the candidates of ``rows`` rows."""
    together, heads = merged_together(plan, group, segment, rows)
    return _scratch(plan, group, segment, together * heads)


def _limit(plan: CachePlan) -> int:
    """Where segments are large, as much as the keys and values of one picture's largest segment in one layer."""
    geometry = plan.geometry
    layer = geometry.heads * geometry.head_token_bytes * max(geometry.schedule.tokens)
    return max(MERGING_LIMIT, layer // geometry.batch)


def _scratch(plan: CachePlan, group: HeadGroup, segment: int, vectors: int) -> int:
    """Of ``vectors`` heads and rows: groups of all candidates, features and distances of those that look, and means.

    Where there is room for all candidates nobody looks.
    """
    geometry, candidates, kept = plan.geometry, plan.candidates(group, segment), plan.carried(group, segment)
    indices = 2 * _INDEX_BYTES * candidates
    vector = 2 * _FLOAT_BYTES * geometry.head_dim
    means, widened = vector * kept, vector * min(MERGING_BLOCK, candidates)
    if kept < candidates:
        looking = min(SEARCH_BLOCK, candidates)
        means, widened = 4 * means, max(widened, 2 * (vector + _FLOAT_BYTES * kept) * looking)
    coding = 0
    if plan.holds_coded(group, segment + 1):
        halves = group.halves_at(segment + 1)
        each = max(half.encoding_bytes(geometry.head_dim, geometry.element_bytes) for half in halves)
        coding = min(kept, block_tokens(vectors, each, plan.strict)) * each
    return vectors * (indices + means + widened + coding + 4 * _FLOAT_BYTES * (candidates + kept))


def counting_scratch(plan: CachePlan, group: HeadGroup, segment: int, rows: int) -> int:
    """Scratch of the logarithms of counts, in float32 and in the compute dtype."""
    each = 2 * _FLOAT_BYTES + plan.geometry.element_bytes
    return rows * len(group.heads) * plan.candidates(group, segment) * each


def merging_working_bytes(plan: CachePlan, group: HeadGroup, segment: int) -> int:
    """The most that ``group`` itself allocates during ``segment``, where it merges or reads what was merged."""
    geometry, vectors = plan.geometry, plan.geometry.rows * len(group.heads)
    held, candidates = group.capacity[segment], plan.candidates(group, segment)
    kept, merges = plan.carried(group, segment), plan.merges(group, segment)
    half = len(group.heads) * geometry.head_token_bytes // 2
    old_counts = COUNT_BYTES * vectors * held if plan.counted(group, segment) else 0
    counts = COUNT_BYTES * vectors * candidates
    stored = plan.group_bytes(group, segment) - old_counts
    new = plan.group_bytes(group, segment + 1) if merges else 0
    if plan.reads_coded(group, segment):
        rows = decoded_rows(plan, group, segment)
        part = half * rows // geometry.rows * candidates
        base = stored + counts + new
        moments = [stored + old_counts + counts]
        moments += [
            base + number * part + decoding_scratch(plan, group, segment, codec, rows)
            for number, codec in enumerate(group.halves_at(segment), start=1)
        ]
    else:
        rows, part = geometry.rows, half * candidates
        base = counts + new
        moments = [old_counts + 2 * part + half * held, old_counts + counts + 2 * part]
    read = base + 2 * part
    moments.append(read + counting_scratch(plan, group, segment, rows))
    if merges:
        moments.append(read + merging_scratch(plan, group, segment, rows))
    elif kept and plan.codes(group, segment):
        moments.append(counts + carrying_peak(plan, group, segment, plan.reads_coded(group, segment)))
    return max(moments) + plan.gathered_bytes(group, segment)
