"""Drawing bits from logits, and moving between token, latent and code layouts.

Layouts: logits (B, tokens, 2 * token_bits) with entries 2j and 2j + 1 for bit j being 0 and 1; bits
(B, h, w, codebook_bits) uint8 on the latent grid; codes (B, codebook_bits, h, w) float32.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from scalekv.errors import InvalidInput
from scalekv.models.randomness import Generators, draw_rows


def filter_logits(logits: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Rule out unlikely bits of (..., 2) ``logits`` by setting them to minus infinity.

    Args:
        logits: last dimension holds the bit being 0 and being 1.
        top_k: 1 keeps the likelier value (both where they are equal); 0, 2 and more keep both.
        top_p: rules out the less likely value where its probability is at most ``1 - top_p``; 0 rules out nothing.

    Raises:
        InvalidInput: ``top_k`` negative or ``top_p`` outside of 0 .. 1.
    """
    if top_k < 0:
        raise InvalidInput(f"top_k must be 0 (off) or more, got {top_k}.")
    if not 0 <= top_p <= 1:
        raise InvalidInput(f"top_p must lie between 0 (off) and 1, got {top_p}.")
    zero, one = logits.unbind(-1)
    less_likely = torch.stack((zero <= one, one < zero), dim=-1)
    if top_k == 1:
        logits = logits.masked_fill(less_likely & (zero != one)[..., None], -torch.inf)
    if top_p > 0:
        logits = logits.masked_fill(less_likely & (logits.softmax(-1) <= 1 - top_p), -torch.inf)
    return logits


def sample_bits(logits: Tensor, top_k: int = 0, top_p: float = 0.0, generator: Generators = None) -> Tensor:
    """Draw every bit of (B, tokens, 2 * token_bits) ``logits``.

    Generators are used as `draw_rows` says: the same bits on every device.

    Returns:
        (B, tokens, token_bits) uint8.

    Raises:
        InvalidInput: a list of generators that is not one per image, or `filter_logits` refuses.
    """
    batch, tokens, width = logits.shape
    chances = filter_logits(logits.float().unflatten(-1, (width // 2, 2)), top_k, top_p).softmax(-1).flatten(1, 2)
    return draw_rows(chances, generator).view(batch, tokens, width // 2).to(torch.uint8)


def unpatchify(bits: Tensor, patch_size: int) -> Tensor:
    """Token bits (B, h, w, codebook_bits * patch_size^2) to latent bits (B, h * patch, w * patch, codebook_bits)."""
    return F.pixel_shuffle(bits.permute(0, 3, 1, 2), patch_size).permute(0, 2, 3, 1)


def patchify(latent: Tensor, patch_size: int) -> Tensor:
    """Latent (B, codebook_bits, h * patch, w * patch) to row-major tokens (B, h * w, codebook_bits * patch_size^2).

    A token's channel ``patch^2 * c + patch * dy + dx`` is the latent pixel (dy, dx) of its patch in channel c.
    """
    return F.pixel_unshuffle(latent, patch_size).flatten(2).transpose(1, 2)


def bits_to_codes(bits: Tensor) -> Tensor:
    """Bits (B, h, w, n) to float32 codes (B, n, h, w): ``(2 * bit - 1) / sqrt(n)``."""
    signs = bits.permute(0, 3, 1, 2).float() * 2 - 1
    return signs / math.sqrt(bits.shape[-1])


def resize(latent: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize (B, n, h, w) to ``grid`` bilinearly, up or down, without anti-aliasing; unchanged if it fits already."""
    if latent.shape[-2:] == grid:
        return latent
    return F.interpolate(latent, size=grid, mode="bilinear", align_corners=False)
