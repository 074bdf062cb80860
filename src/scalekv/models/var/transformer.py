"""The VAR transformer: next-scale prediction of tokens, steered by a class (Tian et al., 2024).

Module names equal the keys of the published checkpoints, so their state dicts load without renaming. Self attention
hands its keys and values to a cache and knows nothing about what the cache keeps. Positions enter at the input only,
so nothing in the cache depends on where a token stands.

Layouts: streams are (rows, tokens, width), attention states (rows, heads, tokens, head_dim). Rows hold the B
conditional images first, then, with guidance, the B unconditional ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from scalekv.errors import InvalidInput
from scalekv.models.layers import (
    AttentionCache,
    FeedForward,
    HeadNorm,
    SelfAttention,
    WideLinear,
    adaptive_norm,
    widen,
)
from scalekv.models.saving import PlacelessConfig
from scalekv.models.var.layout import TRAINING_KEYS
from scalekv.models.var.schedules import SIDES_256
from scalekv.planning import Schedule, Segment

PLAIN_TEMPERATURE = 4.0
"""Without unit norms, logits are divided by four times the usual sqrt(head_dim)."""


class ClassCondition:
    """The classes of one generation: labels going in, everything the network derives from them once.

    Made by `VARTransformer.prepare_classes` and filled by the first ``forward`` that sees it, so that weights are only
    touched inside ``forward``, where offload hooks have put them on the device. Bound to the weights that filled it.

    Attributes:
        batch: images B.
        labels: class of every row, the unconditional class for unconditional rows.
        pooled: (rows, width) class vectors, None until filled.
        modulation: (rows, 1, 6, width) shared adaptive-norm vectors; None until filled, or if every block has its own.
        layers: (rows, 1, 6, width) adaptive-norm vectors by block, as they are first used.
    """

    def __init__(self, labels: Sequence[int], unconditional: int, guided: bool) -> None:
        self.batch = len(labels)
        self.guided = guided
        self.labels = tuple(labels) + (unconditional,) * (self.batch if guided else 0)
        self.pooled: Tensor | None = None
        self.modulation: Tensor | None = None
        self.layers: dict[int, Tensor] = {}

    @property
    def rows(self) -> int:
        """Rows run through the network: B, or 2B with guidance."""
        return len(self.labels)


class VARBlock(nn.Module):
    """Self attention and feed-forward, both steered by the class.

    Args:
        layer: position in the network, from 0.
        width: channels C.
        num_heads: heads.
        hidden: channels inside the feed-forward layer.
        norm_eps: epsilon of every norm.
        shared_aln: the adaptive-norm vectors come from one map shared by all blocks; else each block has its own.
        attn_l2_norm: unit-norm queries and keys.
    """

    def __init__(
        self,
        layer: int,
        width: int,
        num_heads: int,
        hidden: int,
        norm_eps: float = 1e-6,
        shared_aln: bool = False,
        attn_l2_norm: bool = True,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.norm_eps = norm_eps
        self.shared_aln = shared_aln
        if shared_aln:
            self.ada_gss = nn.Parameter(torch.randn(1, 1, 6, width) / math.sqrt(width))
        self.attn = SelfAttention(width, num_heads, attn_l2_norm, PLAIN_TEMPERATURE)
        self.ffn = FeedForward(width, hidden)
        if not shared_aln:
            self.ada_lin = nn.Sequential(nn.SiLU(), WideLinear(width, 6 * width))

    def forward(self, states: Tensor, condition: ClassCondition, cache: AttentionCache) -> Tensor:
        """Refine (rows, tokens, width) ``states``, at least float32; ``condition`` is filled. Same shape back."""
        dtype = self.attn.q_bias.dtype
        gate1, gate2, scale1, scale2, shift1, shift2 = self._modulation(condition, states.device).unbind(2)
        normed = adaptive_norm(states, scale1, shift1, self.norm_eps).to(dtype)
        states = states + gate1 * self.attn(normed, self.layer, cache)
        normed = adaptive_norm(states, scale2, shift2, self.norm_eps).to(dtype)
        states = states + gate2 * self.ffn(normed)
        return states

    def _modulation(self, condition: ClassCondition, device: torch.device) -> Tensor:
        kept = condition.layers.get(self.layer)
        if kept is None:
            if self.shared_aln:
                assert condition.modulation is not None
                kept = widen(self.ada_gss) + condition.modulation.to(device)
            else:
                assert condition.pooled is not None
                kept = self.ada_lin(condition.pooled.to(device)).unflatten(-1, (1, 6, -1))
            condition.layers[self.layer] = kept
        return kept


class VARTransformer(ModelMixin, PlacelessConfig):
    """The network that predicts every token of a segment.

    ``from_pretrained(dtype=torch.bfloat16)`` and all other ways to load it in a type give that type to the blocks and
    keep all else in float32; plain ``.to(torch.bfloat16)`` rounds everything.

    Reference names of the arguments are given in brackets. Defaults are those of VAR-d16.

    Args:
        depth: blocks.
        width: channels C [embed_dim]; 64 * depth in all published models.
        num_heads: heads H; divides the width.
        vocab_size: tokens V, as in the tokenizer.
        latent_channels: channels Z of a latent pixel, as in the tokenizer [Cvae].
        num_classes: classes N; class N is the unconditional one.
        patch_nums: tokens per side of every segment, which the learned positions are made for.
        mlp_ratio: hidden channels of the feed-forward layer over C.
        norm_eps: epsilon of every norm.
        shared_aln: one map makes the adaptive-norm vectors of all blocks; the 512-pixel model.
        attn_l2_norm: unit-norm queries and keys with a learned temperature per head; every current file.

    Raises:
        InvalidInput: sizes that do not divide, or no segments.
    """

    _supports_gradient_checkpointing = False
    _no_split_modules: ClassVar[list[str]] = ["VARBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["VARBlock"]
    _skip_layerwise_casting_patterns: ClassVar[list[str]] = [
        "norm",
        "pos_1LC",
        "lvl_embed",
        "class_emb",
        "ada_lin",
        "head",
        "word_embed",
    ]
    _keep_in_fp32_modules: ClassVar[list[str]] = [
        "pos_start",
        "pos_1LC",
        "word_embed",
        "class_emb",
        "lvl_embed",
        "shared_ada_lin",
        "head_nm",
        "head",
    ]

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        depth: int = 16,
        width: int = 1024,
        num_heads: int = 16,
        vocab_size: int = 4096,
        latent_channels: int = 32,
        num_classes: int = 1000,
        patch_nums: Sequence[int] = SIDES_256,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        shared_aln: bool = False,
        attn_l2_norm: bool = True,
    ) -> None:
        super().__init__()
        self._check_sizes()
        deviation = math.sqrt(1 / width / 3)
        self.schedule = Schedule.from_sides(patch_nums)
        """The one schedule that this network draws."""
        self.pos_start = nn.Parameter(torch.randn(1, self.schedule[0].tokens, width) * deviation)
        self.pos_1LC = nn.Parameter(torch.randn(1, self.schedule.total_tokens, width) * deviation)
        self.word_embed = WideLinear(latent_channels, width)
        self.class_emb = nn.Embedding(num_classes + 1, width)
        nn.init.normal_(self.class_emb.weight, std=deviation)
        self.lvl_embed = nn.Embedding(len(self.schedule), width)
        nn.init.normal_(self.lvl_embed.weight, std=deviation)
        if shared_aln:
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), WideLinear(width, 6 * width))
        hidden = round(width * mlp_ratio)
        flags = (norm_eps, shared_aln, attn_l2_norm)
        self.blocks = nn.ModuleList(VARBlock(layer, width, num_heads, hidden, *flags) for layer in range(depth))
        self.head_nm = HeadNorm(width, norm_eps)
        self.head = WideLinear(width, vocab_size)
        self.register_load_state_dict_pre_hook(_drop_training_tables)

    def _check_sizes(self) -> None:
        config = self.config
        if config.depth < 1 or config.num_heads < 1 or config.width % config.num_heads:
            raise InvalidInput(
                f"A network of depth {config.depth} and width {config.width} with {config.num_heads} heads cannot be "
                f"made; the depth is at least 1 and the heads divide the width."
            )
        if not config.patch_nums:
            raise InvalidInput("patch_nums is empty; give the tokens per side of every segment.")

    @property
    def head_dim(self) -> int:
        """Channels per attention head."""
        return int(self.config.width // self.config.num_heads)

    @property
    def ordered_blocks(self) -> list[VARBlock]:
        """All blocks in the order of execution."""
        return [cast("VARBlock", block) for block in self.blocks]

    @property
    def choices(self) -> int:
        """The values that one drawn number can take: logits are (B, tokens, draws * choices)."""
        return int(self.config.vocab_size)

    @property
    def attention_dtype(self) -> torch.dtype:
        """The dtype that linear maps compute in; self attention and its cache too, unless the cache has its own."""
        return self.ordered_blocks[0].attn.q_bias.dtype

    def prepare_classes(self, labels: Sequence[int], guided: bool = True) -> ClassCondition:
        """Pack the classes of a generation.

        Args:
            labels: class of every image, 0 .. num_classes - 1; num_classes or a negative number is the unconditional
                class.
            guided: whether unconditional rows are needed at all, that is whether any guidance weight differs from 0.

        Raises:
            InvalidInput: no labels, or one that is no class.
        """
        classes = int(self.config.num_classes)
        if not len(labels):
            raise InvalidInput("A generation needs the class of at least one image, got none.")
        for label in labels:
            if label > classes:
                raise InvalidInput(f"Class {label} does not exist; this model has classes 0 to {classes - 1}.")
        return ClassCondition([int(label) if label >= 0 else classes for label in labels], classes, guided)

    def forward(
        self, latent_tokens: Tensor | None, condition: ClassCondition, segment: Segment, cache: AttentionCache
    ) -> Tensor:
        """Predict the tokens of one segment.

        Args:
            latent_tokens: (B, tokens, latent_channels), what earlier segments drew, seen at this resolution; None for
                the first segment, which starts from the class.
            condition: the classes, from `prepare_classes`.
            segment: the segment to draw; the caller has told ``cache`` that it begins.
            cache: keys and values of earlier segments.

        Returns:
            (rows, tokens, vocab_size) float32 logits.

        Raises:
            InvalidInput: a segment of another schedule, or tokens of a wrong shape.
        """
        self._fill(condition)
        states = self._embed(latent_tokens, condition, segment)
        for block in self.ordered_blocks:
            states = block(states, condition, cache)
        assert condition.pooled is not None
        logits: Tensor = self.head(self.head_nm(states, condition.pooled))
        return logits.float()

    def _fill(self, condition: ClassCondition) -> None:
        """Derive from the classes, once, what all segments share."""
        if condition.pooled is not None:
            return
        labels = torch.tensor(condition.labels, device=self.pos_start.device)
        condition.pooled = widen(self.class_emb(labels))
        if self.config.shared_aln:
            condition.modulation = self.shared_ada_lin(condition.pooled).unflatten(-1, (1, 6, -1))

    def _embed(self, latent_tokens: Tensor | None, condition: ClassCondition, segment: Segment) -> Tensor:
        if segment.index >= len(self.schedule) or segment != self.schedule[segment.index]:
            raise InvalidInput(
                f"This network has positions for {self.schedule}, got segment {segment.index}, {segment}."
            )
        start = self.schedule.start(segment.index)
        level = self.lvl_embed(torch.full((1,), segment.index, device=self.pos_start.device))
        positions = widen(level) + widen(self.pos_1LC[:, start : start + segment.tokens])
        if latent_tokens is None:
            assert condition.pooled is not None
            return condition.pooled[:, None] + widen(self.pos_start) + positions
        expected = (condition.batch, segment.tokens, self.config.latent_channels)
        if latent_tokens.shape != expected:
            raise InvalidInput(f"Segment {segment} takes tokens of shape {expected}, got {tuple(latent_tokens.shape)}.")
        states: Tensor = self.word_embed(latent_tokens) + positions
        return states.repeat(condition.rows // condition.batch, 1, 1)


def _drop_training_tables(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for name in TRAINING_KEYS:
        state_dict.pop(prefix + name, None)


# Saved pipelines store the module of a component's class; the package is the address we promise to keep.
VARTransformer.__module__ = "scalekv.models.var"
