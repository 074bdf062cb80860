"""From prompts to a profile: run the model with the full cache and keep what its attention did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scalekv._version import __version__
from scalekv.calibration.recording import RecordingCache
from scalekv.calibration.statistics import AttentionStatistics
from scalekv.errors import InvalidInput, ProfileError
from scalekv.planning import CacheGeometry, Profile
from scalekv.planning.merging import check_disjoint, check_settings

if TYPE_CHECKING:
    from scalekv.pipelines.base import NextScalePipeline


class _Recorder:
    """A cache factory that opens recording caches over one set of statistics."""

    def __init__(self, queries: int, top: int, sensitivity: bool, earlier: Profile | None) -> None:
        self.queries, self.top, self.seed = queries, top, 0
        self.sensitivity, self.earlier = sensitivity, earlier
        self.statistics: AttentionStatistics | None = None
        self.cache: RecordingCache | None = None

    def __call__(self, geometry: CacheGeometry, *, dtype: torch.dtype, device: torch.device) -> RecordingCache:
        if self.statistics is None:
            if self.earlier is not None:
                self.earlier.check(geometry)
            self.statistics = AttentionStatistics(geometry)
        self.cache = RecordingCache(
            geometry,
            self.statistics,
            dtype=dtype,
            device=device,
            queries=self.queries,
            top=self.top,
            seed=self.seed,
            sensitivity=self.sensitivity,
        )
        return self.cache

    def after_segment(self, pipeline: Any, step: int, timestep: int, tensors: dict[str, Tensor]) -> None:
        """Callback of the pipeline."""
        if self.cache is not None and self.sensitivity:
            self.cache.differentiate(tensors["logits"], pipeline.transformer.choices)


def calibrate(
    pipeline: NextScalePipeline,
    prompts: Sequence[str | int],
    *,
    name: str,
    seed: int = 0,
    queries: int = 256,
    top: int = 64,
    sensitivity: bool = True,
    earlier: Profile | None = None,
    progress: Callable[[int, int], None] | None = None,
    **generation: Any,
) -> Profile:
    """Measure a model on one schedule.

    Draws every prompt once with the full cache (seed ``seed + i`` for prompt ``i``) and averages what
    :class:`RecordingCache` measures over prompts. ScaleKV and HeatKV find 10 prompts enough, HACK uses 50.

    Args:
        pipeline: the model.
        prompts: at least one; classes, numbers or names, for a pipeline that draws classes.
        name: the model's name in the profile.
        seed: of the first prompt.
        queries: sampled queries per segment, for the Attention Selectivity Index.
        top: K' of the Attention Selectivity Index.
        sensitivity: also differentiate the draws of every segment by the outputs of all heads, which `Bytewise` plans
            by; takes the memory of a forward pass whose states are kept, of one segment at a time.
        earlier: a profile of other prompts or seeds with the same settings, to add these to.
        progress: called with (prompts done, prompts in all).
        generation: further arguments of the pipeline, such as ``size`` or ``guidance_scale``.

    Returns:
        A profile for exactly the schedule that was drawn; with ``earlier``, of all prompts together.

    Raises:
        InvalidInput: no prompts, one text instead of a list, ``queries`` or ``top`` below 1, or an argument in
            ``generation`` that calibration decides itself.
        ProfileError: ``earlier`` is of another model, schedule or settings, or holds one of the pictures already.
    """
    _check(prompts, queries, top, generation)
    texts, held = [str(prompt) for prompt in prompts], pipeline.attention_dtype
    details = {
        "prompts": len(texts),
        "runs": [{"seed": seed, "prompts": texts}],
        "queries": queries,
        "top": top,
        "sensitivity": sensitivity,
        "dtype": str(pipeline.transformer.dtype).removeprefix("torch."),
        **({} if held == pipeline.weights_dtype else {"cache_dtype": str(held).removeprefix("torch.")}),
        "torch": torch.__version__,
        "scalekv": __version__,
        **{key: _plain(value) for key, value in generation.items() if value is not None},
    }
    if earlier is not None:
        _check_earlier(earlier, name, details)
    recorder = _Recorder(queries, top, sensitivity, earlier)
    draw: Any = pipeline  # of any family
    for index, prompt in enumerate(prompts):
        recorder.seed = seed + index
        generator = torch.Generator(device="cpu").manual_seed(seed + index)
        draw(
            prompt,
            generator=generator,
            kv_cache=recorder,
            output_type="latent",
            callback_on_step_end=recorder.after_segment,
            callback_on_step_end_tensor_inputs=["logits"],
            **generation,
        )
        if progress is not None:
            progress(index + 1, len(prompts))
    assert recorder.statistics is not None
    measured = recorder.statistics.profile(name, details)
    return measured if earlier is None else Profile.merged(earlier, measured)


def _plain(value: Any) -> str | int | float:
    """A setting as it comes back from JSON."""
    return value if isinstance(value, (str, int, float)) else str(value)


def _check_earlier(earlier: Profile, name: str, details: Mapping[str, Any]) -> None:
    """Say before the work that its result could not be added up."""
    if earlier.model != name:
        raise ProfileError(
            f"The earlier profile is for {earlier.model}, these prompts are measured as {name}; use one name."
        )
    check_disjoint([earlier.details, details])
    check_settings(earlier.details, details)


def _check(prompts: Sequence[str | int], queries: int, top: int, generation: dict[str, Any]) -> None:
    if isinstance(prompts, str):
        raise InvalidInput(f"Calibration takes a list of prompts, got the text {prompts[:40]!r}; put it into a list.")
    if not prompts:
        raise InvalidInput("Calibration needs at least one prompt, got none; write one prompt per line.")
    if queries < 1 or top < 1:
        raise InvalidInput(f"Calibration needs queries >= 1 and top >= 1, got queries={queries}, top={top}.")
    for taken in ("kv_cache", "generator", "output_type", "callback_on_step_end", "callback_on_step_end_tensor_inputs"):
        if taken in generation:
            raise InvalidInput(f"Calibration sets {taken} itself; leave it out.")
