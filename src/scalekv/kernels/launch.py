"""Tensors to loops: what they work on, and how threads share it."""

from __future__ import annotations

import gc
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scalekv.kernels.availability import available

_NUMBERS = (torch.float32, torch.bfloat16)

_KINDS = {
    torch.float32: np.empty(0, np.float32),
    torch.bfloat16: np.empty(0, np.uint16),
    torch.uint8: np.empty(0, np.uint8),
    torch.int64: np.empty(0, np.int64),
}

SHARE = 2**15
"""Numbers that a thread is worth waking for."""


@dataclass(frozen=True, eq=False)
class IntegerForm:
    """How `cache/codecs.py` holds vectors in integers.

    Args:
        bits: of a number.
        signs: ``(head_dim,)`` float32, -1 or 1, of the channels, all of which are mixed with each other.
        fixed: the largest number of a vector before it is turned.
        smallest: magnitude; below it a vector is zeros.
        covered: the part of the range from minimum to maximum that levels cover.
    """

    bits: int
    signs: Tensor
    fixed: float
    smallest: float
    covered: float

    @cached_property
    def encoding(self) -> tuple[Any, ...]:
        """What the loops want to know, in float32 as PyTorch rounds it, and the signs."""
        root = self.fixed * math.sqrt(len(self.signs))
        numbers = map(np.float32, (self.fixed, root, self.smallest, (1 - self.covered) / 2))
        return (self.bits, *numbers), self.signs.numpy()

    @cached_property
    def decoding(self) -> tuple[Any, ...]:
        """The same for decoding."""
        return (self.bits, np.float32(math.sqrt(len(self.signs)))), self.signs.numpy()


def runs_on(*numbers: Tensor) -> bool:
    """Whether the loops can work on these tensors of numbers ``(rows, heads, tokens, channels)``.

    They can on a CPU, in float32 and bfloat16, channels side by side, where numba is installed; an empty tensor, or one
    that is to be differentiated, is left to PyTorch.
    """
    return available() and all(map(_suits, numbers))


def _suits(numbers: Tensor) -> bool:
    return (
        numbers.device.type == "cpu"
        and numbers.dtype in _NUMBERS
        and numbers.dim() == 4
        and numbers.numel() > 0
        and (numbers.stride(3) == 1 or numbers.shape[3] == 1)
        and not (numbers.requires_grad and torch.is_grad_enabled())
    )


def encode(form: IntegerForm, source: Tensor, out: Tensor) -> None:
    """Code vectors.

    Args:
        form: of the codes.
        source: ``(rows, heads, tokens, head_dim)``, see :func:`runs_on`.
        out: ``(rows, heads, tokens, bytes)`` uint8, is written.
    """
    from scalekv.kernels import loops

    rest = (tuple(source.shape[:3]), *form.encoding, _memory(source), _memory(out))
    _share(loops.encode, rest, math.prod(source.shape[:3]), source.shape[3])


def decode(form: IntegerForm, packed: Tensor, out: Tensor) -> None:
    """Turn coded vectors back into numbers.

    Args:
        form: of the codes.
        packed: ``(rows, heads, tokens, bytes)`` uint8.
        out: ``(rows, heads, tokens, head_dim)``, see :func:`runs_on`, is written.
    """
    from scalekv.kernels import loops

    rest = (tuple(out.shape[:3]), *form.decoding, _memory(packed), _memory(out))
    _share(loops.decode, rest, math.prod(out.shape[:3]), out.shape[3])


def merge(
    forms: tuple[IntegerForm, IntegerForm],
    pair: tuple[Tensor, Tensor],
    count: Tensor,
    groups: Tensor,
    sums: Tensor,
    outs: tuple[Tensor, Tensor],
) -> None:
    """Code the means of every group, a token weighing as much as it stands for; members are added in their order.

    Args:
        forms: of the codes of keys and values.
        pair: keys and values, each ``(rows, heads, tokens, head_dim)``, see :func:`runs_on`, of one dtype.
        count: ``(rows, heads, tokens)`` float32, for how many tokens each stands.
        groups: ``(rows, heads, tokens)`` int64, the group of each.
        sums: ``(rows, heads, kept)`` float32, is written: the counts of every group; 0 for an empty one.
        outs: keys and values, each ``(rows, heads, kept, bytes)`` uint8, are written.
    """
    from scalekv.kernels import loops

    rows, heads, tokens, channels = pair[0].shape
    halves = tuple(
        (*form.encoding, _memory(source), _memory(out)) for form, source, out in zip(forms, pair, outs, strict=True)
    )
    rest = ((rows, heads, tokens, sums.shape[2]), halves, _memory(count), _memory(groups), _memory(sums))
    _share(loops.merge, rest, rows * heads, 2 * tokens * channels)


class Searching:
    """The steps of a search for the nearest of some centres, prepared once for many calls.

    Args:
        pair: keys and values, ``(rows, heads, tokens, channels)``, see :func:`runs_on`.
        groups: ``(rows, heads, tokens)`` int64, contiguous, is written.
        features: room for the vectors of a block, flat float32.
        near: room for what the largest is sought of, flat float32.
    """

    def __init__(self, pair: tuple[Tensor, Tensor], groups: Tensor, features: Tensor, near: Tensor) -> None:
        self._rows, self._heads, self._tokens, self._channels = pair[0].shape
        self._held = (*pair, groups, features, near)
        first, second, self._groups, self._features, self._near = map(_memory, self._held)
        self._pair = first, second

    def centres(self, places: Any, least: float) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors at some places as centres: side by side, each half over its root mean square distance from its mean.

        Into groups goes the number of each centre.

        Args:
            places: ``(kept,)`` int64, a numpy array.
            least: the least distance that counts as one.

        Returns:
            ``(rows, heads, kept, 2 * channels)``, the distances, ``(rows, heads, 2)``, and what :meth:`lengths` gives,
            all float32.
        """
        from scalekv.kernels import loops

        vectors = (self._rows, self._heads)
        centres = torch.empty((*vectors, len(places), 2 * self._channels))
        spreads, lengths = torch.empty((*vectors, 2)), torch.empty((*vectors, len(places)))
        found = (_memory(centres), _memory(spreads), _memory(lengths))
        rest = (self._shape(places), self._pair, places, np.float32(least), self._tokens, found, self._groups)
        _share(loops.centres, rest, self._rows * self._heads, 2 * self._channels * len(places))
        return centres, spreads, lengths

    def lengths(self, centres: Tensor) -> Tensor:
        """Half the negative square of the length of every vector ``(rows, heads, kept, 2 * channels)``, contiguous."""
        from scalekv.kernels import loops

        out = torch.empty(centres.shape[:3])
        _share(loops.lengths, (_memory(centres), centres.shape[3], _memory(out)), out.numel(), centres.shape[3])
        return out

    def gather(self, places: Any, over: Tensor) -> None:
        """Write vectors at some places, side by side and divided, as ``(rows, heads, n, 2 * channels)`` features.

        Args:
            places: ``(n,)`` int64, a numpy array.
            over: what the vectors of each half are divided by, ``(rows, heads, 2)`` float32, contiguous.
        """
        from scalekv.kernels import loops

        rest = (self._shape(places), self._pair, places, _memory(over), self._features)
        _share(loops.gather, rest, self._rows * self._heads * len(places), 2 * self._channels)

    def put_largest(self, places: Any, width: int, offset: int) -> None:
        """Write into groups where the largest of every row of ``near`` is, the first of equal ones.

        Args:
            places: ``(n,)`` int64, a numpy array: where in ``(rows, heads, tokens)`` the answers belong.
            width: ``near`` is read as ``(rows, heads, n, width)``.
            offset: is added to the answers.
        """
        from scalekv.kernels import loops

        rest = (self._near, width, places, offset, self._groups, self._tokens)
        _share(loops.largest, rest, self._rows * self._heads * len(places), width)

    def _shape(self, places: Any) -> tuple[int, int, int]:
        return self._heads, len(places), self._channels


def _memory(tensor: Tensor) -> tuple[int, Any, tuple[int, ...]]:
    """What a loop needs to know of a tensor, which must live for as long as the loop runs: see `loops.py`."""
    return tensor.data_ptr(), _KINDS[tensor.dtype], tensor.stride()[:3]


def _share(loop: Any, rest: tuple[Any, ...], items: int, numbers: int) -> None:
    """Run a loop over all items, of so many numbers each, on as many threads as PyTorch uses and are worth it."""
    threads = max(1, min(torch.get_num_threads(), items, items * numbers // SHARE))
    compilations = len(loop.overloads)
    if threads == 1:
        loop(0, items, *rest)
    else:
        ends = [items * number // threads for number in range(threads + 1)]
        pool = _pool(torch.get_num_threads())
        for done in [pool.submit(loop, *span, *rest) for span in pairwise(ends)]:
            done.result()
    if len(loop.overloads) != compilations:
        # The compiler leaves cycles behind that hold the tensors of the callers, and so the memory of a cache.
        gc.collect()


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that wait for work, kept for the process as PyTorch keeps its own; a forked process gets its own."""
    os.register_at_fork(after_in_child=_pool.cache_clear)
    return ThreadPoolExecutor(threads, thread_name_prefix="scalekv")
