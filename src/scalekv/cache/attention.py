"""The one attention call of the library, and its variant that adds up weights; other kernels can come later behind
these functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scalekv.planning.weighing import WEIGHED_QUERIES, weighed_heads


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """``softmax(query @ key^T + bias) @ value`` without scale: queries arrive scaled.

    Args:
        query: ``(rows, heads, queries, head_dim)``.
        key: ``(rows, heads, tokens, head_dim)``.
        value: ``(rows, heads, tokens, head_dim)``.
        bias: ``(rows, heads, tokens)`` of the same dtype, added to the logits of all queries; ``None`` for none.

    Returns:
        ``(rows, heads, queries, head_dim)``.
    """
    mask = None if bias is None else bias[:, :, None]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=1.0)


def attention_and_mass(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`attention`, and what all queries together pay to every token, in one pass over the logits.

    In float32, of some heads and queries at a time. On a CPU without units for 16-bit matrices it takes hardly longer
    than attention alone; on a GPU a fused kernel and another pass are quicker.

    Args:
        query: ``(rows, heads, queries, head_dim)``.
        key: ``(rows, heads, tokens, head_dim)``.
        value: the same shape.

    Returns:
        ``(rows, heads, queries, head_dim)`` of the dtype of ``query``; and ``(rows, heads, tokens)`` float32, softmax
        weights summed over the queries.
    """
    rows, heads, tokens, _ = key.shape
    output, mass = torch.empty_like(query), torch.zeros((rows, heads, tokens), device=key.device)
    step = weighed_heads(heads, query.shape[2], tokens)
    for row in range(rows):
        for head in range(0, heads, step):
            part = row, slice(head, head + step)
            _weigh(query[part], key[part], value[part], output[part], mass[part])
    return output, mass


def _weigh(query: Tensor, key: Tensor, value: Tensor, output: Tensor, mass: Tensor) -> None:
    """:func:`attention_and_mass` of some heads of a row, written into ``output`` and ``mass``, which is zero."""
    keys, values = key.float().mT, value.float()
    for block, target in zip(query.split(WEIGHED_QUERIES, 1), output.split(WEIGHED_QUERIES, 1), strict=True):
        weights = torch.softmax(block.float() @ keys, -1)
        mass += weights.sum(-2)
        target.copy_(weights @ values)
        del weights  # not beside those of the next queries
