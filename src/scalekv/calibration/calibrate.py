"""From prompts to a profile: run the model with the full cache and keep what its attention did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from scalekv._version import __version__
from scalekv.calibration.recording import AttentionStatistics, RecordingCache
from scalekv.errors import InvalidInput
from scalekv.planning import CacheGeometry, Profile

if TYPE_CHECKING:
    from scalekv.pipelines.infinity import InfinityPipeline


class _Recorder:
    """A cache factory that opens recording caches over one set of statistics."""

    def __init__(self, queries: int, top: int) -> None:
        self.queries, self.top, self.seed = queries, top, 0
        self.geometry: CacheGeometry | None = None
        self.statistics: AttentionStatistics | None = None

    def __call__(self, geometry: CacheGeometry, *, dtype: torch.dtype, device: torch.device) -> RecordingCache:
        if self.statistics is None:
            self.geometry = geometry
            self.statistics = AttentionStatistics(len(geometry.schedule), geometry.layers)
        return RecordingCache(
            geometry,
            self.statistics,
            dtype=dtype,
            device=device,
            queries=self.queries,
            top=self.top,
            seed=self.seed,
        )


def calibrate(
    pipeline: InfinityPipeline,
    prompts: Sequence[str],
    *,
    name: str,
    seed: int = 0,
    queries: int = 256,
    top: int = 64,
    progress: Callable[[int, int], None] | None = None,
    **generation: Any,
) -> Profile:
    """Measure a model on one schedule.

    Draws every prompt once with the full cache (seed ``seed + i`` for prompt ``i``) and averages the statistics of
    :class:`RecordingCache` over prompts. The paper finds 10 prompts enough.

    Args:
        pipeline: the model.
        prompts: at least one.
        name: the model's name in the profile.
        seed: of the first prompt.
        queries: sampled queries per segment.
        top: K' of the ASI.
        progress: called with (prompts done, prompts in all).
        generation: further arguments of the pipeline, such as ``size`` or ``guidance_scale``.

    Returns:
        A profile for exactly the schedule that was drawn.

    Raises:
        InvalidInput: no prompts, one text instead of a list, ``queries`` or ``top`` below 1, or an argument in
            ``generation`` that calibration decides itself.
    """
    _check(prompts, queries, top, generation)
    recorder = _Recorder(queries, top)
    for index, prompt in enumerate(prompts):
        recorder.seed = seed + index
        generator = torch.Generator(device="cpu").manual_seed(seed + index)
        pipeline(prompt, generator=generator, kv_cache=recorder, output_type="latent", **generation)
        if progress is not None:
            progress(index + 1, len(prompts))
    assert recorder.geometry is not None
    assert recorder.statistics is not None
    return Profile(
        model=name,
        layers=recorder.geometry.layers,
        heads=recorder.geometry.heads,
        schedule=recorder.geometry.schedule,
        statistics=recorder.statistics.mean(),
        details={
            "prompts": len(prompts),
            "seed": seed,
            "queries": queries,
            "top": top,
            "dtype": str(pipeline.transformer.dtype).removeprefix("torch."),
            "torch": torch.__version__,
            "scalekv": __version__,
            **{key: value for key, value in generation.items() if isinstance(value, (str, int, float))},
        },
    )


def _check(prompts: Sequence[str], queries: int, top: int, generation: dict[str, Any]) -> None:
    if isinstance(prompts, str):
        raise InvalidInput(f"Calibration takes a list of prompts, got the text {prompts[:40]!r}; put it into a list.")
    if not prompts:
        raise InvalidInput("Calibration needs at least one prompt, got none; write one prompt per line.")
    if queries < 1 or top < 1:
        raise InvalidInput(f"Calibration needs queries >= 1 and top >= 1, got queries={queries}, top={top}.")
    for taken in ("kv_cache", "generator", "output_type"):
        if taken in generation:
            raise InvalidInput(f"Calibration sets {taken} itself; leave it out.")
