"""The bytes a cache really holds, counted as tensors come and go."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor

MaybeTensor = TypeVar("MaybeTensor", Tensor, None)


class Ledger:
    """Counts live bytes, their maximum since the last ``mark`` and their maximum over the run."""

    def __init__(self) -> None:
        self.live = 0
        self.peak = 0
        self.recent_peak = 0

    def take(self, tensor: Tensor) -> Tensor:
        """Count a tensor the cache has just allocated."""
        self._add(tensor.untyped_storage().nbytes())
        return tensor

    def give(self, tensor: Tensor | None) -> None:
        """Stop counting a tensor the cache is about to let go of."""
        if tensor is not None:
            self.live -= tensor.untyped_storage().nbytes()

    @contextmanager
    def scratch(self, nbytes: int) -> Iterator[None]:
        """Count ``nbytes`` of short-lived working memory."""
        self._add(nbytes)
        try:
            yield
        finally:
            self.live -= nbytes

    def mark(self) -> None:
        """Begin a new span for ``recent_peak``."""
        self.recent_peak = self.live

    def _add(self, nbytes: int) -> None:
        self.live += nbytes
        self.peak = max(self.peak, self.live)
        self.recent_peak = max(self.recent_peak, self.live)
