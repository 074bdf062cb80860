"""Bytes of attention that adds up its weights in passing. Pure arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scalekv.planning.geometry import CacheGeometry

NEAR_BYTES = 2**20
"""Bytes in the cache of a core: work within these is several times quicker."""

WEIGHED_QUERIES = 128
"""Queries whose weights exist together."""

_FLOAT_BYTES = 4


def weighed_heads(heads: int, queries: int, tokens: int) -> int:
    """Heads of one row whose weights exist together: as many as stay near, at least one."""
    return min(heads, max(1, NEAR_BYTES // (_FLOAT_BYTES * min(queries, WEIGHED_QUERIES) * tokens)))


def mass_bytes(geometry: CacheGeometry, heads: int, tokens: int) -> int:
    """Bytes of the sums, of all rows."""
    return _FLOAT_BYTES * geometry.rows * heads * tokens


def weighing_scratch(geometry: CacheGeometry, heads: int, queries: int, tokens: int) -> int:
    """Scratch beside the sums: keys and values in float32, queries with their outputs, logits and weights."""
    block = min(queries, WEIGHED_QUERIES)
    vectors = 2 * geometry.head_dim * (tokens + block) + tokens
    return weighed_heads(heads, queries, tokens) * _FLOAT_BYTES * (vectors + 2 * block * tokens)
