"""Groups of like tokens, and what they are carried on as [ours; token merging is Bolya et al., arXiv 2210.09461]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scalekv.planning.token_merging import MERGING_BLOCK

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
    """Groups around ``kept`` evenly spaced tokens: everyone joins the nearest.

    Near in key and value together, each over its own spread (that of the evenly spaced ones), in Euclid's sense, ties
    to the earlier group. Float32, a block of tokens at a time. With ``heights`` groups are in the order of the heights
    of their first tokens, and the tokens of a block look only at the groups as high in the picture as they are, and
    ``reach`` more to either side.

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

    pair, positions = (key, value), _spaced(key.shape[2], kept)
    blocks = [(places, slice(0, kept)) for places in torch.arange(key.shape[2]).split(MERGING_BLOCK)]
    if heights is not None:
        levels, order = heights[positions].sort(stable=True)
        positions, blocks = positions[order], _windows(heights, levels, reach)
    positions, blocks = positions.to(key.device), [(places.to(key.device), window) for places, window in blocks]
    centres = torch.empty((*key.shape[:2], kept, 2 * key.shape[-1]), device=key.device)
    spreads = []
    for vectors, seeds in zip(pair, centres.chunk(2, -1), strict=True):
        seeds.copy_(vectors.index_select(2, positions))
        spreads.append(_spread(seeds))
        seeds.div_(spreads[-1])
    groups = _nearest(pair, centres, spreads, blocks)
    for _ in range(rounds):
        sums = torch.zeros(centres.shape[:3], device=key.device).scatter_add_(2, groups, count)
        parts = zip(pair, spreads, strict=True)
        means = torch.cat([group_means(one, count, groups, sums) / spread for one, spread in parts], dim=-1)
        centres = torch.where(sums[..., None] > 0, means, centres)
        groups = _nearest(pair, centres, spreads, blocks)
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


def _windows(heights: Tensor, levels: Tensor, reach: int) -> list[tuple[Tensor, slice]]:
    """Blocks of tokens of like height, and the groups, of ascending ``levels``, that each looks at."""
    import torch

    ascending, sequence = heights.sort(stable=True)
    blocks = ascending.split(MERGING_BLOCK)
    first = torch.searchsorted(levels, torch.stack([block[0] for block in blocks])) - reach
    last = torch.searchsorted(levels, torch.stack([block[-1] for block in blocks]), right=True) + reach
    kept = len(levels)
    # A block between two levels would see no group at all without a reach.
    ends = zip(first.clamp(0, kept - 1).tolist(), last.clamp(1, kept).tolist(), strict=True)
    windows = [slice(start, max(start + 1, stop)) for start, stop in ends]
    return list(zip(sequence.split(MERGING_BLOCK), windows, strict=True))


def _spread(vectors: Tensor) -> Tensor:
    """Root mean square distance from the mean, ``(rows, heads, 1, 1)``."""
    # The mean square less the square of the mean: on CPUs several times quicker than a centred copy.
    squares = vectors.norm(dim=-1, keepdim=True).square_().mean(2, keepdim=True)
    middle = vectors.mean(2, keepdim=True).norm(dim=-1, keepdim=True).square_()
    spread: Tensor = squares.sub_(middle).clamp_(min=0).sqrt_().clamp_(min=_LEAST)
    return spread


def _nearest(
    pair: tuple[Tensor, Tensor], centres: Tensor, spreads: Sequence[Tensor], blocks: Sequence[tuple[Tensor, slice]]
) -> Tensor:
    """The nearest centre of every token among those of its block's window, ``(rows, heads, tokens)``."""
    import torch

    key, _ = pair
    groups = torch.empty(key.shape[:3], dtype=torch.int64, device=key.device)
    lengths = centres.norm(dim=-1)[:, :, None].square_().div_(-2).flatten(0, 1)
    widest = max(len(places) for places, _ in blocks)
    room = torch.empty((*key.shape[:2], widest, centres.shape[-1]), device=key.device)
    for places, window in blocks:
        features = room[:, :, : len(places)]
        for vectors, spread, part in zip(pair, spreads, features.chunk(2, -1), strict=True):
            torch.div(vectors.index_select(2, places), spread, out=part)
        near = torch.baddbmm(lengths[..., window], features.flatten(0, 1), centres[:, :, window].flatten(0, 1).mT)
        groups.index_copy_(2, places, near.argmax(-1).unflatten(0, key.shape[:2]).add_(window.start))
    return groups


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

    means = torch.zeros((*sums.shape, source.shape[-1]), device=source.device)
    for start in range(0, source.shape[2], MERGING_BLOCK):
        block = slice(start, start + MERGING_BLOCK)
        weighted = source[:, :, block].float() * count[:, :, block, None]
        _add_to_groups(means, groups[:, :, block], weighted)
    return means.div_(sums.clamp(min=1)[..., None])


def _add_to_groups(means: Tensor, groups: Tensor, weighted: Tensor) -> None:
    """Add ``(rows, heads, tokens, channels)`` to their groups of ``(rows, heads, kept, channels)``."""
    import torch

    if not means.is_cuda:
        means.scatter_add_(2, groups[..., None].expand_as(weighted), weighted)
        return
    # There scatter_add_ adds in any order; this sorts by group first, so that the same run gives the same bits.
    rows, heads, kept, channels = means.shape
    first = torch.arange(0, rows * heads * kept, kept, device=means.device).view(rows, heads, 1)
    flat = (groups + first).flatten()
    means.view(-1, channels).index_put_((flat,), weighted.reshape(-1, channels), accumulate=True)
