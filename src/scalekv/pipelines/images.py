"""Decoded pictures in the forms that diffusers pipelines return."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor


def to_output(images: Tensor, output_type: str) -> Any:
    """Pictures in the form ``output_type``.

    Args:
        images: (images, 3, height, width) of -1..1.
        output_type: ``"pil"`` (8 bits, truncated as published), ``"np"`` (images, height, width, 3)
            of 0..1, or ``"pt"`` (images, 3, height, width) of 0..1.
    """
    pixels = (images.float() + 1) / 2
    if output_type == "pt":
        return pixels
    if output_type == "np":
        return pixels.permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(one.numpy()) for one in to_uint8(pixels).cpu()]


def to_uint8(pixels: Tensor) -> Tensor:
    """(images, 3, height, width) of 0..1 as (images, height, width, 3) bytes; truncated, not rounded."""
    return (pixels.permute(0, 2, 3, 1) * 255).to(torch.uint8)
