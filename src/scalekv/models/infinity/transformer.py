"""The Infinity transformer: bitwise next-scale prediction with cross attention to text (Han et al., 2024).

Module names equal the keys of the published checkpoints, so their state dicts load without renaming. Self attention
hands its keys and values to a cache and knows nothing about what the cache keeps.

Layouts: streams are (rows, tokens, width), attention states (rows, heads, tokens, head_dim). Rows hold the B
conditional prompts first, then, with guidance, the B unconditional ones. Text is compact: the tokens of all rows one
after another.
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
from scalekv.models.infinity.blocks import BlockChunk, InfinityBlock, feed_forward_width
from scalekv.models.infinity.condition import TextCondition
from scalekv.models.infinity.rope import ROPE_MODES, RopeTables, rope_tables
from scalekv.models.infinity.text_attention import TextPool, pool_heads
from scalekv.models.layers import (
    AttentionCache,
    HeadNorm,
    RMSNorm,
    WideLinear,
    affine_norm,
    mix_guidance,
    widen,
)
from scalekv.models.saving import PlacelessConfig
from scalekv.planning import Schedule, Segment

MAX_SEGMENTS = 15
"""Rows of the level embedding: no published Infinity model draws longer schedules."""


def unconditional_rows(text_maxlen: int, text_channels: int) -> Tensor:
    """The published initial rows of the unconditional text, (text_maxlen, text_channels) float32; deterministic."""
    rows = torch.empty(text_maxlen, text_channels, device="cpu")
    nn.init.trunc_normal_(rows, std=1.2, generator=torch.Generator("cpu").manual_seed(0))
    return (rows / math.sqrt(text_channels)).to(torch.empty(0).device)


def guidance_layers(cfg_insertion_layer: Sequence[int], depth: int) -> tuple[frozenset[int], bool]:
    """Read where guidance is mixed in: the layers whose output is mixed, and whether logits are.

    0 mixes the logits. A negative j mixes the output of layer ``depth + j``, which must not be the first. 1 is accepted
    and mixes nothing, as in the published loop. Several entries combine.

    Raises:
        InvalidInput: not a sequence, or an entry that names no place.
    """
    if isinstance(cfg_insertion_layer, int):
        raise InvalidInput(f"cfg_insertion_layer is a list such as [0], got the bare number {cfg_insertion_layer}.")
    for entry in cfg_insertion_layer:
        if entry > 1 or depth + entry <= 0:
            raise InvalidInput(
                f"cfg_insertion_layer {entry} names no place in a network of {depth} layers; "
                f"use 0 for the logits or -1 .. {1 - depth} for the output of a layer counted from the end."
            )
    layers = frozenset(depth + entry for entry in cfg_insertion_layer if entry < 0)
    return layers, 0 in cfg_insertion_layer


class InfinityTransformer(ModelMixin, PlacelessConfig):
    """The network that predicts, for every token of a segment, the bits of its code.

    Published runs keep the blocks in bfloat16 and all else in float32. So do ``from_pretrained(dtype=torch.bfloat16)``
    and all other ways to load it in a type; plain ``.to(torch.bfloat16)`` rounds everything.

    Reference names of the arguments are given in brackets. Defaults are those of Infinity-2B.

    Args:
        depth: blocks N.
        width: channels C [embed_dim].
        num_heads: heads H; C / H must be a multiple of 4.
        codebook_bits: bits per latent pixel, as in the tokenizer [its codebook_dim]. A token has this many bits, or
            four times as many with ``patchify``.
        patchify: a token is a 2 x 2 patch of latent pixels [apply_spatial_patchify]; the 8B models.
        text_channels: channels of the text features, at least one pool head of 128.
        text_maxlen: most text tokens per prompt, rows of the learned unconditional text.
        block_chunks: groups of blocks; 1 names blocks ``blocks.{i}``, else ``block_chunks.{c}.module.{m}``.
        mlp_ratio: hidden channels of the feed-forward layer over C, see `feed_forward_width`.
        norm_eps: epsilon of every norm.
        rope_mode: 0, 1 or 2, see `rope_tables` [rope2d_normalized_by_hw].
        level_embedding_per_chunk: add the level embedding before every chunk, not only before the first block
            [add_lvl_embeding_only_first_block = 0].
        shared_aln: one map makes the adaptive-norm vectors of all blocks.
        head_aln: adaptive norm before the head; else a learned norm inside it.
        head_depth: 1 or 2 linear maps in the head.
        rms_norm: RMS norms instead of layer norms.
        swiglu: gated feed-forward layers.
        input_norm: a learned norm before the word embedding [nm0].
        cos_attn: unit-norm queries and keys.
        tau: softmax temperature without ``cos_attn``.
        cross_attn_layer_scale: initial factor on cross attention; negative for none.
        rand_uncond: the unconditional text is a constant, not learned.

    Raises:
        InvalidInput: sizes that do not divide or an unknown mode.
    """

    _supports_gradient_checkpointing = False
    _no_split_modules: ClassVar[list[str]] = ["InfinityBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["InfinityBlock"]
    _skip_layerwise_casting_patterns: ClassVar[list[str]] = ["norm", "lvl_embed", "ada_lin", "head", "word_embed"]
    _keep_in_fp32_modules: ClassVar[list[str]] = [
        "cfg_uncond",
        "pos_start",
        "text_norm",
        "text_proj_for_sos",
        "text_proj_for_ca",
        "lvl_embed",
        "norm0_ve",
        "word_embed",
        "shared_ada_lin",
        "head_nm",
        "head",
    ]

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        depth: int = 32,
        width: int = 2048,
        num_heads: int = 16,
        codebook_bits: int = 32,
        patchify: bool = False,
        text_channels: int = 2048,
        text_maxlen: int = 512,
        block_chunks: int = 8,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-6,
        rope_mode: int = 2,
        level_embedding_per_chunk: bool = False,
        shared_aln: bool = True,
        head_aln: bool = True,
        head_depth: int = 1,
        rms_norm: bool = False,
        swiglu: bool = False,
        input_norm: bool = False,
        cos_attn: bool = True,
        tau: float = 1.0,
        cross_attn_layer_scale: float = -1.0,
        rand_uncond: bool = False,
    ) -> None:
        super().__init__()
        self._check_sizes()
        self.token_bits = codebook_bits * (4 if patchify else 1)
        """Bits of one token, d."""
        self._build_text(width, text_channels, text_maxlen, norm_eps, rand_uncond)
        self.pos_start = nn.Parameter(torch.randn(1, 1, width) * math.sqrt(1 / width / 3))
        self.lvl_embed = nn.Embedding(MAX_SEGMENTS, width)
        if input_norm:
            self.norm0_ve = affine_norm(self.token_bits, norm_eps, rms_norm)
        self.word_embed = WideLinear(self.token_bits, width)
        if shared_aln:
            self.shared_ada_lin = nn.Sequential(nn.SiLU(), WideLinear(width, 6 * width))
        hidden = feed_forward_width(width, mlp_ratio, swiglu)
        flags = (norm_eps, shared_aln, rms_norm, swiglu, cos_attn, tau, cross_attn_layer_scale)
        blocks = [InfinityBlock(layer, width, num_heads, hidden, *flags) for layer in range(depth)]
        if block_chunks == 1:
            self.blocks = nn.ModuleList(blocks)
        else:
            size = depth // block_chunks
            chunks = [BlockChunk(blocks[start : start + size]) for start in range(0, depth, size)]
            self.block_chunks = nn.ModuleList(chunks)
        if head_aln:
            self.head_nm = HeadNorm(width, norm_eps, rms_norm)
        self.head = self._build_head(width, norm_eps, rms_norm, head_aln, head_depth)

    def __getattr__(self, name: str) -> Any:
        # diffusers answers with the configuration first, which would hide the chunks behind their number.
        submodules = self.__dict__.get("_modules", {})
        return submodules[name] if name in submodules else super().__getattr__(name)

    def _check_sizes(self) -> None:
        config = self.config
        if config.width % config.num_heads or config.width // config.num_heads % 4:
            raise InvalidInput(
                f"width {config.width} does not split into {config.num_heads} heads of a multiple of 4 channels each."
            )
        if config.block_chunks < 1 or config.depth % config.block_chunks:
            raise InvalidInput(f"depth {config.depth} does not split into {config.block_chunks} equal chunks.")
        heads = pool_heads(config.width, config.text_channels)
        if heads < 1 or config.width % heads:
            raise InvalidInput(
                f"text_channels {config.text_channels} give a text pool of {heads} heads, which must be at least 1 and "
                f"divide width {config.width}; a pool head reads 128 text channels (64 in models wider than 4096)."
            )
        if config.rope_mode not in ROPE_MODES:
            raise InvalidInput(f"Unknown rope_mode {config.rope_mode!r}; choose one of {ROPE_MODES}.")
        if config.head_depth not in (1, 2):
            raise InvalidInput(f"The head has 1 or 2 linear maps, got head_depth={config.head_depth!r}.")

    def _build_text(self, width: int, text_channels: int, maxlen: int, eps: float, constant: bool) -> None:
        rows = unconditional_rows(maxlen, text_channels)
        if constant:
            self.register_buffer("cfg_uncond", rows)
        else:
            self.cfg_uncond = nn.Parameter(rows)
        self.text_norm = RMSNorm(text_channels, eps)
        self.text_proj_for_sos = TextPool(width, text_channels)
        self.text_proj_for_ca = nn.Sequential(
            nn.Linear(text_channels, width), nn.GELU(approximate="tanh"), nn.Linear(width, width)
        )

    def _build_head(self, width: int, norm_eps: float, rms_norm: bool, head_aln: bool, head_depth: int) -> nn.Module:
        logits = WideLinear(width, 2 * self.token_bits)
        parts: list[nn.Module] = [] if head_aln else [affine_norm(width, norm_eps, rms_norm)]
        if head_depth == 2:
            parts += [WideLinear(width, width), nn.GELU(approximate="tanh")]
        return nn.Sequential(*parts, logits) if parts else logits

    @property
    def patch_size(self) -> int:
        """Latent pixels per token and side: 2 with ``patchify``, else 1."""
        return 2 if self.config.patchify else 1

    @property
    def head_dim(self) -> int:
        """Channels per attention head."""
        return int(self.config.width // self.config.num_heads)

    @property
    def ordered_blocks(self) -> list[InfinityBlock]:
        """All blocks in the order of execution."""
        one = self.config.block_chunks == 1
        groups = [self.blocks] if one else [cast("BlockChunk", chunk).module for chunk in self.block_chunks]
        return [cast("InfinityBlock", block) for group in groups for block in group]

    @property
    def choices(self) -> int:
        """The values that one drawn number can take: logits are (B, tokens, draws * choices)."""
        return 2

    @property
    def attention_dtype(self) -> torch.dtype:
        """The dtype that linear maps compute in; self attention and its cache too, unless the cache has its own."""
        return self.ordered_blocks[0].sa.q_bias.dtype

    def build_rope(self, schedule: Schedule, extent: tuple[int, int], device: torch.device | None = None) -> RopeTables:
        """The rotary tables of ``schedule`` for this network, on ``device`` (default: its own); see `rope_tables`."""
        return rope_tables(schedule, self.head_dim, extent, self.config.rope_mode, device or self.device)

    def prepare_text(
        self,
        features: Sequence[Tensor],
        negative_features: Sequence[Tensor] | None = None,
        guided: bool = True,
    ) -> TextCondition:
        """Pack the text of a generation; the network projects it when it is first used.

        Args:
            features: per prompt the encoder's states of its real tokens, (length, text_channels), end token included.
            negative_features: per prompt what to guide away from; by default the learned unconditional text, as many
                rows of it as the prompt has tokens.
            guided: whether unconditional rows are needed at all, that is whether any guidance scale differs from 1.

        Raises:
            InvalidInput: no prompts, a wrong number or width of features, empty text, or text longer than
                ``text_maxlen``, of which no unconditional copy could be made.
        """
        negative = None if negative_features is None or not guided else list(negative_features)
        if not features:
            raise InvalidInput("A generation needs the text features of at least one prompt, got none.")
        if negative is not None and len(negative) != len(features):
            raise InvalidInput(f"Got {len(negative)} negative texts for {len(features)} prompts; give one for each.")
        channels, longest = self.config.text_channels, self.config.text_maxlen
        for row in [*features, *(negative or [])]:
            if row.ndim != 2 or row.shape[1] != channels or not len(row):
                raise InvalidInput(
                    f"Text features have shape {tuple(row.shape)}, expected (tokens, {channels}) with 1 row or more: "
                    "what the text encoder of this model gives."
                )
            if len(row) > longest:
                raise InvalidInput(
                    f"A text of {len(row)} tokens is longer than the {longest} that are read; shorten it."
                )
        return TextCondition(list(features), negative, guided)

    def forward(
        self,
        latent_tokens: Tensor | None,
        condition: TextCondition,
        segment: Segment,
        rope: RopeTables,
        cache: AttentionCache,
        *,
        guidance: float = 1.0,
        cfg_insertion_layer: Sequence[int] = (0,),
    ) -> Tensor:
        """Predict the bits of one segment.

        Args:
            latent_tokens: (B, tokens, token_bits), what earlier segments drew, seen at this resolution; None for the
                first segment, which starts from the text.
            condition: the text, from `prepare_text`.
            segment: the segment to draw; the caller has told ``cache`` that it begins.
            rope: tables of the whole schedule.
            cache: keys and values of earlier segments.
            guidance: guidance scale of this segment; 1 mixes nothing.
            cfg_insertion_layer: where guidance is mixed in, see `guidance_layers`. Layers are mixed here; logits are
                left to the caller, because temperature comes first.

        Returns:
            (rows, tokens, 2 * token_bits) float32 logits, entries 2j and 2j + 1 for bit j being 0 and 1. Rows are B, or
            2B if the caller has logits to mix (``guidance`` is not 1 and ``cfg_insertion_layer`` has a 0).

        Raises:
            InvalidInput: guidance without unconditional rows, a segment past the 15th, or tokens of a wrong shape.
        """
        layers, on_logits = guidance_layers(cfg_insertion_layer, self.config.depth)
        mixing = guidance != 1
        if mixing and not condition.guided:
            raise InvalidInput(f"Guidance {guidance} needs unconditional text; prepare it with guided=True.")
        self._fill(condition)
        states = self._embed(latent_tokens, condition, segment)
        level = widen(self.lvl_embed(torch.full((1,), segment.index, device=states.device)))
        cos, sin = (table.to(states.device) for table in rope.at(segment))
        for block in self.ordered_blocks:
            if block.layer % self._level_period == 0:
                states = states + level
            states = block(states, condition, cos, sin, cache)
            if mixing and block.layer in layers:
                states = mix_guidance(states, guidance).repeat(2, 1, 1)
        rows = condition.rows if mixing and on_logits else condition.batch
        return self._logits(states[:rows], condition)

    @property
    def _level_period(self) -> int:
        depth = int(self.config.depth)
        return depth // int(self.config.block_chunks) if self.config.level_embedding_per_chunk else depth

    def _fill(self, condition: TextCondition) -> None:
        """Derive from the text, once, what all segments share."""
        if condition.pooled is not None:
            return
        text = self.text_norm(condition.compact_features(self.cfg_uncond)).to(self.pos_start.dtype)
        pooled = self.text_proj_for_sos(text, condition)
        condition.tokens = self.text_proj_for_ca(text)
        if self.config.shared_aln:
            condition.modulation = self.shared_ada_lin(pooled).unflatten(-1, (1, 6, -1))
        condition.pooled = pooled

    def _embed(self, latent_tokens: Tensor | None, condition: TextCondition, segment: Segment) -> Tensor:
        if segment.index >= MAX_SEGMENTS:
            raise InvalidInput(f"Infinity draws at most {MAX_SEGMENTS} segments, got a schedule with more.")
        if latent_tokens is None:
            assert condition.pooled is not None
            return widen(condition.pooled)[:, None] + widen(self.pos_start)
        expected = (condition.batch, segment.tokens, self.token_bits)
        if latent_tokens.shape != expected:
            raise InvalidInput(f"Segment {segment} takes tokens of shape {expected}, got {tuple(latent_tokens.shape)}.")
        if self.config.input_norm:
            latent_tokens = self.norm0_ve(latent_tokens)
        states: Tensor = self.word_embed(latent_tokens)
        return states.repeat(condition.rows // condition.batch, 1, 1)

    def _logits(self, states: Tensor, condition: TextCondition) -> Tensor:
        if self.config.head_aln:
            assert condition.pooled is not None
            states = self.head_nm(states, condition.pooled[: len(states)])
        logits: Tensor = self.head(states)
        return logits.float()


# Saved pipelines store the module of a component's class; the package is the address we promise to keep.
InfinityTransformer.__module__ = "scalekv.models.infinity"
