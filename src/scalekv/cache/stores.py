"""What a cache holds of one head group, and what it is looking at. Shapes are ``(rows, heads, tokens, head_dim)``."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from scalekv.planning import HeadGroup


@dataclass
class Store:
    """History of one head group: keys and values, and the marks that the policy wants beside them.

    Coded keys and values are ``(rows, heads, tokens, bytes)`` of uint8. Where tokens stand for several, ``count``
    ``(rows, heads, tokens)`` float32 says for how many.
    """

    plan: HeadGroup
    heads: Tensor | None
    key: Tensor | None = None
    value: Tensor | None = None
    origin: Tensor | None = None
    memory: Tensor | None = None
    count: Tensor | None = None


@dataclass
class Candidates:
    """Keys and values of some rows of one head group: kept history, then the current segment."""

    rows: slice
    key: Tensor
    value: Tensor
