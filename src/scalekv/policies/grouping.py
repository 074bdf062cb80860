"""Groups of like tokens, and what they are carried on as [ours; token merging is Bolya et al., arXiv 2210.09461]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from scalekv.planning.token_merging import MERGING_BLOCK, SEARCH_BLOCK
from scalekv.planning.weighing import NEAR_BYTES

if TYPE_CHECKING:
    from torch import Tensor

    from scalekv.planning import Schedule, Segment

_LEAST = 1e-12


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

    pair, (rows, heads, tokens, _) = (key, value), key.shape
    positions = _spaced(tokens, kept)
    if heights is not None:
        positions = positions[heights[positions].sort(stable=True)[1]]
    levels = None if heights is None else heights[positions]
    others = torch.ones(tokens, dtype=torch.bool).index_fill_(0, positions, False).nonzero()[:, 0]
    positions = positions.to(key.device)
    centres = torch.empty((rows, heads, kept, 2 * key.shape[-1]), device=key.device)
    spreads = []
    for vectors, seeds in zip(pair, centres.chunk(2, -1), strict=True):
        _gather(vectors, positions, None, seeds)
        spreads.append(_spread(seeds))
        seeds.div_(spreads[-1])
    groups = torch.empty((rows, heads, tokens), dtype=torch.int64, device=key.device)
    groups.index_copy_(2, positions, torch.arange(kept, device=key.device).expand(rows, heads, -1))
    _join(groups, pair, centres, spreads, _blocks(others, heights, levels, kept, reach))
    for _ in range(rounds):
        sums = torch.zeros(centres.shape[:3], device=key.device).scatter_add_(2, groups, count)
        parts = zip(pair, spreads, strict=True)
        means = torch.cat([group_means(one, count, groups, sums) / spread for one, spread in parts], dim=-1)
        centres = torch.where(sums[..., None] > 0, means, centres)
        _join(groups, pair, centres, spreads, _blocks(torch.arange(tokens), heights, levels, kept, reach))
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

    def rows(one: Segment) -> Tensor:
        middles = (torch.arange(one.height) + 0.5) / one.height
        return middles.repeat_interleave(one.width).repeat(one.frames)

    earlier = schedule.segments[: segment.index]
    if history == schedule.start(segment.index):
        before = [rows(one) for one in earlier]
    else:
        before = [(torch.arange(history) + 0.5) / max(1, history)]
    heights = torch.cat([*before, rows(segment)])
    heights[0] = 0.0
    return heights


def _spaced(tokens: int, kept: int) -> Tensor:
    """``kept`` positions from the first to the last."""
    import torch

    return torch.arange(kept) * (tokens - 1) // max(1, kept - 1)


def _blocks(
    places: Tensor, heights: Tensor | None, levels: Tensor | None, kept: int, reach: int
) -> list[tuple[Tensor, slice]]:
    """Blocks of the tokens at ``places``, and the groups, of ascending ``levels``, that each looks at."""
    import torch

    if heights is None or levels is None:
        return [(block, slice(0, kept)) for block in places.split(SEARCH_BLOCK)]
    ascending, sequence = heights[places].sort(stable=True)
    blocks = ascending.split(SEARCH_BLOCK) if len(places) else ()
    ends = torch.tensor([[block[0], block[-1]] for block in blocks]).view(-1, 2).mT
    first = torch.searchsorted(levels, ends[0].contiguous()) - reach
    last = torch.searchsorted(levels, ends[1].contiguous(), right=True) + reach
    # A block between two levels would see no group at all without a reach.
    limits = zip(first.clamp(0, kept - 1).tolist(), last.clamp(1, kept).tolist(), strict=True)
    windows = [slice(start, max(start + 1, stop)) for start, stop in limits]
    return list(zip(places[sequence].split(SEARCH_BLOCK), windows, strict=True)) if windows else []


def _spread(vectors: Tensor) -> Tensor:
    """Root mean square distance from the mean, ``(rows, heads, 1, 1)``."""
    # The mean square less the square of the mean: on CPUs several times quicker than a centred copy.
    squares = vectors.norm(dim=-1, keepdim=True).square_().mean(2, keepdim=True)
    middle = vectors.mean(2, keepdim=True).norm(dim=-1, keepdim=True).square_()
    spread: Tensor = squares.sub_(middle).clamp_(min=0).sqrt_().clamp_(min=_LEAST)
    return spread


def _join(
    groups: Tensor,
    pair: tuple[Tensor, Tensor],
    centres: Tensor,
    spreads: Sequence[Tensor],
    blocks: Sequence[tuple[Tensor, slice]],
) -> None:
    """Write into ``groups``, ``(rows, heads, tokens)``, the nearest centre among those of a token's window."""
    import torch

    rows, heads, _ = groups.shape
    lengths = centres.norm(dim=-1)[:, :, None].square_().div_(-2).flatten(0, 1)
    centres = centres.flatten(0, 1)
    widest = max((len(places) for places, _ in blocks), default=0)
    room = torch.empty((rows, heads, widest, centres.shape[-1]), device=groups.device)
    for block, window in blocks:
        features, places = room[:, :, : len(block)], block.to(groups.device)
        for vectors, spread, part in zip(pair, spreads, features.chunk(2, -1), strict=True):
            _gather(vectors, places, spread, part)
        near = torch.baddbmm(lengths[..., window], features.flatten(0, 1), centres[:, window].mT)
        _put_largest(near, places, window.start, groups)


def _gather(vectors: Tensor, places: Tensor, over: Tensor | None, out: Tensor) -> None:
    """Copy the tokens at ``places`` in float32, divided by what is ``(rows, heads, 1, 1)``."""
    from scalekv.kernels import gather, runs_on

    if runs_on(vectors, out):
        gather(vectors, places, over, out)
        return
    out.copy_(vectors.index_select(2, places))
    if over is not None:
        out.div_(over)


def _put_largest(near: Tensor, places: Tensor, offset: int, groups: Tensor) -> None:
    """Write where the largest of each row of ``near``, ``(vectors, places, window)``, is, and ``offset`` more."""
    from scalekv.kernels import largest, runs_on

    if runs_on(near[None]):
        largest(near, places, offset, groups)
        return
    # As argmax, in half the time on a CPU.
    nearest = near.max(-1).indices
    groups.index_copy_(2, places, nearest.unflatten(0, groups.shape[:2]).add_(offset))


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
