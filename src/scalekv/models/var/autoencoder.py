"""The multi-scale picture tokenizer of VAR: a convolutional autoencoder whose latent is a sum of coded scales (VQVAE).

Module names equal the keys of the published file. Images are (B, 3, height, width) RGB in [-1, 1], latents
(B, latent_channels, h, w), tokens (B, h, w) int64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from accelerate.utils import align_module_device  # type: ignore[import-untyped]
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn

from scalekv.errors import InvalidInput
from scalekv.models.convolutions import Decoder, Encoder, Style, group_norm
from scalekv.models.saving import PlacelessConfig
from scalekv.models.tokenizer import Slicing, check_grids, check_image, check_latent
from scalekv.models.var.codebook import Codebook, shrink


@dataclass(frozen=True)
class EncodedImage:
    """An image as tokens.

    Args:
        tokens: per scale (B, h, w), int64.
        latent: (B, latent_channels, H, W), what all scales add up to and `VQAutoencoder.decode` takes.
    """

    tokens: list[Tensor]
    latent: Tensor


class MapAttention(nn.Module):
    """Single-head attention between the positions of a map, beside a shortcut.

    Args:
        channels: channels in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, states: Tensor) -> Tensor:
        """Map (B, channels, h, w) to the same shape."""
        query, key, value = self.qkv(self.norm(states)).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)
        read = F.scaled_dot_product_attention(query, key, value, scale=1 / math.sqrt(states.shape[1]))
        out: Tensor = states + self.proj_out(read[:, 0].transpose(1, 2).unflatten(2, states.shape[2:]))
        return out


STYLE = Style(nn.Conv2d, group_norm, MapAttention)


class SharedPhi(nn.Module):
    """One smoothing convolution for all scales; the name is part of the published keys."""

    def __init__(self, phi: nn.Module) -> None:
        super().__init__()
        self.qresi = phi


class SomePhis(nn.Module):
    """A few smoothing convolutions that the scales share; the name is part of the published keys."""

    def __init__(self, phis: Sequence[nn.Module]) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(phis)


class Quantizer(nn.Module):
    """Code vectors and smoothing convolutions; arguments as in `VQAutoencoder`."""

    ema_vocab_hit_SV: Tensor

    def __init__(self, vocab_size: int, channels: int, num_scales: int, shared_phis: int, smooth: bool) -> None:
        super().__init__()
        # Statistics of the training run that published files carry; nothing reads them.
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(num_scales, vocab_size))

        def phi() -> nn.Module:
            return nn.Conv2d(channels, channels, 3, padding=1) if smooth else nn.Identity()

        self.quant_resi: nn.Module
        if shared_phis == 0:
            self.quant_resi = nn.ModuleList(phi() for _ in range(num_scales))
        elif shared_phis == 1:
            self.quant_resi = SharedPhi(phi())
        else:
            self.quant_resi = SomePhis([phi() for _ in range(shared_phis)])
        self.embedding = nn.Embedding(vocab_size, channels)
        self.register_load_state_dict_pre_hook(_keep_own_statistics)


class VQAutoencoder(Slicing, ModelMixin, PlacelessConfig):
    """The image tokenizer of VAR. Reference names of the arguments are given in brackets.

    Args:
        vocab_size: code vectors V.
        latent_channels: channels Z of a latent pixel [z_channels].
        base_channels: channels of the finest level [ch], a multiple of 32 or 24.
        channel_multipliers: channels of every level over ``base_channels``, finest first [ch_mult]; every level but
            the first halves the sides.
        num_res_blocks: residual blocks per level.
        num_scales: scales K of its training [number of v_patch_nums]; other schedules can be coded all the same.
        shared_phis: smoothing convolutions that the scales share; 0 for one per scale [share_quant_resi].
        quant_resi: share of the smoothing convolution in what a scale adds; 0 for none.
        quant_conv_kernel: side of the convolutions around the latent [quant_conv_ks].
        using_znorm: encode by direction only.

    Raises:
        InvalidInput: no levels, a count that is too small, or channels without a group norm.
    """

    _supports_gradient_checkpointing = False
    _no_split_modules: ClassVar[list[str]] = ["ResidualBlock", "MapAttention"]
    _skip_layerwise_casting_patterns: ClassVar[list[str]] = ["norm", "quantize"]
    _keep_in_fp32_modules: ClassVar[list[str]] = ["quantize"]

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        vocab_size: int = 4096,
        latent_channels: int = 32,
        base_channels: int = 160,
        channel_multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        num_scales: int = 10,
        shared_phis: int = 4,
        quant_resi: float = 0.5,
        quant_conv_kernel: int = 3,
        using_znorm: bool = False,
    ) -> None:
        super().__init__()
        if not channel_multipliers or min(num_res_blocks, num_scales, vocab_size) < 1 or shared_phis < 0:
            raise InvalidInput(
                f"A tokenizer has levels, blocks, scales and codes, got channel_multipliers={channel_multipliers}, "
                f"num_res_blocks={num_res_blocks}, num_scales={num_scales}, vocab_size={vocab_size}, "
                f"shared_phis={shared_phis}."
            )
        widths, halvings = [base_channels * factor for factor in channel_multipliers], len(channel_multipliers) - 1
        self.encoder = Encoder(widths, base_channels, num_res_blocks, halvings, latent_channels, STYLE)
        self.decoder = Decoder(widths, num_res_blocks, halvings, latent_channels, STYLE)
        self.quantize = Quantizer(vocab_size, latent_channels, num_scales, shared_phis, abs(quant_resi) > 1e-6)
        padding = quant_conv_kernel // 2
        self.quant_conv = nn.Conv2d(latent_channels, latent_channels, quant_conv_kernel, padding=padding)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, quant_conv_kernel, padding=padding)

    @property
    def patch_size(self) -> int:
        """Image pixels per latent pixel and side."""
        return 1 << (len(self.config.channel_multipliers) - 1)

    def codebook(self, device: torch.device | None = None) -> Codebook:
        """A float32 copy of what turns tokens into a latent, on ``device`` (default: the network's own)."""
        place = device or self.device

        def copied(tensor: Tensor) -> Tensor:
            return tensor.detach().to(place, torch.float32, copy=True)

        phis = []
        for module in self.quantize.quant_resi.modules():
            if isinstance(module, nn.Conv2d):
                # Offloading keeps weights elsewhere and moves them for forward calls only, which this is not.
                with align_module_device(module, place):
                    assert module.bias is not None
                    phis.append((copied(module.weight), copied(module.bias)))
        with align_module_device(self.quantize.embedding, place):
            embedding = copied(self.quantize.embedding.weight)
        return Codebook(embedding, tuple(phis), abs(self.config.quant_resi), self.config.using_znorm)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode(self, image: Tensor) -> Tensor:
        """Encode (B, 3, H, W) images in [-1, 1] to the (B, latent_channels, H / patch, W / patch) latent before coding.

        Raises:
            InvalidInput: not three channels, or sides that the patch size does not divide.
        """
        check_image(image, self.patch_size)
        return self._sliced(lambda states: self.quant_conv(self.encoder(states)), image)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def decode(self, latent: Tensor) -> Tensor:
        """Decode a (B, latent_channels, h, w) latent to (B, 3, h * patch, w * patch) float32 images in [-1, 1].

        Raises:
            InvalidInput: a latent of another tokenizer.
        """
        check_latent(latent, self.config.latent_channels)
        return self._sliced(lambda states: self.decoder(self.post_quant_conv(states)), latent).clamp(-1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Reconstruct (B, 3, H, W) images from the tokens of a single scale."""
        latent = self.encode(image)
        image = self.decode(self.encode_latent(latent, [(latent.shape[2], latent.shape[3])]).latent)
        return image

    def encode_to_tokens(self, image: Tensor, grids: Sequence[tuple[int, int]]) -> EncodedImage:
        """Turn images into tokens scale by scale, each scale coding what the earlier ones left over.

        Args:
            image: (B, 3, H, W) in [-1, 1].
            grids: (h, w) tokens of every scale; the last is the whole latent.

        Raises:
            InvalidInput: as `encode`, or a last grid that is not the image's latent grid.
        """
        return self.encode_latent(self.encode(image), grids)

    @torch.no_grad()
    def encode_latent(self, latent: Tensor, grids: Sequence[tuple[int, int]]) -> EncodedImage:
        """As `encode_to_tokens`, from the (B, latent_channels, h, w) latent that `encode` gives."""
        final = (latent.shape[2], latent.shape[3])
        check_grids(grids, final)
        codebook = self.codebook(latent.device)
        rest, total, tokens = latent.float(), torch.zeros_like(latent, dtype=torch.float32), []
        for step, grid in enumerate(grids):
            tokens.append(codebook.nearest(shrink(rest, (grid[0], grid[1]))))
            added = codebook.residual(codebook.lookup(tokens[-1]), step, len(grids), final)
            rest, total = rest - added, total + added
        return EncodedImage(tokens, total)

    def decode_tokens(self, tokens: Sequence[Tensor]) -> Tensor:
        """Decode the (B, h, w) tokens of all scales, the last at full latent size, to images."""
        height, width = tokens[-1].shape[1:]
        *_, latent = self.codebook(tokens[-1].device).accumulate(tokens, len(tokens), (height, width))
        image: Tensor = self.decode(latent)
        return image


def _keep_own_statistics(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Files of another number of scales fit all the same, as in the published loader."""
    name, own = f"{prefix}ema_vocab_hit_SV", module.ema_vocab_hit_SV
    assert isinstance(own, Tensor)
    if name in state_dict and len(state_dict[name]) != len(own):
        state_dict[name] = own


# Saved pipelines store the module of a component's class; the package is the address we promise to keep.
VQAutoencoder.__module__ = "scalekv.models.var"
