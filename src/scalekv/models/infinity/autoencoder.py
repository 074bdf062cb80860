"""The bitwise tokenizer of Infinity: a convolutional autoencoder whose latent pixels are signs (BSQ-VAE).

Every latent pixel carries ``codebook_bits`` bits; a set bit is ``+1 / sqrt(codebook_bits)``, a clear one its negative.
Module names equal the keys of the published files. Images are (B, 3, height, width) RGB in [-1, 1], latents
(B, codebook_bits, h, w), bits (B, h, w, codebook_bits) uint8.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from scalekv.errors import InvalidInput
from scalekv.models.convolutions import Decoder, Encoder
from scalekv.models.infinity.convolutions import STYLE
from scalekv.models.infinity.layout import QUANTIZER_TABLES
from scalekv.models.infinity.sampling import bits_to_codes, resize
from scalekv.models.saving import PlacelessConfig
from scalekv.models.tokenizer import Slicing, check_grids, check_image, check_latent


@dataclass(frozen=True)
class EncodedImage:
    """An image as bits.

    Args:
        bits: per scale (B, h, w, codebook_bits), uint8.
        latent: (B, codebook_bits, H, W), the sum of all scales' codes, what `BSQAutoencoder.decode` takes.
    """

    bits: list[Tensor]
    latent: Tensor


class BSQAutoencoder(Slicing, ModelMixin, PlacelessConfig):
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
    _no_split_modules: ClassVar[list[str]] = ["ResidualBlock"]
    _skip_layerwise_casting_patterns: ClassVar[list[str]] = ["norm"]
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [name.replace(".", r"\.") for name in QUANTIZER_TABLES]

    @register_to_config  # type: ignore[untyped-decorator]
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
        self.encoder = Encoder(inner, base_channels, num_res_blocks, halvings, codebook_bits, STYLE)
        self.decoder = Decoder(outer, num_res_blocks, halvings, codebook_bits, STYLE)
        self.register_load_state_dict_pre_hook(_drop_unused)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode(self, image: Tensor) -> Tensor:
        """Encode (B, 3, H, W) images in [-1, 1] to the (B, codebook_bits, H / patch, W / patch) latent before signs.

        Raises:
            InvalidInput: not three channels, or sides that ``patch_size`` does not divide.
        """
        check_image(image, self.config.patch_size)
        return self._sliced(self.encoder, image)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def decode(self, latent: Tensor) -> Tensor:
        """Decode a (B, codebook_bits, h, w) latent to (B, 3, h * patch, w * patch) float32 images in [-1, 1].

        Raises:
            InvalidInput: a latent of another tokenizer.
        """
        check_latent(latent, self.config.codebook_bits)
        return self._sliced(self.decoder, latent).clamp(-1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Reconstruct (B, 3, H, W) images from the bits of a single scale."""
        latent = self.encode(image)
        image = self.decode(self.encode_latent(latent, [(latent.shape[2], latent.shape[3])]).latent)
        return image

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
        check_grids(grids, final)
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
        image: Tensor = self.decode(latent)
        return image


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
    for name in QUANTIZER_TABLES:
        state_dict.pop(prefix + name, None)


# Saved pipelines store the module of a component's class; the package is the address we promise to keep.
BSQAutoencoder.__module__ = "scalekv.models.infinity"
