"""Scores that several methods share, computed in float32 without ever building a full attention matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalekv.planning.plan import SCORING_BLOCK

if TYPE_CHECKING:
    from torch import Tensor

    from scalekv.policies.base import SelectionView


def window_logits(view: SelectionView) -> Tensor:
    """Logits of the observation queries, ``(rows, heads, observed, tokens)`` float32.

    16-bit keys are widened block by block, so that logits are not rounded to 16 bits and no second copy of the keys
    exists.
    """
    import torch

    assert view.query is not None
    query = view.query.float()
    logits = torch.empty((*query.shape[:-1], view.tokens), dtype=torch.float32, device=query.device)
    for start in range(0, view.tokens, SCORING_BLOCK):
        keys = view.key[..., start : start + SCORING_BLOCK, :].float()
        logits[..., start : start + SCORING_BLOCK] = query @ keys.transpose(-1, -2)
    return logits


def window_attention(view: SelectionView) -> Tensor:
    """Softmax attention over all candidates, summed over the observation queries: ``(rows, heads, tokens)``."""
    logits = window_logits(view)
    logits.sub_(logits.amax(-1, keepdim=True)).exp_()
    return logits.div_(logits.sum(-1, keepdim=True)).sum(-2)
