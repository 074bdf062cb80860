"""How far a picture is from the one that the full cache draws: PSNR, SSIM, MS-SSIM and LPIPS, all by torchmetrics.

Pictures are 8-bit RGB, compared on a scale of 0 to 1. A metric whose weights or package are not here is left out, and
`missing_lpips` says what to get: nothing else is ever reported under its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from scalekv.errors import InvalidInput

if TYPE_CHECKING:
    from PIL.Image import Image

SMALLEST_FOR_MS_SSIM = 176
"""Pixels per side from which four halvings leave room for the window of 11 pixels."""

SMALLEST_FOR_SSIM = 11
"""Pixels per side of the window of SSIM."""

ALEXNET = "alexnet-owt-7be5be79.pth"
"""File of torchvision's AlexNet, the backbone of LPIPS."""

INSTALL = "pip install 'scalekv[perceptual]'"

Distance = Callable[["Image", "Image"], float]


def compare(picture: Image, reference: Image) -> dict[str, Any]:
    """The distance of a picture from its reference.

    Returns:
        ``identical``: whether all bytes are equal; ``mse`` on the scale of 0 to 1; ``psnr`` in decibels, ``None`` for
        identical pictures (it is infinite); ``ssim`` (window of 11, sigma 1.5); ``ms_ssim`` (five scales) if both
        sides have at least `SMALLEST_FOR_MS_SSIM` pixels.

    Raises:
        InvalidInput: pictures of different sizes.
    """
    if picture.size != reference.size:
        raise InvalidInput(f"Pictures of {picture.size} and {reference.size} pixels cannot be compared.")
    first, second = as_tensor(picture), as_tensor(reference)
    level = psnr(picture, reference)
    found: dict[str, Any] = {
        "identical": math.isinf(level),
        "mse": float((first - second).square().mean()),
        "psnr": None if math.isinf(level) else level,
    }
    side = min(picture.size)
    if side >= SMALLEST_FOR_SSIM:
        found["ssim"] = float(_first(structural_similarity_index_measure(first, second, data_range=1.0)))
    if side >= SMALLEST_FOR_MS_SSIM:
        found["ms_ssim"] = float(multiscale_structural_similarity_index_measure(first, second, data_range=1.0))
    return found


def psnr(picture: Image, reference: Image) -> float:
    """Peak signal-to-noise ratio in decibels; infinite for equal pictures."""
    first, second = as_tensor(picture), as_tensor(reference)
    if torch.equal(first, second):
        return math.inf
    return float(peak_signal_noise_ratio(first, second, data_range=1.0))


def as_tensor(picture: Image) -> Tensor:
    """(1, 3, height, width) float64 of 0 to 1; float32 gives equal pictures a similarity below 1."""
    pixels = torch.from_numpy(np.asarray(picture.convert("RGB")).copy())
    return pixels.permute(2, 0, 1)[None].double() / 255


def _first(found: Tensor | tuple[Tensor, ...]) -> Tensor:
    return found[0] if isinstance(found, tuple) else found


def missing_lpips() -> str | None:
    """What LPIPS lacks on this machine, in a sentence; ``None`` if nothing."""
    if (problem := missing_package("LPIPS", "torchvision")) is not None:
        return problem
    return missing_weights("LPIPS", ALEXNET, "torchvision's AlexNet")


def load_lpips() -> Distance:
    """LPIPS with AlexNet (torchmetrics' default), on pictures scaled to its range of -1 to 1.

    Raises:
        InvalidInput: its package or weights are not here.
    """
    if (problem := missing_lpips()) is not None:
        raise InvalidInput(problem)
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    network = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)

    def distance(picture: Image, reference: Image) -> float:
        with torch.no_grad():
            return float(network(as_tensor(picture).float(), as_tensor(reference).float()))

    return distance


def missing_package(metric: str, package: str) -> str | None:
    """Why a metric cannot work without a package; ``None`` if that is installed."""
    if find_spec(package) is None:
        return f"{metric} needs {package}, which is not installed; {INSTALL}."
    return None


def missing_weights(metric: str, name: str, what: str) -> str | None:
    """Why a metric cannot work without weights; ``None`` if they are where torch keeps downloads."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / name
    if file.is_file():
        return None
    return f"{metric} needs the weights of {what}, which are not here; put {name} into {file.parent}."
