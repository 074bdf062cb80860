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
    """:func:`attention`, and what all queries together pay to every token, in one pass over the logits [ours].

    In float32, of some heads and queries at a time: not the bits of :func:`attention`. On a CPU without units for
    16-bit matrices it takes hardly longer than that alone; on a GPU a fused kernel and another pass are quicker.

    Args:
        query: ``(rows, heads, queries, head_dim)``.
        key: ``(rows, heads, tokens, head_dim)``.
        value: the same shape.

    Returns:
        ``(rows, heads, queries, head_dim)`` of the dtype of ``query``; and ``(rows, heads, tokens)`` float32, softmax
        weights summed over the queries.
    """
    output = torch.empty_like(query)
    return output, _weighed(query, key, (value, output))


def attention_mass(query: Tensor, key: Tensor) -> Tensor:
    """The sums of :func:`attention_and_mass` alone: ``(rows, heads, tokens)`` float32, of the same shapes [ours]."""
    return _weighed(query, key)


def _weighed(query: Tensor, key: Tensor, read: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Sums of weights; ``read`` are values, and outputs to write what the weights read of them."""
    rows, heads, tokens, _ = key.shape
    mass = torch.zeros((rows, heads, tokens), device=key.device)
    step = weighed_heads(heads, query.shape[2], tokens)
    for row in range(rows):
        for head in range(0, heads, step):
            part = row, slice(head, head + step)
            _weigh(query[part], key[part], mass[part], None if read is None else (read[0][part], read[1][part]))
    return mass


def _weigh(query: Tensor, key: Tensor, mass: Tensor, read: tuple[Tensor, Tensor] | None) -> None:
    """:func:`_weighed` of some heads of a row, into ``mass``, which is zero; ``read`` are their values and outputs."""
    keys = key.float().mT
    values = None if read is None else read[0].float()
    for start in range(0, query.shape[1], WEIGHED_QUERIES):
        some = slice(start, start + WEIGHED_QUERIES)
        weights = torch.softmax(query[:, some].float() @ keys, -1)
        mass += weights.sum(-2)
        if read is not None and values is not None:
            read[1][:, some] = weights @ values
        del weights  # not beside those of the next queries
