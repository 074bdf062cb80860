"""Convolutional encoder and decoder of picture tokenizers; module names equal the keys of the published files.

The families differ in how their keys spell a layer and in where they attend; a `Style` says both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from scalekv.errors import InvalidInput


@dataclass(frozen=True)
class Style:
    """How a family builds its layers.

    Args:
        conv: (channels in, channels out, kernel = 3, stride = 1, padding = 1) to a convolution.
        norm: channels to a group norm.
        attention: channels to attention between the positions of a map, for the smallest resolution; ``None`` if the
            family has none.
    """

    conv: Callable[..., nn.Module]
    norm: Callable[[int], nn.Module]
    attention: Callable[[int], nn.Module] | None = None


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with 32 groups where they divide ``channels``, else 24.

    Raises:
        InvalidInput: neither divides.
    """
    for groups in (32, 24):
        if channels % groups == 0:
            return nn.GroupNorm(groups, channels, eps=1e-6)
    raise InvalidInput(f"{channels} channels divide neither into 32 nor into 24 groups; use a multiple of either.")


class ResidualBlock(nn.Module):
    """Two normed 3x3 convolutions beside a shortcut.

    Args:
        source: channels in.
        target: channels out.
        style: see `Style`.
    """

    def __init__(self, source: int, target: int, style: Style) -> None:
        super().__init__()
        self.norm1, self.conv1 = style.norm(source), style.conv(source, target, 3, 1, 1)
        self.norm2, self.conv2 = style.norm(target), style.conv(target, target, 3, 1, 1)
        self.nin_shortcut = nn.Identity() if source == target else style.conv(source, target, 1, 1, 0)

    def forward(self, states: Tensor) -> Tensor:
        """Map (B, source, h, w) to (B, target, h, w)."""
        hidden = self.conv1(F.silu(self.norm1(states)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        out: Tensor = self.nin_shortcut(states) + hidden
        return out


class Downsample(nn.Module):
    """Halve both sides with a strided convolution; the padding goes right and below."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.conv = style.conv(channels, channels, 3, 2, 0)

    def forward(self, states: Tensor) -> Tensor:
        """Map (B, channels, h, w) to (B, channels, h / 2, w / 2)."""
        out: Tensor = self.conv(F.pad(states, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Double both sides by repetition, then smooth with a convolution."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.conv = style.conv(channels, channels, 3, 1, 1)

    def forward(self, states: Tensor) -> Tensor:
        """Map (B, channels, h, w) to (B, channels, 2h, 2w)."""
        out: Tensor = self.conv(F.interpolate(states, scale_factor=2.0, mode="nearest"))
        return out


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention if the level attends, and the change of size.

    Args:
        source: channels in.
        target: channels out.
        blocks: number of residual blocks.
        style: see `Style`.
        attend: attend after every block, if the style has attention.
        change: what follows, `Downsample` or `Upsample`, or ``None``.
    """

    def __init__(
        self,
        source: int,
        target: int,
        blocks: int,
        style: Style,
        attend: bool = False,
        change: type[Downsample | Upsample] | None = None,
    ) -> None:
        super().__init__()
        widths = [source] + [target] * blocks
        self.block = nn.ModuleList(ResidualBlock(*pair, style) for pair in pairwise(widths))
        makers = [style.attention] * blocks if attend and style.attention is not None else []
        self.attn = nn.ModuleList(make(target) for make in makers)
        if change is Downsample:
            self.downsample = change(target, style)
        elif change is not None:
            self.upsample = change(target, style)

    def forward(self, states: Tensor) -> Tensor:
        """Map (B, source, h, w) to (B, target, h', w')."""
        for index, block in enumerate(self.block):
            states = block(states)
            if len(self.attn):
                states = self.attn[index](states)
        for name in ("downsample", "upsample"):
            if name in self._modules:
                states = cast("nn.Module", self._modules[name])(states)
        return states


class Middle(nn.Module):
    """Two residual blocks at the smallest resolution, with attention between them if the style has any."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, style)
        self.attn_1 = nn.Identity() if style.attention is None else style.attention(channels)
        self.block_2 = ResidualBlock(channels, channels, style)

    def forward(self, states: Tensor) -> Tensor:
        """Map (B, channels, h, w) to the same shape."""
        out: Tensor = self.block_2(self.attn_1(self.block_1(states)))
        return out


class Encoder(nn.Module):
    """Image to latent.

    Args:
        widths: channels of every level, finest first.
        base: channels after the first convolution.
        blocks: residual blocks per level.
        halvings: levels that halve the sides.
        channels: latent channels.
        style: see `Style`.
    """

    def __init__(
        self, widths: Sequence[int], base: int, blocks: int, halvings: int, channels: int, style: Style
    ) -> None:
        super().__init__()
        self.conv_in = style.conv(3, base, 3, 1, 1)
        sources, last = [base, *widths[:-1]], len(widths) - 1
        self.down = nn.ModuleList(
            Level(source, target, blocks, style, level == last, Downsample if level < halvings else None)
            for level, (source, target) in enumerate(zip(sources, widths, strict=True))
        )
        self.mid = Middle(widths[-1], style)
        self.norm_out = style.norm(widths[-1])
        self.conv_out = style.conv(widths[-1], channels, 3, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, channels, h, w)."""
        states = self.conv_in(image)
        for level in self.down:
            states = level(states)
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(states))))
        return out


class Decoder(nn.Module):
    """Latent to image.

    Args:
        widths: channels of every level, finest first.
        blocks: residual blocks per level, one less than are built.
        doublings: levels that double the sides, counted from the second finest.
        channels: latent channels.
        style: see `Style`.
    """

    def __init__(self, widths: Sequence[int], blocks: int, doublings: int, channels: int, style: Style) -> None:
        super().__init__()
        self.conv_in = style.conv(channels, widths[-1], 3, 1, 1)
        self.mid = Middle(widths[-1], style)
        sources, last = [*widths[1:], widths[-1]], len(widths) - 1
        self.up = nn.ModuleList(
            Level(source, target, blocks + 1, style, level == last, Upsample if 1 <= level <= doublings else None)
            for level, (source, target) in enumerate(zip(sources, widths, strict=True))
        )
        self.norm_out = style.norm(widths[0])
        self.conv_out = style.conv(widths[0], 3, 3, 1, 1)

    def forward(self, latent: Tensor) -> Tensor:
        """Map (B, channels, h, w) to (B, 3, H, W), not clamped."""
        states = self.mid(self.conv_in(latent))
        for level in reversed(self.up):
            states = level(states)
        out: Tensor = self.conv_out(F.silu(self.norm_out(states)))
        return out
