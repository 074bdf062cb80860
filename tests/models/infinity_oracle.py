"""Infinity in plain arithmetic: the published formulas row by row in float64, straight from the names of a state dict.

Slow, and sharing no code with the library's network, which is compared with it under every flag.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class Oracle:
    """One generation: feed it the segments in order.

    Args:
        state: state dict of the network.
        flags: its configuration.
        rows: text features of every row, unconditional ones last.
    """

    def __init__(self, state: dict[str, Tensor], flags: dict[str, Any], rows: list[Tensor]) -> None:
        self.w = {name: value.double() for name, value in state.items()}
        self.f = flags
        size = flags["depth"] // flags["block_chunks"]
        one = flags["block_chunks"] == 1
        self.prefixes = [
            f"blocks.{i}." if one else f"block_chunks.{i // size}.module.{i % size}." for i in range(flags["depth"])
        ]
        self.level_layers = {i for i in range(flags["depth"]) if i % size == 0}
        if not flags["level_embedding_per_chunk"]:
            self.level_layers = {0}
        texts = [self.rms(row.double(), "text_norm.weight") for row in rows]
        self.cond = [self.pool(text) for text in texts]
        self.text = [
            self.linear(self.gelu(self.linear(text, "text_proj_for_ca.0")), "text_proj_for_ca.2") for text in texts
        ]
        self.history: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def linear(self, x: Tensor, name: str) -> Tensor:
        out = x @ self.w[f"{name}.weight"].T
        return out + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else out

    @staticmethod
    def gelu(x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    @staticmethod
    def silu(x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    def rms(self, x: Tensor, weight: str | None = None) -> Tensor:
        out = x / (x.pow(2).mean(-1, keepdim=True) + self.f["norm_eps"]).sqrt()
        return out * self.w[weight] if weight else out

    def norm(self, x: Tensor, name: str | None = None) -> Tensor:
        if self.f["rms_norm"]:
            return self.rms(x, f"{name}.weight" if name else None)
        centred = x - x.mean(-1, keepdim=True)
        out = centred / (centred.pow(2).mean(-1, keepdim=True) + self.f["norm_eps"]).sqrt()
        return out * self.w[f"{name}.weight"] + self.w[f"{name}.bias"] if name else out

    def heads(self, x: Tensor, count: int) -> Tensor:
        return x.reshape(len(x), count, -1).transpose(0, 1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        weights = torch.softmax(q @ k.transpose(-1, -2) * scale, dim=-1)
        return (weights @ v).transpose(0, 1).flatten(1)

    def key_value(self, text: Tensor, name: str, count: int) -> tuple[Tensor, Tensor]:
        k, v = (text @ self.w[f"{name}.mat_kv.weight"].T).chunk(2, dim=-1)
        k, v = k + self.w[f"{name}.zero_k_bias"], v + self.w[f"{name}.v_bias"]
        return self.heads(k, count), self.heads(v, count)

    def pool(self, text: Tensor) -> Tensor:
        name = "text_proj_for_sos.ca"
        q = self.w[f"{name}.mat_q"].transpose(0, 1)
        k, v = self.key_value(text, name, len(q))
        return self.linear(self.attend(q, k, v, q.shape[-1] ** -0.5), f"{name}.proj")[0]

    def rotate(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        cos, sin = angles
        pairs = torch.complex(x[..., 0::2].contiguous(), x[..., 1::2].contiguous()) * torch.complex(cos, sin)
        return torch.view_as_real(pairs).flatten(-2)

    def self_attention(self, x: Tensor, row: int, layer: int, angles: tuple[Tensor, Tensor]) -> Tensor:
        name, count = self.prefixes[layer] + "sa", self.f["num_heads"]
        bias = torch.cat([self.w[f"{name}.{part}_bias"] for part in ("q", "zero_k", "v")])
        q, k, v = (self.heads(part, count) for part in (self.linear(x, f"{name}.mat_qkv") + bias).chunk(3, dim=-1))
        scale = 1.0
        if self.f["cos_attn"]:
            q = q / q.norm(dim=-1, keepdim=True) * self.w[f"{name}.scale_mul_1H11"][0].clamp(max=math.log(100)).exp()
            k = k / k.norm(dim=-1, keepdim=True)
        else:
            scale = 1 / math.sqrt(q.shape[-1]) / self.f["tau"]
        q, k = self.rotate(q, angles), self.rotate(k, angles)
        if (row, layer) in self.history:
            old_k, old_v = self.history[row, layer]
            k, v = torch.cat((old_k, k), dim=1), torch.cat((old_v, v), dim=1)
        self.history[row, layer] = k, v
        return self.linear(self.attend(q, k, v, scale), f"{name}.proj")

    def feed_forward(self, x: Tensor, name: str) -> Tensor:
        if self.f["swiglu"]:
            return self.linear(self.silu(self.linear(x, f"{name}.fcg")) * self.linear(x, f"{name}.fc1"), f"{name}.fc2")
        return self.linear(self.gelu(self.linear(x, f"{name}.fc1")), f"{name}.fc2")

    def block(self, x: Tensor, row: int, layer: int, angles: tuple[Tensor, Tensor]) -> Tensor:
        name, count = self.prefixes[layer], self.f["num_heads"]
        source = self.linear(
            self.silu(self.cond[row]), "shared_ada_lin.1" if self.f["shared_aln"] else f"{name}ada_lin.1"
        )
        parts = source.reshape(6, -1) + (self.w[f"{name}ada_gss"][0, 0] if self.f["shared_aln"] else 0)
        x = x + parts[0] * self.self_attention(self.norm(x) * (1 + parts[2]) + parts[4], row, layer, angles)
        q = self.heads(self.linear(self.norm(x, f"{name}ca_norm"), f"{name}ca.mat_q"), count)
        k, v = self.key_value(self.text[row], f"{name}ca", count)
        crossed = self.linear(self.attend(q, k, v, q.shape[-1] ** -0.5), f"{name}ca.proj")
        x = x + crossed * self.w.get(f"{name}ca_gamma", torch.ones(()))
        return x + parts[1] * self.feed_forward(self.norm(x) * (1 + parts[3]) + parts[5], f"{name}ffn")

    def head(self, x: Tensor, row: int) -> Tensor:
        first = 0
        if self.f["head_aln"]:
            scale, shift = self.linear(self.silu(self.cond[row]), "head_nm.ada_lin.1").chunk(2)
            x = self.norm(x) * (1 + scale) + shift
            if self.f["head_depth"] == 1:
                return self.linear(x, "head")
        else:
            x, first = self.norm(x, "head.0"), 1
            if self.f["head_depth"] == 1:
                return self.linear(x, "head.1")
        return self.linear(self.gelu(self.linear(x, f"head.{first}")), f"head.{first + 2}")

    def segment(
        self, index: int, tokens: Tensor | None, angles: tuple[Tensor, Tensor], guidance: float, mixed_layers: set[int]
    ) -> list[Tensor]:
        """Logits of every row; ``tokens`` (L, bits) are the same for all rows."""
        if tokens is None:
            xs = [cond[None] + self.w["pos_start"][0] for cond in self.cond]
        else:
            z = self.norm(tokens.double(), "norm0_ve") if self.f["input_norm"] else tokens.double()
            xs = [self.linear(z, "word_embed") for _ in self.cond]
        half = len(xs) // 2
        for layer in range(self.f["depth"]):
            if layer in self.level_layers:
                xs = [x + self.w["lvl_embed.weight"][index] for x in xs]
            xs = [self.block(x, row, layer, angles) for row, x in enumerate(xs)]
            if guidance != 1 and layer in mixed_layers:
                mixed = [xs[half + i] + guidance * (xs[i] - xs[half + i]) for i in range(half)]
                xs = [*mixed, *mixed]
        return [self.head(x, row) for row, x in enumerate(xs)]
