"""From the words of a command line to a pipeline on a device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalekv.builtin import builtin_folder
from scalekv.cli.files import expanded
from scalekv.cli.output import quiet_libraries
from scalekv.errors import InvalidInput
from scalekv.models.catalog import model_names, model_spec
from scalekv.models.footprint import ModelShape
from scalekv.planning import Profile

if TYPE_CHECKING:
    import torch

    from scalekv.pipelines import InfinityPipeline

SCENES = "scenes"
"""The trained model in the package; what draws where no model is named."""

TINY = "tiny-random"
"""A complete pipeline with random weights that needs no download."""

TINY_CLASSES = "tiny-random-var"
"""The same, drawing classes."""


def model_path(name: str) -> Path:
    """Where a model folder of that name is: in the package, else in the user's file system, there or not."""
    return builtin_folder(name) or expanded(name)


def check_model(name: str) -> None:
    """Refuse what cannot be loaded, before anything heavy is imported.

    Raises:
        InvalidInput: a known model whose weights are not here, or neither a folder nor a hub name.
    """
    path = model_path(name)
    if name in (TINY, TINY_CLASSES):
        return
    if path.is_dir():
        _check_text_encoder(path)
        return
    if path.exists():
        raise InvalidInput(f"{name} is a file; make a folder with 'scalekv convert {name} --vae VAE --out FOLDER'.")
    if name.strip().lower().replace("_", "-") in model_names():
        spec = model_spec(name)
        raise InvalidInput(
            f"The weights of {spec.name} are not here: download {spec.files[0]} and {spec.autoencoder.files[0]} from "
            f"{spec.repository}, make a folder with 'scalekv convert', and give --model FOLDER."
        )
    is_hub_name = name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")
    if not is_hub_name:
        raise InvalidInput(
            f"There is no model folder {name!r}; give a folder, a hub name (owner/name), "
            f"{SCENES}, {TINY} or {TINY_CLASSES}."
        )


def check_subject(name: str, classes: bool, pipeline: Any = None, option: str = "--class") -> None:
    """Refuse classes for a model that draws prompts, and prompts for one that draws classes.

    Args:
        name: the model; what cannot be told before it is loaded passes.
        classes: whether classes are given.
        pipeline: the model, once it is loaded.
        option: how classes are given.

    Raises:
        InvalidInput: the model draws the other kind.
    """
    kind: str | None
    if pipeline is not None:
        kind = type(pipeline).__name__
    else:
        kind = "VARPipeline" if name == TINY_CLASSES else _stored_kind(model_path(name))
    if kind == "VARPipeline" and not classes:
        names = " or --class 'golden retriever'" if option == "--class" else ""
        raise InvalidInput(f"{name} draws classes, not prompts; write {option} 207{names}.")
    if kind == "InfinityPipeline" and classes:
        raise InvalidInput(f"{name} draws prompts, not classes; leave {option} out and write what to draw.")


def _stored_kind(folder: Path) -> str | None:
    """The pipeline class that a folder stores, if it is one."""
    try:
        return str(json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _check_text_encoder(folder: Path) -> None:
    """Weights take long to read; the index says at once that prompts cannot be encoded."""
    try:
        parts = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        left_out = list(parts["text_encoder"]) == [None, None]
    except (OSError, ValueError, KeyError, TypeError):
        return  # the loader says what is wrong with such a folder
    if left_out:
        raise InvalidInput(
            f"{folder} has no text encoder; convert it again with --text-encoder google/flan-t5-xl (or a local copy)."
        )


def open_model(name: str, dtype: str | None, device: str | None, cache_dtype: str | None = None) -> InfinityPipeline:
    """Load a pipeline onto a device.

    Args:
        name: of the model.
        dtype: of the weights; default as stored.
        device: where; default the best there is.
        cache_dtype: of the cache; default that of the weights.

    Raises:
        InvalidInput: no such model or device.
        CheckpointError: damaged weights.
    """
    check_model(name)
    import torch

    place = find_device(device)
    quiet_libraries()
    from scalekv.pipelines import load_pipeline, tiny_pipeline, tiny_var_pipeline

    folder = model_path(name)
    pipeline: InfinityPipeline
    if name in (TINY, TINY_CLASSES):
        made: Any = tiny_pipeline() if name == TINY else tiny_var_pipeline()
        made.profile = Profile.builtin(name)
        pipeline = made.to(place)
        if dtype is not None:
            pipeline = pipeline.to(getattr(torch, dtype))
    else:
        found: Any = load_pipeline(folder if folder.is_dir() else name, dtype=dtype, device=place)
        pipeline = found
    pipeline.cache_dtype = cache_dtype
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def find_device(text: str | None) -> torch.device:
    """The device called ``text``, or the best there is.

    Raises:
        InvalidInput: no such device, or it is not on this machine.
    """
    import torch

    here = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        here.append("mps")
    if text is None:
        return torch.device(here[-1] if here[-1] == "mps" else "cuda" if len(here) > 1 else "cpu")
    name = text.strip().lower()
    if name not in here and not (name == "cuda" and "cuda:0" in here):
        raise InvalidInput(f"There is no device {text!r}; choose one of {', '.join(here)} (see 'scalekv env').")
    return torch.device(name)


def shape_of_pipeline(pipeline: InfinityPipeline, name: str) -> ModelShape:
    """What the memory of a loaded pipeline depends on."""
    from scalekv.planning import Schedule

    transformer, scheduler = pipeline.transformer.config, pipeline.scheduler.config
    explicit = None if isinstance(scheduler.schedule, str) else Schedule.from_shapes(scheduler.schedule)

    def count(part: torch.nn.Module | None) -> int:
        return sum(weight.numel() for weight in part.parameters()) if part is not None else 0

    return ModelShape(
        name=name,
        layers=transformer.depth,
        heads=transformer.num_heads,
        width=transformer.width,
        transformer_parameters=count(pipeline.transformer),
        text_encoder_parameters=count(getattr(pipeline, "text_encoder", None)),
        autoencoder_parameters=count(pipeline.vae),
        size=None if explicit else scheduler.size,
        schedule=explicit,
        profile=pipeline.profile,
        known_name=pipeline.config.model_name,
        pixels_per_token=scheduler.pixels_per_token,
        decoder_channels=pipeline.vae.config.base_channels,
        unguided_scale=1.0 if hasattr(pipeline, "text_encoder") else 0.0,
    )
