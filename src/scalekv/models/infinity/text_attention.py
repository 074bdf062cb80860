"""How image tokens of Infinity read the text, and how the text is pooled to one vector (Han et al., 2024)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalekv.models.infinity.condition import LayerText, TextCondition, TextGroup


def attend_text(query: Tensor, key: Tensor, value: Tensor, real: Tensor | None = None) -> Tensor:
    """Softmax attention, all (rows, heads, tokens, head_dim), logits divided by sqrt(head_dim).

    ``real`` says which keys may be read, (rows, 1, 1, tokens) booleans; None for all.
    """
    return F.scaled_dot_product_attention(query, key, value, attn_mask=real)


class TextAttention(nn.Module):
    """Attention to the text: of image tokens (``pool=False``), or of one learned query per head (``pool=True``).

    Args:
        width: channels of queries and output.
        text_width: channels of the text it reads.
        num_heads: heads.
        pool: whether the query is learned.
    """

    zero_k_bias: Tensor

    def __init__(self, width: int, text_width: int, num_heads: int, pool: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = width // num_heads
        if pool:
            learned = torch.randn(1, num_heads, self.head_dim) * math.sqrt(1 / width / 3)
            self.mat_q: nn.Parameter | nn.Linear = nn.Parameter(learned)
        else:
            self.mat_q = nn.Linear(width, width)
        self.mat_kv = nn.Linear(text_width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def project_text(self, text: Tensor, groups: list[TextGroup]) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of compact ``text`` (tokens, text_width), per group (n, heads, length, head_dim)."""
        pair = self.mat_kv(text.to(self.v_bias.dtype)) + torch.cat((self.zero_k_bias, self.v_bias))
        keys, values = [], []
        for group in groups:
            chosen = pair[group.places].unflatten(0, (group.count, group.length))
            key, value = chosen.unflatten(-1, (2, self.num_heads, self.head_dim)).unbind(2)
            keys.append(key.transpose(1, 2).contiguous())
            values.append(value.transpose(1, 2).contiguous())
        return keys, values

    def pool(self, text: Tensor, condition: TextCondition) -> Tensor:
        """Pool compact ``text`` (tokens, text_width) to one (rows, width) vector per row."""
        groups = condition.groups(text.device)
        keys, values = self.project_text(text, groups)
        assert isinstance(self.mat_q, Tensor)
        learned = self.mat_q.transpose(0, 1)[None]
        query = learned.expand(condition.rows, -1, -1, -1).to(self.v_bias.dtype)
        out: Tensor = self.proj(self._attend(query, keys, values, groups).flatten(1))
        return out

    def forward(self, states: Tensor, text: LayerText, groups: list[TextGroup]) -> Tensor:
        """Attend with (rows, tokens, width) ``states`` to each row's own text; same shape back."""
        assert isinstance(self.mat_q, nn.Linear)
        query = self.mat_q(states).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        out = self._attend(query, text.keys, text.values, groups)
        merged: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return merged

    @staticmethod
    def _attend(query: Tensor, keys: list[Tensor], values: list[Tensor], groups: list[TextGroup]) -> Tensor:
        if len(groups) == 1:
            return attend_text(query, keys[0], values[0], groups[0].real)
        order = torch.cat([group.rows for group in groups])
        parts = query[order].split([group.count for group in groups])
        masks = [group.real for group in groups]
        attended = [attend_text(*four) for four in zip(parts, keys, values, masks, strict=True)]
        return torch.cat(attended)[order.argsort()]


class TextPool(nn.Module):
    """Pools the text to the vector that starts the image and steers every norm.

    Args:
        width: channels of the vector.
        text_channels: channels of the text features; heads are 128 channels of it (64 in models wider than 4096).
    """

    def __init__(self, width: int, text_channels: int) -> None:
        super().__init__()
        self.ca = TextAttention(width, text_channels, pool_heads(width, text_channels), pool=True)

    def forward(self, text: Tensor, condition: TextCondition) -> Tensor:
        """Pool compact ``text`` (tokens, text_channels) to (rows, width)."""
        return self.ca.pool(text, condition)


def pool_heads(width: int, text_channels: int) -> int:
    """Heads of the text pool; not the heads of the network (infinity/models/infinity.py, restated)."""
    return text_channels // (64 if width > 4096 else 128)
