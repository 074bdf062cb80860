"""An independent witness of memory: counts the storages of all tensors that operations create and that still live."""

from __future__ import annotations

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class LiveBytes(TorchDispatchMode):
    """While active, tracks storages created by any operation; ``live`` now and ``peak`` since ``reset``.

    Memory that an operator takes and returns within itself is not seen.
    """

    def __init__(self, known: tuple[torch.Tensor, ...] = ()) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._alive: set[int] = set()
        for tensor in known:
            self._alive.add(tensor.untyped_storage()._cdata)

    def reset(self) -> None:
        self.peak = self.live

    def _gone(self, key: int, nbytes: int) -> None:
        self.live -= nbytes
        self._alive.discard(key)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor):
                self._track(tensor.untyped_storage())
        self.peak = max(self.peak, self.live)
        return result

    def _track(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._alive and storage.nbytes():
            self._alive.add(key)
            self.live += storage.nbytes()
            weakref.finalize(storage, self._gone, key, storage.nbytes())
