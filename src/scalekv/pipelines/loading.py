"""Loading a pipeline of any family from a folder or a hub name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from scalekv.errors import CheckpointError, InvalidInput
from scalekv.models.catalog import model_names, model_spec
from scalekv.pipelines import folders
from scalekv.pipelines.arguments import check_cache_dtype
from scalekv.pipelines.building import as_dtype
from scalekv.pipelines.infinity import InfinityPipeline
from scalekv.pipelines.var import VARPipeline

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

PIPELINES: dict[str, type[Any]] = {"InfinityPipeline": InfinityPipeline, "VARPipeline": VARPipeline}
"""Pipelines by the class name that their folders store."""


def load_pipeline(
    path_or_name: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    cache_dtype: torch.dtype | str | None = None,
    **options: Any,
) -> DiffusionPipeline:
    """Load the pipeline that a folder's or hub repository's ``model_index.json`` names.

    Args:
        path_or_name: folder written by ``save_pretrained`` or :func:`scalekv.pipelines.convert`, or a hub name.
        dtype: of the networks, such as ``torch.bfloat16`` or ``"bfloat16"``; default as stored. The picture decoder
            and the text encoder follow it.
        device: where to put the pipeline; default the CPU.
        cache_dtype: what self attention computes in and the cache holds, such as ``torch.bfloat16`` under weights in
            float32; default that of the weights.
        options: passed to the pipeline's ``from_pretrained``.

    Raises:
        InvalidInput: no such type, folder or hub name, or a folder of another kind; official checkpoint files are
            named as such, with the command that converts them.
        CheckpointError: a component is missing, truncated or of another shape.
    """
    _refuse_model_name(path_or_name)
    placed, held = _device(device), check_cache_dtype(cache_dtype)
    folder = folders.local_folder(InfinityPipeline, path_or_name, options)
    name = folders.read_index(folder)["_class_name"]
    if name not in PIPELINES:
        raise InvalidInput(f"{path_or_name} is a {name}; scalekv runs {', '.join(PIPELINES)}.")
    if dtype is not None:
        options["dtype"] = as_dtype(dtype)
    try:
        pipeline = PIPELINES[name].from_pretrained(folder, **options)
    except InvalidInput:
        raise
    except (OSError, ValueError, KeyError, AttributeError, ImportError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path_or_name} cannot be loaded ({str(error).splitlines()[0][:200]}); copy or convert it again."
        ) from error
    pipeline.cache_dtype = held
    return pipeline if placed is None else pipeline.to(placed)


def _device(device: torch.device | str | None) -> torch.device | None:
    try:
        placed = None if device is None else torch.device(device)
    except RuntimeError as error:
        raise InvalidInput(f"Unknown device {device!r}; use 'cpu', 'cuda', 'cuda:0' or 'mps'.") from error
    if placed is not None and placed.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInput(f"Device {device!r} needs a CUDA GPU, and PyTorch sees none here; use device='cpu'.")
    return placed


def _refuse_model_name(name: str | Path) -> None:
    if Path(name).exists() or str(name) not in model_names():
        return
    spec = model_spec(str(name))
    raise InvalidInput(
        f"{name} is published as official weights; download {spec.files[0]} and {spec.autoencoder.files[0]} of "
        f"{spec.repository} from the model hub and run 'scalekv convert' on them."
    )
