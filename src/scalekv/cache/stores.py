"""What a cache holds of one head group, and what it is looking at. Shapes are ``(rows, heads, tokens, head_dim)``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scalekv.planning import CacheGeometry, HeadGroup

_TOGETHER = 32
"""Vectors of heads that one call writes on a CPU; many are written quicker head by head."""


class HeadIndex:
    """Where some heads are in tensors of the network ``(rows, heads, ...)``, as the cache counts rows and heads.

    Args:
        heads: their indices, as :class:`CacheGeometry` counts them.
        geometry: of the cache.
        device: of the tensors.
    """

    def __init__(self, heads: Sequence[int], geometry: CacheGeometry, device: torch.device) -> None:
        self._parts = geometry.parts
        self._own = [divmod(head, geometry.network_heads) for head in heads]
        parts, numbers = torch.tensor(self._own, device=device).view(-1, 2).unbind(1)
        self._places = (slice(None), numbers) if self._parts == 1 else (slice(None), parts, numbers)
        rows = torch.arange(geometry.rows, device=device)[:, None]
        self._vectors = ((parts * geometry.rows + rows) * geometry.network_heads + numbers).flatten()

    def take(self, tensor: Tensor) -> Tensor:
        """A copy of the heads of ``tensor``, ``(rows, their number, ...)``."""
        if tensor.is_cuda:
            return self._view(tensor)[self._places]
        if tensor.is_contiguous():
            own = tensor.view(-1, *tensor.shape[2:]).index_select(0, self._vectors)
            return own.view(-1, len(self._own), *tensor.shape[2:])
        return torch.stack(self._slices(tensor), dim=1)  # on CPUs several times quicker than by places

    def put(self, tensor: Tensor, own: Tensor) -> None:
        """Write what `take` would give."""
        if tensor.is_cuda:
            self._view(tensor)[self._places] = own
        elif tensor.is_contiguous() and len(self._vectors) <= _TOGETHER:
            tensor.view(-1, *tensor.shape[2:]).index_copy_(0, self._vectors, own.flatten(0, 1))
        else:
            for target, head in zip(self._slices(tensor), own.unbind(1), strict=True):
                target.copy_(head)

    def _slices(self, tensor: Tensor) -> list[Tensor]:
        """The part of each head."""
        view = self._view(tensor)
        return [view[:, head] if self._parts == 1 else view[:, part, head] for part, head in self._own]

    def _view(self, tensor: Tensor) -> Tensor:
        return tensor if self._parts == 1 else tensor.unflatten(0, (self._parts, -1)).transpose(0, 1)


@dataclass
class Store:
    """History of one head group: keys and values, and the marks that the policy wants beside them.

    Coded keys and values are ``(rows, heads, tokens, bytes)`` of uint8. Where tokens stand for several, ``count``
    ``(rows, heads, tokens)`` float32 says for how many. ``heads`` finds the group in a layer, see :class:`HeadIndex`;
    ``None`` for all of it.
    """

    plan: HeadGroup
    heads: HeadIndex | None
    key: Tensor | None = None
    value: Tensor | None = None
    origin: Tensor | None = None
    memory: Tensor | None = None
    count: Tensor | None = None


@dataclass
class Candidates:
    """Keys and values of some rows of one head group: kept history, then the current segment.

    ``mass`` is what all queries of the current segment pay to each, where attention has added it up.
    """

    rows: slice
    key: Tensor
    value: Tensor
    mass: Tensor | None = None
