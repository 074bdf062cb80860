"""Scores that several methods share, computed in float32 without ever building a full attention matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from scalekv.planning.plan import QUERY_BLOCK, SCORING_BLOCK

if TYPE_CHECKING:
    from torch import Tensor

    from scalekv.policies.base import SelectionView

Pooling = Literal["average", "max", "none"]


def window_logits(view: SelectionView) -> Iterator[Tensor]:
    """Logits of the observation queries, some queries at a time: ``(rows, heads, at most 64, tokens)`` float32.

    16-bit keys are widened block by block, so that logits are not rounded to 16 bits and no second copy of the keys
    exists. The tensor may be changed by the caller; it is used again for the next queries.
    """
    import torch

    assert view.query is not None
    rows, heads, observed, _ = view.query.shape
    size = min(observed, QUERY_BLOCK)
    buffer = torch.empty((rows, heads, size, view.tokens), dtype=torch.float32, device=view.query.device)
    for first in range(0, observed, size):
        query = view.query[:, :, first : first + size].float()
        logits = buffer[:, :, : query.shape[2]]
        for start in range(0, view.tokens, SCORING_BLOCK):
            keys = view.key[..., start : start + SCORING_BLOCK, :].float()
            logits[..., start : start + SCORING_BLOCK] = query @ keys.transpose(-1, -2)
        yield logits


def window_weights(view: SelectionView) -> Iterator[Tensor]:
    """Softmax attention of the observation queries over all candidates, as :func:`window_logits` yields them."""
    for logits in window_logits(view):
        logits.sub_(logits.amax(-1, keepdim=True)).exp_()
        yield logits.div_(logits.sum(-1, keepdim=True))


def window_attention(view: SelectionView) -> Tensor:
    """Softmax attention over all candidates, summed over the observation queries: ``(rows, heads, tokens)``."""
    if view.mass is not None:
        return view.mass
    return _summed(weights.sum(-2) for weights in window_weights(view))


def window_projection(view: SelectionView) -> Tensor:
    """Bare logits summed over the observation queries: ``(rows, heads, tokens)``."""
    return _summed(logits.sum(-2) for logits in window_logits(view))


_LEAST_REST, _BLOCK = 1e-3, SCORING_BLOCK // 4


def window_damage(view: SelectionView) -> Tensor:
    """What the observed outputs lose if a candidate alone is dropped: ``(rows, heads, tokens)`` float32 [ours].

    Without candidate j the output o of a query that pays it the weight a moves by a / (1 - a) * (o - v_j), exactly;
    the score is the sum over queries of the square of that length. The rest of the weights counts as at least 0.001.
    """
    return _summed(_damage(view, weights) for weights in window_weights(view))


def _damage(view: SelectionView, weights: Tensor) -> Tensor:
    """The part of :func:`window_damage` that some queries see; values are widened block by block."""
    import torch

    blocks = [slice(start, start + _BLOCK) for start in range(0, view.tokens, _BLOCK)]
    output = _summed(weights[..., block] @ view.value[..., block, :].float() for block in blocks)
    length = output.square().sum(-1, keepdim=True)
    parts = []
    for block in blocks:
        value, weight = view.value[..., block, :].float(), weights[..., block]
        distance = (output @ value.transpose(-1, -2)).mul_(-2).add_(value.square().sum(-1)[:, :, None]).add_(length)
        ratio = weight.div_((1 - weight).clamp_(min=_LEAST_REST))
        parts.append(distance.clamp_(min=0).mul_(ratio).mul_(ratio).sum(2))
    return torch.cat(parts, dim=-1)


def _summed(parts: Iterator[Tensor]) -> Tensor:
    total = next(parts)
    for part in parts:
        total += part
    return total


def pooled(score: Tensor, pooling: Pooling, width: int) -> Tensor:
    """Average or maximum over ``width`` neighbours in cache order, stride 1; outside counts as 0 in an average.

    Args:
        score: ``(rows, heads, tokens)``.
        pooling: ``"none"`` returns ``score``.
        width: odd.
    """
    import torch.nn.functional as F

    if pooling == "none":
        return score
    pool = F.avg_pool1d if pooling == "average" else F.max_pool1d
    return pool(score, width, stride=1, padding=width // 2)
