"""What the pipelines of all families share: folders, profiles, the shape of their cache, and stopping a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

import torch
from diffusers import DiffusionPipeline
from typing_extensions import Self

from scalekv.errors import InvalidInput
from scalekv.models.inspection import PROFILE_FILE
from scalekv.models.saving import PlacelessConfig
from scalekv.pipelines import folders
from scalekv.pipelines.arguments import check_cache_dtype
from scalekv.planning import CacheGeometry, Profile, Schedule

P = ParamSpec("P")
R = TypeVar("R")


def one_call(call: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Give every run of ``call``, a pipeline's ``__call__``, its own stop switch.

    A call that a callback makes starts with the switch off and leaves it as it found it.
    """

    @wraps(call)
    def run(pipeline: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        around, pipeline._interrupt = pipeline._interrupt, False
        pipeline._calls += 1
        try:
            return call(pipeline, *args, **kwargs)
        finally:
            pipeline._calls -= 1
            if pipeline._calls:
                pipeline._interrupt = around

    return run


class NextScalePipeline(PlacelessConfig, DiffusionPipeline):
    """A pipeline around a next-scale transformer and its picture tokenizer.

    Attributes:
        profile: calibration profile of this model, read from and saved as ``profile.json`` in its folder.
        cache_dtype: what self attention computes in and the cache holds; ``None`` is the type of the weights.
    """

    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "logits"]
    _carried: ClassVar[tuple[str, ...]] = ("profile", "cache_dtype")
    """Attributes beside the parts that `from_pipe` hands on."""

    def __init__(self) -> None:
        super().__init__()
        self.profile: Profile | None = None
        self._cache_dtype: torch.dtype | None = None
        self._interrupt = False
        self._calls = 0

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load a folder written by ``save_pretrained``, or a hub repository; options as in diffusers.

        Stricter than diffusers: names and shapes of all weights are compared first. Without ``dtype`` (or
        ``torch_dtype``) every part keeps the type it is stored in.

        Raises:
            CheckpointError: a part is missing, damaged, or of another shape.
            InvalidInput: no such folder, or no such hub name.
        """
        folder = folders.local_folder(cls, pretrained_model_name_or_path, kwargs)
        variant = kwargs.get("variant")
        folders.check_folder(folder, given=kwargs)
        as_stored = "dtype" not in kwargs and "torch_dtype" not in kwargs
        options = {**kwargs, "dtype": folders.stored_dtypes(folder, variant)} if as_stored else kwargs
        pipeline: Self = super().from_pretrained(folder, **options)
        if as_stored and "transformer" not in kwargs:
            folders.keep_stored_dtypes(pipeline.transformer, folder / "transformer", variant)
        if (folder / PROFILE_FILE).is_file():
            pipeline.profile = Profile.load(folder / PROFILE_FILE)
        return pipeline

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the pipeline as a folder, its profile included; options as in diffusers.

        An older profile in the folder goes where the pipeline has none.

        Raises:
            InvalidInput: ``safe_serialization=False``, or another format than safetensors.
        """
        if not kwargs.get("safe_serialization", True) or kwargs.get("use_flashpack"):
            raise InvalidInput(
                "Pipelines are saved as safetensors only, which run no code when opened; leave safe_serialization and "
                "use_flashpack alone."
            )
        super().save_pretrained(save_directory, **kwargs)
        if self.profile is not None:
            self.profile.save(Path(save_directory) / PROFILE_FILE)
        else:
            (Path(save_directory) / PROFILE_FILE).unlink(missing_ok=True)

    @classmethod
    def from_pipe(cls, pipeline: Any, **parts: Any) -> Self:
        """A second pipeline on the same weights, with the model name, profile and other attributes of the first.

        Unlike in diffusers no weight changes its type: both pipelines share them.

        Args:
            pipeline: one of this class.
            parts: constructor arguments to use instead of those of ``pipeline``.

        Raises:
            InvalidInput: a pipeline of another class, or no constructor argument.
            CheckpointError: parts that do not belong together.
        """
        if not isinstance(pipeline, cls):
            raise InvalidInput(f"{cls.__name__}.from_pipe takes a {cls.__name__}, got a {type(pipeline).__name__}.")
        known = {**pipeline.components, "model_name": pipeline.config.model_name}
        if unknown := sorted(parts.keys() - known.keys()):
            raise InvalidInput(f"{cls.__name__} has no part {', '.join(unknown)}; it has {', '.join(sorted(known))}.")
        made = cls(**{**known, **parts})
        for name in cls._carried:
            setattr(made, name, getattr(pipeline, name))
        return made

    @property
    def interrupt(self) -> bool:
        """Whether the running call, or the last one, was told to stop after the current segment.

        Calls that a callback makes have a switch of their own.
        """
        return self._interrupt

    def stop(self) -> None:
        """Make the running call stop after the current segment and decode what there is.

        In a callback, latents that it returns count. ``pipeline._interrupt = True`` does the same.
        """
        self._interrupt = True

    def cache_geometry(self, schedule: Schedule, batch: int = 1, guidance: int = 2) -> CacheGeometry:
        """The KV cache of a run of this pipeline.

        Args:
            schedule: the segments.
            batch: images drawn together.
            guidance: rows per image, 2 with guidance.
        """
        config = self.transformer.config
        return CacheGeometry(
            layers=config.depth,
            heads=config.num_heads,
            head_dim=config.width // config.num_heads,
            schedule=schedule,
            batch=batch,
            guidance=guidance,
            element_bytes=self.attention_dtype.itemsize,
        )

    @property
    def cache_dtype(self) -> torch.dtype | None:
        """What self attention computes in and the cache holds, by default (``None``) the type of the weights.

        Linear maps keep the type of their weights. Can be set at any time, as a type or by name, and counts from the
        next call on; it is not saved in the pipeline's folder.

        Raises:
            InvalidInput: when set to anything but float32, bfloat16, float16 or ``None``.
        """
        return self._cache_dtype

    @cache_dtype.setter
    def cache_dtype(self, given: torch.dtype | str | None) -> None:
        self._cache_dtype = check_cache_dtype(given)

    @property
    def attention_dtype(self) -> torch.dtype:
        """The dtype that self attention computes in, and the cache holds."""
        return self.cache_dtype or self.weights_dtype

    @property
    def weights_dtype(self) -> torch.dtype:
        """The dtype that the transformer's linear maps compute in."""
        stored: torch.dtype = self.transformer.attention_dtype
        # Layerwise casting stores a byte per weight and computes in the type the model reports.
        return stored if stored.itemsize > 1 else self.transformer.dtype
