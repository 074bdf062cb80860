"""Groups of like tokens, and what they are carried on as [ours; token merging is Bolya et al., arXiv 2210.09461]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from scalekv.planning.token_merging import MERGING_BLOCK, SEARCH_BLOCK
from scalekv.planning.weighing import NEAR_BYTES

if TYPE_CHECKING:
    from torch import Tensor

    from scalekv.planning import Schedule, Segment

_LEAST = 1e-12

LAYOUTS = 64
"""Layouts of searches that are kept for the process: every layer, picture and part of a batch asks for the same few."""


def nearest_groups(
    key: Tensor,
    value: Tensor,
    count: Tensor,
    kept: int,
    rounds: int = 0,
    heights: Tensor | None = None,
    reach: int = 0,
) -> Tensor:
    """Groups around ``kept`` evenly spaced tokens: all others join the nearest.

    Near in key and value together, each over its own spread (that of the evenly spaced ones), in Euclid's sense, ties
    to the earlier group. Float32, a block of tokens at a time. With ``heights`` groups are in the order of the heights
    of their first tokens, and the tokens of a block look only at the groups as high in the picture as they are, and
    ``reach`` more to either side. Without ``rounds`` no group is empty.

    Args:
        key: ``(rows, heads, tokens, head_dim)``.
        value: the same shape.
        count: ``(rows, heads, tokens)`` float32, how many tokens each stands for.
        kept: number of groups, at most ``tokens``.
        rounds: how often the centres move to the means of their groups and everyone joins anew (Lloyd); 0 for never.
        heights: ``(tokens,)`` on the CPU, where in the picture each is, from 0 to 1; default all look at all.
        reach: groups beyond their own height that tokens look at, on either side.

    Returns:
        ``(rows, heads, tokens)`` int64, from 0 to ``kept - 1``.
    """
    import torch

    tokens = key.shape[2]
    levels = None if heights is None else heights.float().numpy()
    seeds, blocks = _layout(tokens, kept, None if levels is None else levels.tobytes(), reach)
    groups = torch.empty(key.shape[:3], dtype=torch.int64, device=key.device)
    search = search_for(key, value, groups, kept)
    centres, spreads, lengths = search.centres(seeds)
    search.join(centres, spreads, lengths, blocks)
    for _ in range(rounds):
        sums = torch.zeros(centres.shape[:3], device=key.device).scatter_add_(2, groups, count)
        parts = zip((key, value), spreads.unbind(-1), strict=True)
        means = [group_means(one, count, groups, sums) / spread[:, :, None, None] for one, spread in parts]
        centres = torch.where(sums[..., None] > 0, torch.cat(means, -1), centres)
        search.join(centres, spreads, search.lengths(centres), _blocks(np.arange(tokens), seeds, levels, reach))
    return groups


def candidate_heights(schedule: Schedule, segment: Segment, history: int) -> Tensor:
    """Where in the picture candidates are, from 0 at the top to 1, on the CPU.

    Tokens of a segment are at the middle of their row. History that was ever merged is in the order of its heights
    (see :func:`nearest_groups`), and grids cover a picture evenly, so its heights are evenly spaced. The very first
    token counts as the top, so that it is a centre for ever: attention rests on it.

    Args:
        schedule: the segments of the run.
        segment: whose tokens come last.
        history: tokens before them; as many as all earlier segments have if nothing was merged yet.

    Returns:
        ``(history + segment.tokens,)`` float32.
    """
    import torch

    return torch.from_numpy(_heights(schedule, segment, history).copy())


@lru_cache(maxsize=LAYOUTS)
def _heights(schedule: Schedule, segment: Segment, history: int) -> np.ndarray:
    """See :func:`candidate_heights`."""
    earlier = schedule.segments[: segment.index]
    if history == schedule.start(segment.index):
        before = [_rows(one) for one in earlier]
    else:
        before = [_middles(history)]
    heights = np.concatenate([*before, _rows(segment)])
    heights[0] = 0.0
    return heights


def _rows(segment: Segment) -> np.ndarray:
    """The heights of the tokens of a segment."""
    return np.tile(_middles(segment.height).repeat(segment.width), segment.frames)


def _middles(parts: int) -> np.ndarray:
    """The middles of equal parts of what goes from 0 to 1."""
    middles: np.ndarray = (np.arange(parts, dtype=np.float32) + np.float32(0.5)) / np.float32(max(1, parts))
    return middles


@lru_cache(maxsize=LAYOUTS)
def _layout(
    tokens: int, kept: int, heights: bytes | None, reach: int
) -> tuple[np.ndarray, list[tuple[np.ndarray, slice]]]:
    """The seeds of a search, and the blocks of all other tokens with the groups that each looks at.

    Args:
        tokens: how many there are.
        kept: number of groups.
        heights: bytes of ``(tokens,)`` float32; ``None`` for none.
        reach: see :func:`nearest_groups`.
    """
    levels = None if heights is None else np.frombuffer(heights, dtype=np.float32)
    seeds, others = _seeds(tokens, kept, levels)
    return seeds, _blocks(others, seeds, levels, reach)


def _seeds(tokens: int, kept: int, heights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """``kept`` positions from the first token to the last, in the order of their heights; and all others."""
    seeds = np.arange(kept) * (tokens - 1) // max(1, kept - 1)
    other = np.ones(tokens, dtype=bool)
    other[seeds] = False
    if heights is not None:
        seeds = seeds[heights[seeds].argsort(kind="stable")]
    return seeds, other.nonzero()[0]


def _blocks(
    places: np.ndarray, seeds: np.ndarray, heights: np.ndarray | None, reach: int
) -> list[tuple[np.ndarray, slice]]:
    """Blocks of the tokens at ``places``, and the groups that each looks at: around ``seeds`` of like heights."""
    kept, starts = len(seeds), range(0, len(places), SEARCH_BLOCK)
    if heights is None:
        return [(places[start : start + SEARCH_BLOCK], slice(0, kept)) for start in starts]
    places = places[heights[places].argsort(kind="stable")]
    ascending, levels = heights[places], heights[seeds]
    first = levels.searchsorted(ascending[::SEARCH_BLOCK]) - reach
    last = levels.searchsorted(ascending[[min(start + SEARCH_BLOCK, len(places)) - 1 for start in starts]], "right")
    # A block between two levels would see no group at all without a reach.
    limits = zip(first.clip(0, kept - 1).tolist(), (last + reach).clip(1, kept).tolist(), strict=True)
    windows = [slice(start, max(start + 1, stop)) for start, stop in limits]
    return [(places[start : start + SEARCH_BLOCK], window) for start, window in zip(starts, windows, strict=True)]


def _summed(numbers: Tensor, dim: int) -> Tensor:
    """The sum over one dimension, which is left with size 1, of numbers that are lost; in the order of `kernels/`."""
    left = numbers.shape[dim]
    while left > 1:
        half = left // 2
        numbers.narrow(dim, 0, half).add_(numbers.narrow(dim, left - half, half))
        left -= half
    return numbers.narrow(dim, 0, 1)


def _spreads(vectors: Tensor) -> Tensor:
    """Root mean square distance from the mean of each half of the channels.

    Args:
        vectors: ``(rows, heads, tokens, channels)``.

    Returns:
        ``(rows, heads, 2)`` float32.
    """
    rows, heads, tokens, channels = vectors.shape
    # The mean square less the square of the mean: on CPUs several times quicker than a centred copy.
    squares = _summed(vectors.square(), 2).div_(tokens)
    middle = _summed(vectors.clone(), 2).div_(tokens)
    each = squares.sub_(middle.square_()).view(rows, heads, 2, channels // 2)
    # By way of float64: PyTorch's root of float32 on CPUs is not the nearest number, and not that of the loops.
    return _summed(each, -1)[..., 0].clamp(min=0).double().sqrt_().float().clamp_(min=_LEAST)


def search_for(key: Tensor, value: Tensor, groups: Tensor, kept: int) -> Search:
    """A search, with compiled loops where there are some for the tensors. Arguments as of :class:`Search`."""
    from scalekv.kernels import runs_on

    return (SearchInLoops if runs_on(key, value) else Search)(key, value, groups, kept)


class Search:
    """Finds the nearest of some centres for tokens of a pair of tensors, a block of them at a time.

    Args:
        key: ``(rows, heads, tokens, head_dim)``.
        value: the same shape.
        groups: ``(rows, heads, tokens)`` int64, is written.
        kept: number of centres.
    """

    def __init__(self, key: Tensor, value: Tensor, groups: Tensor, kept: int) -> None:
        import torch

        self._key, self._value, self._groups = key, value, groups
        rows, heads, tokens, channels = key.shape
        block = rows * heads * min(SEARCH_BLOCK, tokens)
        self._features = torch.empty(block * 2 * channels, device=key.device)
        self._near = torch.empty(block * kept, device=key.device)

    def centres(self, places: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens as centres: key and value side by side, each over its spread, which is the same for all of a head.

        Each becomes the first of its group, which is written.

        Args:
            places: ``(kept,)`` int64, which tokens.

        Returns:
            ``(rows, heads, kept, 2 * head_dim)``, the spreads of keys and values, ``(rows, heads, 2)``, and what
            :meth:`lengths` gives, all float32.
        """
        import torch

        index = self._index(places)
        self._groups[:, :, index] = torch.arange(len(places), device=index.device)
        centres = torch.cat([half.index_select(2, index).float() for half in (self._key, self._value)], -1)
        spreads = _spreads(centres)
        for half, spread in zip(centres.chunk(2, -1), spreads.unbind(-1), strict=True):
            half.div_(spread[:, :, None, None])
        return centres, spreads, self.lengths(centres)

    def join(
        self, centres: Tensor, spreads: Tensor, lengths: Tensor, blocks: Sequence[tuple[np.ndarray, slice]]
    ) -> None:
        """Write the groups of the tokens of all blocks: the nearest centre among those of a token's window.

        Args:
            centres: ``(rows, heads, kept, 2 * head_dim)`` float32.
            spreads: ``(rows, heads, 2)`` float32, what keys and values are divided by.
            lengths: what :meth:`lengths` gives.
            blocks: places of at most ``SEARCH_BLOCK`` tokens each, and the centres that they look at.
        """
        import torch

        lengths, centres = lengths.flatten(0, 1)[:, None], centres.flatten(0, 1)
        vectors, _, channels = centres.shape
        for places, window in blocks:
            width = window.stop - window.start
            features = self._features[: vectors * len(places) * channels].view(vectors, len(places), channels)
            near = self._near[: vectors * len(places) * width].view(vectors, len(places), width)
            self._gather(places, spreads, features)
            torch.baddbmm(lengths[..., window], features, centres[:, window].mT, out=near)
            self._put_largest(near, places, window.start)

    def lengths(self, centres: Tensor) -> Tensor:
        """What is added to products with centres, so that the largest sum is the least distance.

        Args:
            centres: ``(rows, heads, kept, 2 * head_dim)`` float32.

        Returns:
            ``(rows, heads, kept)`` float32.
        """
        return _summed(centres.square(), -1)[..., 0].mul(-0.5)

    def _gather(self, places: np.ndarray, spreads: Tensor, features: Tensor) -> None:
        """Write keys and values at some places side by side, over their spreads: ``(vectors, n, 2 * head_dim)``."""
        index, shape = self._index(places), spreads.shape[:2]
        halves = zip((self._key, self._value), spreads.unbind(-1), features.chunk(2, -1), strict=True)
        for vectors, spread, half in halves:
            out = half.unflatten(0, shape)
            out.copy_(vectors.index_select(2, index))
            out.div_(spread[:, :, None, None])

    def _put_largest(self, near: Tensor, places: np.ndarray, offset: int) -> None:
        """Write where the largest of each row of ``near``, ``(vectors, places, window)``, is, and ``offset`` more."""
        # As argmax, in half the time on a CPU.
        nearest = near.max(-1).indices
        self._groups[:, :, self._index(places)] = nearest.unflatten(0, self._groups.shape[:2]).add_(offset)

    def _index(self, places: np.ndarray) -> Tensor:
        import torch

        return torch.from_numpy(places).to(self._groups.device)


class SearchInLoops(Search):
    """The same with compiled loops."""

    def __init__(self, key: Tensor, value: Tensor, groups: Tensor, kept: int) -> None:
        from scalekv.kernels import Searching

        super().__init__(key, value, groups, kept)
        self._loops = Searching((key, value), groups, self._features, self._near)

    def centres(self, places: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`Search.centres`."""
        return self._loops.centres(places, _LEAST)

    def lengths(self, centres: Tensor) -> Tensor:
        """See :meth:`Search.lengths`."""
        return self._loops.lengths(centres)

    def _gather(self, places: np.ndarray, spreads: Tensor, features: Tensor) -> None:
        self._loops.gather(places, spreads)

    def _put_largest(self, near: Tensor, places: np.ndarray, offset: int) -> None:
        self._loops.put_largest(places, near.shape[2], offset)


def group_means(source: Tensor, count: Tensor, groups: Tensor, sums: Tensor) -> Tensor:
    """The mean of every group, a token weighing as much as it stands for; members are added in their order.

    Args:
        source: ``(rows, heads, tokens, channels)``.
        count: ``(rows, heads, tokens)`` float32, for how many tokens each stands.
        groups: ``(rows, heads, tokens)`` int64, the group of each.
        sums: ``(rows, heads, kept)`` float32, the counts of every group; 0 for an empty one.

    Returns:
        ``(rows, heads, kept, channels)`` float32; 0 for empty groups.
    """
    import torch

    means = torch.empty((*sums.shape, source.shape[-1]), device=source.device)
    for part, some in means_by_part(source, count, groups, sums):
        means[part] = some
    return means


def means_by_part(
    source: Tensor, count: Tensor, groups: Tensor, sums: Tensor
) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
    """What :func:`group_means` gives, some rows and heads at a time; on a CPU as many as fit into the cache of a core.

    Yields:
        The rows and heads, and their means.
    """
    import torch

    channels, tokens = source.shape[-1], source.shape[2]
    for part in _parts(sums, channels):
        means = torch.zeros((*sums[part].shape, channels), device=source.device)
        for start in range(0, tokens, MERGING_BLOCK):
            block = (*part, slice(start, start + MERGING_BLOCK))
            weighted = source[block].to(torch.float32, copy=True, memory_format=torch.contiguous_format)
            weighted.mul_(count[block][..., None])
            _add_to_groups(means, groups[block], weighted)
        yield part, means.div_(sums[part].clamp(min=1)[..., None])


def _parts(sums: Tensor, channels: int) -> Iterator[tuple[slice, slice]]:
    """Rows and heads whose means are found together."""
    rows, heads, kept = sums.shape
    some_rows, some_heads = rows, heads
    if not sums.is_cuda:
        vectors = max(1, NEAR_BYTES // (4 * kept * channels))
        some_rows, some_heads = max(1, vectors // heads), min(heads, vectors)
    for row in range(0, rows, some_rows):
        for head in range(0, heads, some_heads):
            yield slice(row, row + some_rows), slice(head, head + some_heads)


def _add_to_groups(means: Tensor, groups: Tensor, weighted: Tensor) -> None:
    """Add ``(rows, heads, tokens, channels)`` to their groups of ``(rows, heads, kept, channels)``, in their order."""
    import torch

    rows, heads, kept, channels = means.shape
    first = torch.arange(0, rows * heads * kept, kept, device=means.device).view(rows, heads, 1)
    flat, vectors = (groups + first).flatten(), weighted.view(-1, channels)
    if means.is_cuda:
        # There index_add_ adds in any order; this sorts by group first, so that the same run gives the same bits.
        means.view(-1, channels).index_put_((flat,), vectors, accumulate=True)
    else:
        means.view(-1, channels).index_add_(0, flat, vectors)
