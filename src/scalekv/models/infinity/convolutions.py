"""Encoder and decoder of the bitwise tokenizer; module names equal the keys of the published files."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from scalekv.errors import InvalidInput


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with 32 groups where they divide ``channels``, else 24.

    Raises:
        InvalidInput: neither divides.
    """
    for groups in (32, 24):
        if channels % groups == 0:
            return nn.GroupNorm(groups, channels, eps=1e-6)
    raise InvalidInput(f"{channels} channels divide neither into 32 nor into 24 groups; use a multiple of either.")


class Wrapped(nn.Module):
    """A layer one level deeper, as the published keys have it."""

    def forward(self, states: Tensor) -> Tensor:
        """Apply the wrapped layer."""
        (layer,) = self.children()
        out: Tensor = layer(states)
        return out


class Conv(Wrapped):
    """A convolution under the name ``conv``."""

    def __init__(self, source: int, target: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(source, target, kernel, stride, padding)


class Norm(Wrapped):
    """A group norm under the name ``norm``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)


class ResidualBlock(nn.Module):
    """Two normed 3x3 convolutions beside a shortcut.

    Args:
        source: channels in.
        target: channels out.
    """

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(source), Conv(source, target)
        self.norm2, self.conv2 = Norm(target), Conv(target, target)
        self.nin_shortcut = nn.Identity() if source == target else Conv(source, target, kernel=1, padding=0)

    def forward(self, states: Tensor) -> Tensor:
        """Map (B, source, h, w) to (B, target, h, w)."""
        hidden = self.conv1(F.silu(self.norm1(states)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        out: Tensor = self.nin_shortcut(states) + hidden
        return out


class Downsample(nn.Module):
    """Halve both sides with a strided convolution; the padding goes right and below."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv(channels, channels, stride=2, padding=0)

    def forward(self, states: Tensor) -> Tensor:
        """Map (B, channels, h, w) to (B, channels, h / 2, w / 2)."""
        out: Tensor = self.conv(F.pad(states, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Double both sides by repetition, then smooth with a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv(channels, channels)

    def forward(self, states: Tensor) -> Tensor:
        """Map (B, channels, h, w) to (B, channels, 2h, 2w)."""
        out: Tensor = self.conv(F.interpolate(states, scale_factor=2.0, mode="nearest"))
        return out


class Level(nn.Module):
    """The residual blocks of one resolution, and the change to the next.

    Args:
        source: channels in.
        target: channels out.
        blocks: number of residual blocks.
        downsample: halve the sides afterwards.
        upsample: double the sides afterwards.
    """

    def __init__(self, source: int, target: int, blocks: int, downsample: bool = False, upsample: bool = False) -> None:
        super().__init__()
        widths = [source] + [target] * blocks
        self.block = nn.ModuleList(ResidualBlock(*pair) for pair in pairwise(widths))
        if downsample:
            self.downsample = Downsample(target)
        if upsample:
            self.upsample = Upsample(target)

    def forward(self, states: Tensor) -> Tensor:
        """Map (B, source, h, w) to (B, target, h', w')."""
        for layer in [*self.block, *(child for name, child in self.named_children() if name != "block")]:
            states = layer(states)
        return states


class Middle(nn.Module):
    """Two residual blocks at the smallest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, states: Tensor) -> Tensor:
        """Map (B, channels, h, w) to the same shape."""
        out: Tensor = self.block_2(self.block_1(states))
        return out


class Encoder(nn.Module):
    """Image to latent.

    Args:
        widths: channels of every level, finest first.
        base: channels after the first convolution.
        blocks: residual blocks per level.
        halvings: levels that halve the sides.
        bits: latent channels.
    """

    def __init__(self, widths: Sequence[int], base: int, blocks: int, halvings: int, bits: int) -> None:
        super().__init__()
        self.conv_in = Conv(3, base)
        sources = [base, *widths[:-1]]
        self.down = nn.ModuleList(
            Level(source, target, blocks, downsample=level < halvings)
            for level, (source, target) in enumerate(zip(sources, widths, strict=True))
        )
        self.mid = Middle(widths[-1])
        self.norm_out = Norm(widths[-1])
        self.conv_out = Conv(widths[-1], bits)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, bits, h, w)."""
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
        bits: latent channels.
    """

    def __init__(self, widths: Sequence[int], blocks: int, doublings: int, bits: int) -> None:
        super().__init__()
        self.conv_in = Conv(bits, widths[-1])
        self.mid = Middle(widths[-1])
        sources = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(
            Level(source, target, blocks + 1, upsample=1 <= level <= doublings)
            for level, (source, target) in enumerate(zip(sources, widths, strict=True))
        )
        self.norm_out = Norm(widths[0])
        self.conv_out = Conv(widths[0], 3)

    def forward(self, latent: Tensor) -> Tensor:
        """Map (B, bits, h, w) to (B, 3, H, W), not clamped."""
        states = self.mid(self.conv_in(latent))
        for level in reversed(self.up):
            states = level(states)
        out: Tensor = self.conv_out(F.silu(self.norm_out(states)))
        return out
