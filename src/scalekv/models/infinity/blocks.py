"""The blocks of the Infinity transformer: self attention, attention to the text, feed-forward (Han et al., 2024)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalekv.models.infinity.condition import LayerText, TextCondition
from scalekv.models.infinity.rope import rotate
from scalekv.models.infinity.text_attention import TextAttention
from scalekv.models.layers import (
    AttentionCache,
    FeedForward,
    SelfAttention,
    UnitWeight,
    WideLinear,
    adaptive_norm,
    affine_norm,
    widen,
)


def feed_forward_width(width: int, mlp_ratio: float, swiglu: bool = False) -> int:
    """Hidden channels of the feed-forward layer: ``width * mlp_ratio`` to the nearest 256, halves to even.

    The rounding matters: 2080 * 4 gives 8192, 3360 * 4 gives 13312. A product that rounds to 0 falls back to ``width``.
    SwiGLU models take two thirds of it, again to the nearest 256.
    """
    hidden = 256 * round(width * mlp_ratio / 256)
    if swiglu:
        return 256 * round(2 * hidden / 3 / 256)
    return hidden or width


class SwiGLU(nn.Module):
    """Gated feed-forward layer without biases.

    Args:
        width: channels in and out.
        hidden: channels between.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fcg = nn.Linear(width, hidden, bias=False)
        self.fc1 = nn.Linear(width, hidden, bias=False)
        self.fc2 = nn.Linear(hidden, width, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """Map (..., width) to the same shape."""
        out: Tensor = self.fc2(F.silu(self.fcg(states)) * self.fc1(states))
        return out


class InfinityBlock(nn.Module):
    """Self attention, cross attention to text, feed-forward; the first and last steered by the pooled text.

    Args:
        layer: position in the network, from 0.
        width: channels C.
        num_heads: heads of both attentions.
        hidden: channels inside the feed-forward layer.
        norm_eps: epsilon of every norm.
        shared_aln: the adaptive-norm vectors come from one map shared by all blocks; else each block has its own.
        rms_norm: RMS norms instead of layer norms.
        swiglu: gated feed-forward layer.
        cos_attn: see `SelfAttention`.
        tau: see `SelfAttention`.
        layer_scale: initial value of the learned factor on cross attention; negative for no such factor.
    """

    def __init__(
        self,
        layer: int,
        width: int,
        num_heads: int,
        hidden: int,
        norm_eps: float = 1e-6,
        shared_aln: bool = True,
        rms_norm: bool = False,
        swiglu: bool = False,
        cos_attn: bool = True,
        tau: float = 1.0,
        layer_scale: float = -1.0,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.norm_eps = norm_eps
        self.rms_norm = rms_norm
        self.shared_aln = shared_aln
        self.sa = SelfAttention(width, num_heads, cos_attn, tau)
        self.ca = TextAttention(width, width, num_heads)
        self.ffn = SwiGLU(width, hidden) if swiglu else FeedForward(width, hidden)
        self.ca_norm = affine_norm(width, norm_eps, rms_norm)
        if rms_norm:
            self.ln_wo_grad = UnitWeight(width)
        if shared_aln:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, width) / math.sqrt(width))
        else:
            self.ada_lin = nn.Sequential(nn.SiLU(), WideLinear(width, 6 * width))
        self.ca_gamma = nn.Parameter(torch.full((width,), layer_scale)) if layer_scale >= 0 else None

    def forward(
        self, states: Tensor, condition: TextCondition, cos: Tensor, sin: Tensor, cache: AttentionCache
    ) -> Tensor:
        """Refine the stream.

        Args:
            states: (rows, tokens, width), at least float32.
            condition: the filled text.
            cos: (tokens, head_dim / 2).
            sin: (tokens, head_dim / 2).
            cache: where keys and values go.

        Returns:
            (rows, tokens, width), the dtype of ``states``.
        """
        dtype = self.sa.q_bias.dtype
        text, groups = self._text(condition, states.device), condition.groups(states.device)
        gate1, gate2, scale1, scale2, shift1, shift2 = text.modulation.unbind(2)
        normed = adaptive_norm(states, scale1, shift1, self.norm_eps, self.rms_norm).to(dtype)
        states = states + gate1 * self.sa(normed, self.layer, cache, partial(rotate, cos=cos, sin=sin))
        crossed = self.ca(self.ca_norm(states).to(dtype), text, groups)
        states = states + (crossed if self.ca_gamma is None else crossed * widen(self.ca_gamma))
        normed = adaptive_norm(states, scale2, shift2, self.norm_eps, self.rms_norm).to(dtype)
        states = states + gate2 * self.ffn(normed)
        return states

    def _text(self, condition: TextCondition, device: torch.device) -> LayerText:
        kept = condition.layers.get(self.layer)
        if kept is None:
            assert condition.pooled is not None
            assert condition.tokens is not None
            if self.shared_aln:
                assert condition.modulation is not None
                modulation = widen(self.ada_gss) + condition.modulation.to(device)
            else:
                modulation = self.ada_lin(condition.pooled.to(device)).unflatten(-1, (1, 6, -1))
            keys, values = self.ca.project_text(condition.tokens.to(device), condition.groups(device))
            kept = condition.layers[self.layer] = LayerText(keys, values, modulation)
        return kept


class BlockChunk(nn.Module):
    """Some consecutive blocks; published checkpoints group theirs so, and the name is part of their keys.

    Args:
        blocks: the blocks of this chunk.
    """

    def __init__(self, blocks: Sequence[InfinityBlock]) -> None:
        super().__init__()
        self.module = nn.ModuleList(blocks)
