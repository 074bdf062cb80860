"""Layers that both model families are built of, and what they ask of a cache.

Layouts: streams are (rows, tokens, width), attention states (rows, heads, tokens, head_dim).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scalekv.planning import Segment

_MAX_LOG_SCALE = math.log(100)

ProjectedQuery = Callable[[Tensor], Tensor]
Turn = Callable[[Tensor], Tensor]


class AttentionCache(Protocol):
    """What the network asks of a cache; ``scalekv.cache.KVCache`` is one."""

    @property
    def dtype(self) -> torch.dtype | None:
        """What the network rounds queries, keys and values to; ``None`` leaves them as they come."""

    def begin(self, segment: Segment) -> None:
        """Start ``segment``; every layer attends once before the next one begins."""

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        projected_query: ProjectedQuery | None = None,
    ) -> Tensor:
        """Attend (softmax scale 1, no mask) to the history of ``layer`` and the current segment."""


def widen(states: Tensor) -> Tensor:
    """``states`` in at least float32."""
    return states.float() if states.element_size() < 4 else states


class WideLinear(nn.Linear):
    """A linear map evaluated in at least float32, whatever dtype its weights are kept in."""

    def forward(self, states: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        weight = widen(self.weight)
        return F.linear(states.to(weight.dtype), weight, self.bias.to(weight.dtype))


class WideLayerNorm(nn.LayerNorm):
    """An affine layer norm evaluated in at least float32."""

    def forward(self, states: Tensor) -> Tensor:
        """Normalise the last dimension."""
        weight, bias = widen(self.weight), widen(self.bias)
        return F.layer_norm(states.to(weight.dtype), self.normalized_shape, weight, bias, self.eps)


class RMSNorm(nn.Module):
    """Root-mean-square norm evaluated in at least float32.

    Args:
        channels: size of the last dimension.
        eps: added to the mean square.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, states: Tensor) -> Tensor:
        """Normalise the last dimension and scale it by ``weight``."""
        return rms_normalize(widen(states), self.eps) * widen(self.weight)


def rms_normalize(states: Tensor, eps: float) -> Tensor:
    """``states`` over the root of their mean square along the last dimension."""
    return states * torch.rsqrt(states.square().mean(-1, keepdim=True) + eps)


class UnitWeight(nn.Module):
    """A buffer of ones that checkpoints of RMS-normed models carry; adaptive norms have no weight of their own."""

    weight: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))


def affine_norm(channels: int, eps: float, rms_norm: bool) -> nn.Module:
    """A learned norm: RMS norm or layer norm."""
    return RMSNorm(channels, eps) if rms_norm else WideLayerNorm(channels, eps=eps)


def adaptive_norm(states: Tensor, scale: Tensor, shift: Tensor, eps: float, rms_norm: bool = False) -> Tensor:
    """Normalise ``states`` without learned weights, then ``* (1 + scale) + shift``, in at least float32."""
    states = widen(states)
    normed = rms_normalize(states, eps) if rms_norm else F.layer_norm(states, states.shape[-1:], eps=eps)
    return normed * (1 + scale) + shift


class SelfAttention(nn.Module):
    """Self attention over the cache and the current segment.

    Args:
        width: channels C.
        num_heads: heads H.
        cos_attn: unit-norm queries and keys with a learned temperature per head; else logits over sqrt(head_dim) * tau.
        tau: softmax temperature without ``cos_attn``.
    """

    zero_k_bias: Tensor

    def __init__(self, width: int, num_heads: int, cos_attn: bool, tau: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = width // num_heads
        self.cos_attn = cos_attn
        self.scale = 1 / math.sqrt(self.head_dim) / tau
        if cos_attn:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, num_heads, 1, 1), 4.0).log())
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, states: Tensor, layer: int, cache: AttentionCache, turn: Turn | None = None) -> Tensor:
        """Attend with (rows, tokens, width) ``states`` as ``layer`` of the network; same shape back.

        The linear maps compute in the dtype of ``states``, attention in that of ``cache``. ``turn`` gives queries and
        keys (rows, heads, tokens, head_dim) their positions, in at least float32.
        """
        dtype = cache.dtype

        def projected_query(positions: Tensor) -> Tensor:
            chosen = states.index_select(1, positions.to(states.device))
            bare = self._split_heads(self.mat_qkv(chosen).chunk(3, dim=-1)[0])
            return bare if dtype is None else bare.to(dtype)

        query, key, value = self._project(states, turn, dtype)
        out = cache.attend(layer, query, key, value, projected_query=projected_query)
        del query, key, value
        out = out.transpose(1, 2).flatten(2)
        merged: Tensor = self.proj(out if dtype is None else out.to(states.dtype))
        return merged

    def _split_heads(self, states: Tensor) -> Tensor:
        heads: Tensor = states.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        return heads

    def _project(self, states: Tensor, turn: Turn | None, dtype: torch.dtype | None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value (rows, heads, tokens, head_dim) in ``dtype``, by default that of the linear map."""
        # The bias is added outside of the linear map so that quantised replacements of nn.Linear fit.
        query, key, value = self.mat_qkv(states).chunk(3, dim=-1)
        dtype = dtype or value.dtype
        value = self._split_heads(value + self.v_bias.to(value.dtype)).to(dtype).contiguous()
        query = self._split_heads(widen(query) + widen(self.q_bias))
        key = self._split_heads(widen(key) + widen(self.zero_k_bias))
        if self.cos_attn:
            factor = widen(self.scale_mul_1H11).clamp_max(_MAX_LOG_SCALE).exp()
            query = F.normalize(query, dim=-1, eps=1e-12) * factor
            key = F.normalize(key, dim=-1, eps=1e-12)
        else:
            query = query * self.scale
        if turn is not None:
            query, key = turn(query), turn(key)
        return query.to(dtype), key.to(dtype), value


class FeedForward(nn.Module):
    """Two linear maps with a tanh-approximated GELU between.

    Args:
        width: channels in and out.
        hidden: channels between.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, states: Tensor) -> Tensor:
        """Map (..., width) to the same shape."""
        out: Tensor = self.fc2(F.gelu(self.fc1(states), approximate="tanh"))
        return out


class HeadNorm(nn.Module):
    """The adaptive norm before the head.

    Args:
        width: channels C.
        norm_eps: epsilon.
        rms_norm: RMS norm instead of layer norm.
    """

    def __init__(self, width: int, norm_eps: float, rms_norm: bool = False) -> None:
        super().__init__()
        self.norm_eps = norm_eps
        self.rms_norm = rms_norm
        self.ada_lin = nn.Sequential(nn.SiLU(), WideLinear(width, 2 * width))
        if rms_norm:
            self.ln_wo_grad = UnitWeight(width)

    def forward(self, states: Tensor, pooled: Tensor) -> Tensor:
        """Norm (rows, tokens, width) ``states``, steered by ``pooled`` (rows, width)."""
        scale, shift = self.ada_lin(pooled)[:, None].chunk(2, dim=-1)
        return adaptive_norm(states, scale, shift, self.norm_eps, self.rms_norm)


def mix_guidance(states: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance of (2B, ...) ``states``, conditional rows first: unconditional + scale * difference."""
    conditional, unconditional = states.chunk(2)
    return guidance * conditional + (1 - guidance) * unconditional
