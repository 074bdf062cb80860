"""The bitwise tokenizer of Infinity: a convolutional autoencoder whose latent pixels are signs (BSQ-VAE).

Every latent pixel carries ``codebook_bits`` bits; a set bit is ``+1 / sqrt(codebook_bits)``, a clear one its negative.
Module names equal the keys of the published files. Images are (B, 3, height, width) RGB in [-1, 1], latents
(B, codebook_bits, h, w), bits (B, h, w, codebook_bits) uint8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from scalekv.errors import InvalidInput
from scalekv.models.infinity.sampling import bits_to_codes, resize

_UNUSED = ("quantizer.lfq.mask", "quantize.lfq.mask")


@dataclass(frozen=True)
class EncodedImage:
    """An image as bits.

    Args:
        bits: per scale (B, h, w, codebook_bits), uint8.
        latent: (B, codebook_bits, H, W), the sum of all scales' codes, what `BSQAutoencoder.decode` takes.
    """

    bits: list[Tensor]
    latent: Tensor


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
        return layer(states)  # type: ignore[no-any-return]


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
        return self.nin_shortcut(states) + hidden


class Downsample(nn.Module):
    """Halve both sides with a strided convolution; the padding goes right and below."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv(channels, channels, stride=2, padding=0)

    def forward(self, states: Tensor) -> Tensor:
        """Map (B, channels, h, w) to (B, channels, h / 2, w / 2)."""
        return self.conv(F.pad(states, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double both sides by repetition, then smooth with a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv(channels, channels)

    def forward(self, states: Tensor) -> Tensor:
        """Map (B, channels, h, w) to (B, channels, 2h, 2w)."""
        return self.conv(F.interpolate(states, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, and the change to the next.

    Args:
        source: channels in.
        target: channels out.
        blocks: number of residual blocks.
        downsample: halve the sides afterwards.
        upsample: double the sides afterwards.
    """

    def __init__(
        self, source: int, target: int, blocks: int, downsample: bool = False, upsample: bool = False
    ) -> None:
        super().__init__()
        widths = [source] + [target] * blocks
        self.block = nn.ModuleList(ResidualBlock(*pair) for pair in zip(widths, widths[1:], strict=False))
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
        return self.block_2(self.block_1(states))


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
        return self.conv_out(F.silu(self.norm_out(self.mid(states))))


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
        return self.conv_out(F.silu(self.norm_out(states)))


class BSQAutoencoder(ModelMixin, ConfigMixin):
    """The image tokenizer of Infinity. Reference names of the arguments are given in brackets.

    Args:
        codebook_bits: bits per latent pixel [codebook_dim]: 16, 24, 32 or 64, 14 with the patchified models.
        patch_size: image pixels per latent pixel and side, a power of 2: 16, or 8 with the patchified models.
        base_channels: channels of the finest level [base_ch].
        encoder_multipliers: channels of every level over ``base_channels``, finest first [encoder_ch_mult].
        decoder_multipliers: the same for the decoder [decoder_ch_mult].
        num_res_blocks: residual blocks per level.

    Raises:
        InvalidInput: channels without a group norm, or a patch size that the levels cannot reach.
    """

    _supports_gradient_checkpointing = False
    _no_split_modules = ["ResidualBlock"]
    _skip_layerwise_casting_patterns = ["norm"]
    _keys_to_ignore_on_load_unexpected = [name.replace(".", r"\.") for name in _UNUSED]

    @register_to_config
    def __init__(
        self,
        codebook_bits: int = 32,
        patch_size: int = 16,
        base_channels: int = 128,
        encoder_multipliers: Sequence[int] = (1, 2, 4, 4, 4),
        decoder_multipliers: Sequence[int] = (1, 2, 4, 4, 4),
        num_res_blocks: int = 2,
    ) -> None:
        super().__init__()
        halvings = patch_size.bit_length() - 1
        levels = min(len(encoder_multipliers), len(decoder_multipliers))
        if patch_size != 1 << halvings or halvings >= levels:
            raise InvalidInput(
                f"patch_size {patch_size} is out of reach: it must be a power of 2, and {levels} levels reach at most "
                f"{1 << (levels - 1)}."
            )
        inner = [base_channels * factor for factor in encoder_multipliers]
        outer = [base_channels * factor for factor in decoder_multipliers]
        self.encoder = Encoder(inner, base_channels, num_res_blocks, halvings, codebook_bits)
        self.decoder = Decoder(outer, num_res_blocks, halvings, codebook_bits)
        self.use_slicing = False
        self.register_load_state_dict_pre_hook(_drop_unused)

    def enable_slicing(self) -> None:
        """Encode and decode the images of a batch one by one: slower, with the activations of one image only."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Encode and decode whole batches again."""
        self.use_slicing = False

    @apply_forward_hook
    def encode(self, image: Tensor) -> Tensor:
        """Encode (B, 3, H, W) images in [-1, 1] to the (B, codebook_bits, H / patch, W / patch) latent before signs.

        Raises:
            InvalidInput: not three channels, or sides that ``patch_size`` does not divide.
        """
        patch = self.config.patch_size
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] % patch or image.shape[3] % patch:
            raise InvalidInput(
                f"Images have shape {tuple(image.shape)}, expected (batch, 3, height, width) with sides divisible by {patch}."
            )
        return self._sliced(self.encoder, image)

    @apply_forward_hook
    def decode(self, latent: Tensor) -> Tensor:
        """Decode a (B, codebook_bits, h, w) latent to (B, 3, h * patch, w * patch) float32 images in [-1, 1].

        Raises:
            InvalidInput: a latent of another tokenizer.
        """
        bits = self.config.codebook_bits
        if latent.ndim != 4 or latent.shape[1] != bits:
            raise InvalidInput(f"The latent has shape {tuple(latent.shape)}, expected (batch, {bits}, height, width).")
        return self._sliced(self.decoder, latent).clamp(-1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Reconstruct (B, 3, H, W) images from the bits of a single scale."""
        latent = self.encode(image)
        return self.decode(self.encode_latent(latent, [(latent.shape[2], latent.shape[3])]).latent)

    def encode_to_bits(self, image: Tensor, grids: Sequence[tuple[int, int]]) -> EncodedImage:
        """Turn images into bits scale by scale, each scale coding what the earlier ones left over.

        Args:
            image: (B, 3, H, W) in [-1, 1].
            grids: (h, w) latent pixels of every scale; the last is the whole latent.

        Raises:
            InvalidInput: as `encode`, or a last grid that is not the image's latent grid.
        """
        return self.encode_latent(self.encode(image), grids)

    def encode_latent(self, latent: Tensor, grids: Sequence[tuple[int, int]]) -> EncodedImage:
        """As `encode_to_bits`, from the (B, codebook_bits, h, w) latent that `encode` gives."""
        final = (latent.shape[2], latent.shape[3])
        if not grids or tuple(grids[-1]) != final:
            raise InvalidInput(f"The last of the grids {list(grids)} must be the image's latent grid {final}.")
        rest, total, bits = latent, torch.zeros_like(latent), []
        for grid in grids:
            # Dividing by the norm, as published, cannot change a sign.
            shrunk = rest if tuple(grid) == final else F.interpolate(rest, size=tuple(grid), mode="area")
            bits.append((shrunk > 0).permute(0, 2, 3, 1).to(torch.uint8))
            code = resize(bits_to_codes(bits[-1]), final)
            rest, total = rest - code, total + code
        return EncodedImage(bits, total)

    def decode_bits(self, bits: Sequence[Tensor]) -> Tensor:
        """Decode the (B, h, w, codebook_bits) bits of all scales, the last at full latent size, to images."""
        *_, latent = accumulate(bits)
        return self.decode(latent)

    def _sliced(self, network: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
        states = states.to(self.dtype)
        if self.use_slicing and len(states) > 1:
            return torch.cat([network(one).float() for one in states.split(1)])
        return network(states).float()


def accumulate(bits: Sequence[Tensor], final: tuple[int, int] | None = None) -> Iterator[Tensor]:
    """The latent after each scale: running sums of the scales' codes, resized to ``final`` (default: the last grid).

    Args:
        bits: per scale (B, h, w, codebook_bits).
        final: (H, W) of the sums.

    Yields:
        (B, codebook_bits, H, W) float32, a new tensor each.
    """
    height, width = final or (int(bits[-1].shape[1]), int(bits[-1].shape[2]))
    total: Tensor | None = None
    for scale in bits:
        code = resize(bits_to_codes(scale), (height, width))
        total = code if total is None else total + code
        yield total


def _drop_unused(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Published files carry two constant tables that bit labels never read."""
    for name in _UNUSED:
        state_dict.pop(prefix + name, None)


# Saved pipelines store the module of a component's class; the package is the address we promise to keep.
BSQAutoencoder.__module__ = "scalekv.models.infinity"
