"""The two scores of HACK++ (arXiv 2606.08302), in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalekv.planning.plan import SCORING_BLOCK
from scalekv.planning.reliance import token_prior
from scalekv.policies.scoring import pooled

if TYPE_CHECKING:
    from torch import Tensor

    from scalekv.policies.base import SelectionView


def pooled_rank(score: Tensor, width: int) -> Tensor:
    """Rank by the maximum over ``width`` neighbours, ties by the score itself, then the older token [inferred].

    A maximum gives neighbours equal scores; of these the peak itself must stay first.

    Args:
        score: ``(rows, heads, tokens)`` float32, not negative.
        width: odd.

    Returns:
        The same shape, all different: ``tokens`` for the best down to 1.
    """
    import torch

    # The bits of floats that are not negative sort as the floats do, so both scores fit one integer.
    keys = pooled(score, "max", width).view(torch.int32).long().bitwise_left_shift_(32)
    keys += score.view(torch.int32)
    order = keys.argsort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(score.shape[-1], 0, -1, dtype=torch.float32, device=score.device)
    return torch.empty_like(score).scatter_(-1, order, ranks.expand_as(order))


def prior_times_norm(view: SelectionView) -> Tensor:
    """Calibrated attention to a token of the candidate's source segment times the norm of its value.

    Args:
        view: with origins and the profile of the plan; queries are not read.

    Returns:
        ``(rows, heads, tokens)``.

    Raises:
        ProfileError: the profile has no table ``"mass"``.
    """
    import torch

    assert view.origin is not None
    assert view.profile is not None
    device, segment = view.value.device, view.segment.index
    rows = [token_prior(view.profile, segment, view.layer, head) for head in view.heads]
    ends = [view.schedule.start(index + 1) for index in range(segment)]
    source = torch.bucketize(view.origin, torch.tensor(ends, device=device), right=True)
    prior = torch.tensor(rows, device=device).expand(view.origin.shape[0], -1, -1).gather(-1, source)
    for start in range(0, view.tokens, SCORING_BLOCK):
        block = slice(start, start + SCORING_BLOCK)
        prior[..., block] *= view.value[..., block, :].float().norm(dim=-1)
    return prior
