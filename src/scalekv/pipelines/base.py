"""What the pipelines of all families share: folders, profiles, the shape of their cache, and stopping a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from typing_extensions import Self

from scalekv.models.inspection import PROFILE_FILE
from scalekv.pipelines import folders
from scalekv.planning import CacheGeometry, Profile, Schedule


class NextScalePipeline(DiffusionPipeline):
    """A pipeline around a next-scale transformer and its picture tokenizer.

    Attributes:
        profile: calibration profile of this model, read from and saved as ``profile.json`` in its folder.
    """

    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "logits"]

    def __init__(self) -> None:
        super().__init__()
        self.profile: Profile | None = None
        self._interrupt = False

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
        folders.check_folder(folder, given=kwargs)
        as_stored = "dtype" not in kwargs and "torch_dtype" not in kwargs
        options = {**kwargs, "dtype": folders.stored_dtypes(folder)} if as_stored else kwargs
        pipeline: Self = super().from_pretrained(folder, **options)
        if as_stored and "transformer" not in kwargs:
            folders.keep_stored_dtypes(pipeline.transformer, folder / "transformer")
        if (folder / PROFILE_FILE).is_file():
            pipeline.profile = Profile.load(folder / PROFILE_FILE)
        return pipeline

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the pipeline as a folder, its profile included; options as in diffusers."""
        super().save_pretrained(save_directory, **kwargs)
        if self.profile is not None:
            self.profile.save(Path(save_directory) / PROFILE_FILE)

    @property
    def interrupt(self) -> bool:
        """Whether the running call was told to stop after the current segment, by ``pipeline._interrupt = True``."""
        return self._interrupt

    def stop(self) -> None:
        """Make the running call stop after the current segment and decode what there is."""
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
    def attention_dtype(self) -> torch.dtype:
        """The dtype that attention computes in, and the cache holds."""
        stored: torch.dtype = self.transformer.attention_dtype
        # Layerwise casting stores a byte per weight and computes in the type the model reports.
        return stored if stored.itemsize > 1 else self.transformer.dtype
