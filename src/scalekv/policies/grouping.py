"""Groups of like tokens, and what they are carried on as [ours; token merging is Bolya et al., arXiv 2210.09461]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scalekv.planning.token_merging import MERGING_BLOCK

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_LEAST = 1e-12


def nearest_groups(key: Tensor, value: Tensor, count: Tensor, kept: int, rounds: int = 0) -> Tensor:
    """Groups around ``kept`` evenly spaced tokens: everyone joins the nearest.

    Near in key and value together, each over its own spread (that of the evenly spaced ones), in Euclid's sense, ties
    to the earlier group. Float32, a block of tokens at a time.

    Args:
        key: ``(rows, heads, tokens, head_dim)``.
        value: the same shape.
        count: ``(rows, heads, tokens)`` float32, how many tokens each stands for.
        kept: number of groups, at most ``tokens``.
        rounds: how often the centres move to the means of their groups and everyone joins anew (Lloyd); 0 for never.

    Returns:
        ``(rows, heads, tokens)`` int64, from 0 to ``kept - 1``.
    """
    import torch

    pair = key, value
    seeds = [vectors.index_select(2, _spaced(key.shape[2], kept, key.device)).float() for vectors in pair]
    spreads = [_spread(vectors) for vectors in seeds]
    centres = torch.cat([vectors / spread for vectors, spread in zip(seeds, spreads, strict=True)], dim=-1)
    groups = _nearest(pair, centres, spreads)
    for _ in range(rounds):
        sums = torch.zeros(centres.shape[:3], device=key.device).scatter_add_(2, groups, count)
        parts = zip(pair, spreads, strict=True)
        means = torch.cat([group_means(one, count, groups, sums) / spread for one, spread in parts], dim=-1)
        centres = torch.where(sums[..., None] > 0, means, centres)
        groups = _nearest(pair, centres, spreads)
    return groups


def _spaced(tokens: int, kept: int, device: torch.device) -> Tensor:
    """``kept`` positions from the first to the last."""
    import torch

    return torch.arange(kept, device=device) * (tokens - 1) // max(1, kept - 1)


def _spread(vectors: Tensor) -> Tensor:
    """Root mean square distance from the mean, ``(rows, heads, 1, 1)``."""
    centred = vectors - vectors.mean(2, keepdim=True)
    return centred.square().sum(-1, keepdim=True).mean(2, keepdim=True).sqrt().clamp(min=_LEAST)


def _nearest(pair: tuple[Tensor, Tensor], centres: Tensor, spreads: Sequence[Tensor]) -> Tensor:
    """The nearest centre of every token, ``(rows, heads, tokens)``."""
    import torch

    key, _ = pair
    groups = torch.empty(key.shape[:3], dtype=torch.int64, device=key.device)
    lengths = centres.square().sum(-1)[:, :, None]
    for start in range(0, key.shape[2], MERGING_BLOCK):
        block = slice(start, start + MERGING_BLOCK)
        parts = zip(pair, spreads, strict=True)
        features = torch.cat([vectors[:, :, block].float() / spread for vectors, spread in parts], dim=-1)
        groups[:, :, block] = (features @ centres.mT).mul_(2).sub_(lengths).argmax(-1)
    return groups


def group_means(source: Tensor, count: Tensor, groups: Tensor, sums: Tensor) -> Tensor:
    """The mean of every group, a token weighing as much as it stands for.

    On CUDA devices numbers are added in any order, unless ``torch.use_deterministic_algorithms(True)``.

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
        means.scatter_add_(2, groups[:, :, block, None].expand_as(weighted), weighted)
    return means.div_(sums.clamp(min=1)[..., None])
