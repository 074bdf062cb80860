"""Loading a pipeline of any family from a folder or a hub name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def load_pipeline(
    path_or_name: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> DiffusionPipeline:
    """Load the pipeline that a folder's or hub repository's ``model_index.json`` names.

    Args:
        path_or_name: folder written by ``save_pretrained`` or :func:`scalekv.pipelines.convert`, or a hub name.
        dtype: of the networks, such as ``torch.bfloat16`` or ``"bfloat16"``; default as stored. The picture decoder
            and the text encoder follow it.
        device: where to put the pipeline; default the CPU.
        options: passed to the pipeline's ``from_pretrained``.

    Raises:
        InvalidInput: no such folder or hub name, or a folder of another kind; official checkpoint files are named as
            such, with the command that converts them.
        CheckpointError: a component is missing, truncated or of another shape.
    """
    raise NotImplementedError
