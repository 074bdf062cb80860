"""FID of the pictures of every method against those of the full cache, with the network of torch-fidelity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scalekv.errors import InvalidInput
from scalekv.evaluation.metrics import missing_package, missing_weights

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
"""File of the Inception network that torch-fidelity reads, converted from the one of the original FID."""

ENOUGH = 10_000
"""Pictures from which papers print a FID; with fewer it is too high by an amount that depends on their number."""

BATCH = 32


def missing_fid() -> str | None:
    """What FID lacks on this machine, in a sentence; ``None`` if nothing."""
    if (problem := missing_package("FID", "torch_fidelity")) is not None:
        return problem
    return missing_weights("FID", INCEPTION, "torch-fidelity's Inception network")


def fid(pictures: Iterable[Image], references: Iterable[Image], device: torch.device | str = "cpu") -> float:
    """The Fréchet Inception Distance (2048 features) of two sets of pictures.

    Args:
        pictures: of a method.
        references: of the full cache.
        device: where the Inception network runs.

    Raises:
        InvalidInput: its package or weights are not here, or fewer than two pictures in a set.
    """
    if (problem := missing_fid()) is not None:
        raise InvalidInput(problem)
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric: Any = FrechetInceptionDistance(feature=2048).to(device)
    for real, some in ((True, references), (False, pictures)):
        count = 0
        for batch in _batches(some):
            metric.update(_bytes(batch).to(device), real=real)
            count += len(batch)
        if count < 2:
            raise InvalidInput(f"FID needs at least 2 pictures in each set, got {count}.")
    return float(metric.compute())


def _batches(pictures: Iterable[Image]) -> Iterable[list[Image]]:
    batch: list[Image] = []
    for picture in pictures:
        batch.append(picture)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _bytes(pictures: Sequence[Image]) -> Tensor:
    """(pictures, 3, height, width) bytes."""
    stacked = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()
