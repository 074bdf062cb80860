"""What a whole run takes, before a weight is read: weights, cache and an estimate of the rest. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scalekv.errors import BudgetError, CheckpointError, InvalidInput
from scalekv.models.catalog import ModelSpec
from scalekv.models.infinity import schedules
from scalekv.planning import CacheGeometry, CachePlan, Profile, Schedule
from scalekv.policies import Policy

NUMBERS_PER_CHANNEL = 12
"""Estimate: per token and channel, the residual stream in float32 (2), its normalised copy (2), and the hidden layer of
the feed-forward before and after its nonlinearity (4 each)."""

DECODER_MAPS = 4
"""Estimate: maps of the finest level that are alive together while pictures are decoded."""


@dataclass(frozen=True)
class ModelShape:
    """What the memory of a model depends on.

    Args:
        name: known name or path.
        layers: self-attention layers.
        heads: heads per layer.
        width: channels of the residual stream; ``width / heads`` per head.
        transformer_parameters: weights of the transformer.
        text_encoder_parameters: weights of the text encoder; 0 if there is none.
        autoencoder_parameters: weights of the picture tokenizer.
        size: pixel budget it was trained at; ``None`` with an explicit schedule.
        schedule: the only schedule it draws; ``None`` if it draws the published ones.
        profile: its calibration profile, if there is one.
        known_name: model whose built-in profile is used where there is none, if it fits.
        pixels_per_token: image pixels per token and side.
        decoder_channels: channels of the finest level of the picture decoder.
        unguided_scale: guidance scale at which no unconditional rows run.
    """

    name: str
    layers: int
    heads: int
    width: int
    transformer_parameters: int
    text_encoder_parameters: int
    autoencoder_parameters: int
    size: str | None = "1M"
    schedule: Schedule | None = None
    profile: Profile | None = None
    known_name: str | None = None
    pixels_per_token: int = 16
    decoder_channels: int = 128
    unguided_scale: float = 1.0

    @classmethod
    def of_spec(cls, spec: ModelSpec) -> ModelShape:
        """The shape of a known model."""
        return cls(
            name=spec.name,
            layers=spec.layers,
            heads=spec.heads,
            width=spec.width,
            transformer_parameters=spec.parameters,
            text_encoder_parameters=spec.text_encoder.parameters if spec.text_encoder else 0,
            autoencoder_parameters=spec.autoencoder.parameters,
            size=spec.default_size,
            schedule=spec.schedule,
            profile=Profile.builtin(spec.profile),
            pixels_per_token=spec.autoencoder.patch_size * (2 if spec.patchify else 1),
            decoder_channels=spec.autoencoder.base_channels,
            unguided_scale=0.0 if spec.family == "var" else 1.0,
        )

    @classmethod
    def of_folder(cls, folder: Path) -> ModelShape:
        """The shape of a pipeline folder, from its configurations and the headers of its weights.

        Raises:
            CheckpointError: a part is missing or damaged.
        """
        index = _read_json(folder / "model_index.json")
        transformer = _read_json(folder / "transformer" / "config.json")
        scheduler = _read_json(folder / "scheduler" / "scheduler_config.json")
        explicit = scheduler.get("schedule", "infinity")
        vae = _read_json(folder / "vae" / "config.json")
        own = folder / "profile.json"
        try:
            return cls(
                name=str(index.get("model_name") or folder),
                layers=int(transformer["depth"]),
                heads=int(transformer["num_heads"]),
                width=int(transformer["width"]),
                transformer_parameters=_count_weights(folder / "transformer"),
                text_encoder_parameters=_count_weights(folder / "text_encoder"),
                autoencoder_parameters=_count_weights(folder / "vae"),
                size=str(scheduler.get("size", "1M")) if isinstance(explicit, str) else None,
                schedule=None if isinstance(explicit, str) else Schedule.from_shapes(explicit),
                profile=Profile.load(own) if own.is_file() else None,
                known_name=index.get("model_name"),
                pixels_per_token=int(scheduler.get("pixels_per_token", 16)),
                decoder_channels=int(vae.get("base_channels", 128)),
                unguided_scale=0.0 if index.get("_class_name") == "VARPipeline" else 1.0,
            )
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{folder} lacks {error} in a configuration; convert the model again.") from error

    def pixels(self, schedule: Schedule) -> tuple[int, int]:
        """Width and height of a picture on ``schedule``."""
        return schedule[-1].width * self.pixels_per_token, schedule[-1].height * self.pixels_per_token

    def geometry(self, schedule: Schedule, batch: int, rows_per_image: int, element_bytes: int) -> CacheGeometry:
        """The cache of this model.

        Raises:
            InvalidInput: a count below 1.
        """
        head_dim = self.width // self.heads
        return CacheGeometry(self.layers, self.heads, head_dim, schedule, batch, rows_per_image, element_bytes)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"Cannot read {path} ({error.strerror or error}); a pipeline folder comes from 'scalekv convert'."
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged (it is no JSON text); convert the model again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged (it is no JSON object); convert the model again.")
    return content


def _count_weights(folder: Path) -> int:
    """Numbers in the safetensors files of ``folder``, by their headers; 0 without a folder."""
    return sum(_count_file(path) for path in sorted(folder.glob("*.safetensors")))


def _count_file(path: Path) -> int:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= path.stat().st_size:
                raise ValueError("no header")
            header = json.loads(file.read(length))
        count = 0
        for name, tensor in header.items():
            size = 1 if name != "__metadata__" else 0
            for side in tensor.get("shape", ()):
                size *= int(side)
            count += size
        return count
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged or cut short; copy or convert it again.") from error


def schedule_of(
    shape: ModelShape,
    size: str | None = None,
    height: int | None = None,
    width: int | None = None,
    aspect: float | None = None,
) -> Schedule:
    """The schedule that a wanted picture gets: the nearest there is.

    Args:
        shape: the model.
        size: pixel budget; default the model's own.
        height: pixels, together with ``width``, instead of ``size`` and ``aspect``.
        width: pixels.
        aspect: height over width; default 1.

    Raises:
        ScheduleError: an unknown size.
        InvalidInput: a size for a model that draws one explicit schedule.
    """
    if shape.schedule is not None:
        if size is not None:
            raise InvalidInput(f"{shape.name} draws one explicit schedule and has no size {size!r}; leave --size out.")
        return shape.schedule
    return schedules.schedule_for(
        *schedules.nearest(size or shape.size or "1M", height, width, aspect, shape.pixels_per_token)
    )


@dataclass(frozen=True)
class Footprint:
    """The memory of one run.

    Args:
        shape: the model.
        plan: its cache.
    """

    shape: ModelShape
    plan: CachePlan

    def _bytes(self, parameters: int) -> int:
        return parameters * self.plan.geometry.element_bytes

    @property
    def transformer_bytes(self) -> int:
        """Weights of the transformer, all in the dtype of the run."""
        return self._bytes(self.shape.transformer_parameters)

    @property
    def text_encoder_bytes(self) -> int:
        """Weights of the text encoder."""
        return self._bytes(self.shape.text_encoder_parameters)

    @property
    def autoencoder_bytes(self) -> int:
        """Weights of the picture tokenizer."""
        return self._bytes(self.shape.autoencoder_parameters)

    @property
    def weights_bytes(self) -> int:
        """All weights, none of them offloaded."""
        return self.transformer_bytes + self.text_encoder_bytes + self.autoencoder_bytes

    @property
    def activation_bytes(self) -> int:
        """Estimate of what the transformer needs beside weights and cache, while it works on the last segment.

        ``rows * tokens of the last segment * width * NUMBERS_PER_CHANNEL * bytes(dtype)``.
        """
        geometry = self.plan.geometry
        tokens = geometry.rows * geometry.schedule[-1].tokens
        return tokens * self.shape.width * NUMBERS_PER_CHANNEL * geometry.element_bytes

    @property
    def decoding_bytes(self) -> int:
        """Estimate of what decoding the pictures needs, after the cache is gone.

        ``images * pixels * decoder channels * DECODER_MAPS * bytes(dtype)``.
        """
        geometry, shape = self.plan.geometry, self.shape
        numbers = geometry.schedule[-1].tokens * shape.pixels_per_token**2 * shape.decoder_channels
        return geometry.batch * numbers * DECODER_MAPS * geometry.element_bytes

    @property
    def total_bytes(self) -> int:
        """Weights, and the larger of cache peak with activations and decoding; an estimate because of those two."""
        return self.weights_bytes + max(self.plan.peak_bytes + self.activation_bytes, self.decoding_bytes)

    def to_dict(self) -> dict[str, int]:
        """All byte counts by name."""
        names = ("transformer", "text_encoder", "autoencoder", "weights", "activation", "decoding", "total")
        return {f"{name}_bytes": getattr(self, f"{name}_bytes") for name in names}


@dataclass(frozen=True)
class RunShape:
    """Everything about a run but its budget and its batch.

    Args:
        model: the model.
        schedule: what is drawn.
        rows_per_image: 2 with guidance, else 1.
        element_bytes: bytes per number.
        profile: calibration that fits ``schedule``, if there is one.
    """

    model: ModelShape
    schedule: Schedule
    rows_per_image: int
    element_bytes: int
    profile: Profile | None

    def footprint(self, policy: Policy, batch: int) -> Footprint:
        """What ``batch`` images take under ``policy``.

        Raises:
            BudgetError: no plan fits the policy's budget.
            InvalidInput: a batch below 1.
        """
        geometry = self.model.geometry(self.schedule, batch, self.rows_per_image, self.element_bytes)
        return Footprint(self.model, policy.plan(geometry, self.profile))

    def largest_batch(self, policy: Policy, memory: int) -> int:
        """The most images that ``memory`` bytes hold at once; 0 if not even one fits."""
        known: dict[int, bool] = {}

        def fits(batch: int) -> bool:
            if batch not in known:
                try:
                    known[batch] = self.footprint(policy, batch).total_bytes <= memory
                except BudgetError:
                    known[batch] = False
            return known[batch]

        if not fits(1):
            return 0
        first = self.footprint(policy, 1)
        return _largest(fits, max(1, (memory - first.weights_bytes) // (first.total_bytes - first.weights_bytes)))


def _largest(fits: Callable[[int], bool], guess: int) -> int:
    """The largest number from 1 that fits, given that 1 does; few questions if ``guess`` is near."""
    low, high, step = 1, guess + 1, 1
    if fits(guess):
        low = guess
        while fits(high):
            low, high, step = high, high + 2 * step, 2 * step
    else:
        high = guess
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
