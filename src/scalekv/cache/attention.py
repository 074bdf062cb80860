"""The one attention call of the library; other kernels can come later behind this function."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


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
