"""What the picture tokenizers of all families share: checks of what comes in, and slicing of batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scalekv.errors import InvalidInput


def check_image(image: Tensor, patch_size: int) -> None:
    """Refuse what is no (B, 3, H, W) with sides that ``patch_size`` divides.

    Raises:
        InvalidInput: another shape.
    """
    if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] % patch_size or image.shape[3] % patch_size:
        raise InvalidInput(
            f"Images have shape {tuple(image.shape)}, expected (batch, 3, height, width) in multiples of {patch_size}."
        )


def check_latent(latent: Tensor, channels: int) -> None:
    """Refuse what is no (B, channels, h, w).

    Raises:
        InvalidInput: another shape.
    """
    if latent.ndim != 4 or latent.shape[1] != channels:
        raise InvalidInput(f"The latent has shape {tuple(latent.shape)}, expected (batch, {channels}, height, width).")


def check_grids(grids: Sequence[tuple[int, int]], final: tuple[int, int]) -> None:
    """Refuse (h, w) of scales whose last is not ``final``, the latent grid of the image.

    Raises:
        InvalidInput: another last grid, or none.
    """
    if not grids or tuple(grids[-1]) != final:
        raise InvalidInput(f"The last of the grids {list(grids)} must be the image's latent grid {final}.")


class Slicing:
    """Runs convolutional networks on whole batches or image by image; a mixin of diffusers models."""

    dtype: torch.dtype
    use_slicing: bool = False

    def enable_slicing(self) -> None:
        """Encode and decode the images of a batch one by one: slower, with the activations of one image only."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Encode and decode whole batches again."""
        self.use_slicing = False

    def _sliced(self, network: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
        states = states.to(self.dtype)
        if self.use_slicing and len(states) > 1:
            return torch.cat([network(one).float() for one in states.split(1)])
        return network(states).float()
