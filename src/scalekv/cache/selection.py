"""Which candidates survive: the best ``capacity`` of each head, in cache order."""

from __future__ import annotations

import torch
from torch import Tensor


def survivors(score: Tensor, capacity: int) -> Tensor:
    """Indices of the ``capacity`` largest scores, ascending; among equals the lower index survives.

    Runs without a device-to-host synchronisation: every shape follows from ``capacity``.

    Args:
        score: ``(..., tokens)`` float; NaN counts as the lowest.
        capacity: 1 <= capacity <= tokens.

    Returns:
        ``(..., capacity)`` int64.
    """
    score = torch.nan_to_num(score, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    threshold = torch.topk(score, capacity, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    keep = score > threshold
    room = capacity - keep.sum(-1, keepdim=True, dtype=torch.int32)
    tied = score == threshold
    keep |= tied & (tied.cumsum(-1, dtype=torch.int32) <= room)
    rank = keep.cumsum(-1, dtype=torch.int32)
    wanted = torch.arange(1, capacity + 1, dtype=torch.int32, device=score.device)
    return torch.searchsorted(rank, wanted.expand(*rank.shape[:-1], -1).contiguous())


def copy_rows(source: Tensor, index: Tensor) -> Tensor:
    """A new tensor with the tokens ``index`` of ``source``, copied row by row.

    Args:
        source: ``(rows, heads, tokens, channels)`` or ``(rows, heads, tokens)``, contiguous.
        index: ``(rows * heads * kept,)`` positions in ``source`` with its first three axes flattened.

    Returns:
        ``(rows, heads, kept, channels)`` or ``(rows, heads, kept)``.
    """
    rows, heads, tokens, *channels = source.shape
    picked = source.view(rows * heads * tokens, *channels).index_select(0, index)
    return picked.view(rows, heads, -1, *channels)


def flat_positions(index: Tensor, tokens: int) -> Tensor:
    """Turn ``(rows, heads, kept)`` token indices into positions in the flattened candidates, in place."""
    rows, heads, _ = index.shape
    base = torch.arange(0, rows * heads * tokens, tokens, device=index.device).view(rows, heads, 1)
    return index.add_(base).view(-1)
