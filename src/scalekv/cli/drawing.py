"""Drawing one request: the run, the files it writes, and its report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalekv._version import __version__
from scalekv.cli.files import sheet_path
from scalekv.cli.loading import TINY, TINY_CLASSES
from scalekv.cli.output import Output
from scalekv.planning import CacheGeometry, Profile, Schedule, choose_profile, format_bytes
from scalekv.policies import Full, Policy

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from scalekv.cache import CacheReport, KVCache
    from scalekv.cli.output import Steps
    from scalekv.cli.pictures import Origin
    from scalekv.pipelines import InfinityPipeline, InfinityPipelineOutput


@dataclass(frozen=True)
class Request:
    """One run, read and checked.

    Args:
        prompts: as given; or classes, numbers or names.
        copies: images of each prompt.
        seed: of the first image; image i has ``seed + i``.
        paths: one per image.
        policy: how to hold the cache.
        profile: calibration to use instead of the model's own.
        arguments: further arguments of the pipeline.
    """

    prompts: list[str]
    copies: int
    seed: int
    paths: list[Path]
    policy: Policy
    profile: Profile | None
    arguments: dict[str, Any]

    @property
    def seeds(self) -> list[int]:
        """One per image."""
        return [self.seed + index for index in range(len(self.paths))]

    def prompt_of(self, image: int) -> str:
        """The text of an image."""
        return self.prompts[image // self.copies]


class _Opener:
    """Opens the cache of a run as the pipeline would, and keeps hold of it, to show its bytes."""

    def __init__(
        self, output: Output, pipeline: InfinityPipeline, policy: Policy, profile: Profile | None, steps: Steps
    ) -> None:
        self._output, self._steps = output, steps
        self._pipeline, self._policy, self._profile = pipeline, policy, profile
        self._cache: KVCache | None = None

    def __call__(self, geometry: CacheGeometry, *, dtype: torch.dtype, device: torch.device) -> KVCache:
        from scalekv.cache import KVCache

        pipeline, known = self._pipeline, None
        chosen = choose_profile(self._profile, pipeline.profile, pipeline.config.model_name, geometry)
        if chosen is not None:
            known = chosen.adapted_to(geometry.schedule)
            self._say_adapted(chosen, geometry.schedule)
        self._steps.begin(len(geometry.schedule))
        self._cache = KVCache(self._policy.plan(geometry, known), self._policy, dtype=dtype, device=device)
        return self._cache

    def _say_adapted(self, profile: Profile, schedule: Schedule) -> None:
        if profile.schedule == schedule or isinstance(self._policy, Full):
            return
        side = self._pipeline.scheduler.config.pixels_per_token
        sizes = [f"{one[-1].width * side}x{one[-1].height * side}" for one in (profile.schedule, schedule)]
        self._output.note(f"The profile {profile.model} is for {sizes[0]}; it was adapted to {sizes[1]}.")

    @property
    def live_bytes(self) -> int:
        """Bytes of history held now."""
        return self._cache.live_bytes if self._cache is not None else 0


class Run:
    """One request on one pipeline."""

    def __init__(self, output: Output, model: str, pipeline: InfinityPipeline, request: Request) -> None:
        self.output, self.model, self.pipeline, self.request = output, model, pipeline, request

    def draw(self, compare: bool) -> None:
        """Draw, write and report."""
        from scalekv.cli.pictures import write_png

        begin = time.perf_counter()
        drawn = self._pictures(self.request.policy)
        full = self._pictures(Full()) if compare else None
        origins = [self._origin(image, drawn) for image in range(len(self.request.paths))]
        for picture, path, origin in zip(drawn.images, self.request.paths, origins, strict=True):
            write_png(picture, path, origin)
        comparisons = [] if full is None else self._compare(drawn, full, origins)
        seconds = time.perf_counter() - begin
        self._report(drawn.cache, comparisons)
        self.output.result(self._as_dict(drawn, full, comparisons, seconds))

    def _pictures(self, policy: Policy) -> InfinityPipelineOutput:
        import torch

        request = self.request
        generators = [torch.Generator(device="cpu").manual_seed(seed) for seed in request.seeds]
        with self.output.progress(policy.name) as steps:
            opener = _Opener(self.output, self.pipeline, policy, request.profile, steps)

            def on_segment(*_: Any) -> dict[str, Any]:
                steps.advance(f"{format_bytes(opener.live_bytes)} of cache")
                return {}

            pipeline: Any = self.pipeline  # of either family
            drawn: InfinityPipelineOutput = pipeline(
                request.prompts,
                generator=generators,
                kv_cache=opener,
                callback_on_step_end=on_segment,
                callback_on_step_end_tensor_inputs=(),
                **{self._copies: request.copies},
                **request.arguments,
            )
        return drawn

    @property
    def _copies(self) -> str:
        return "num_images_per_class" if hasattr(self.pipeline, "class_names") else "num_images_per_prompt"

    def _origin(self, image: int, drawn: InfinityPipelineOutput) -> Origin:
        from scalekv.cli.pictures import Origin

        return Origin(
            self.request.prompt_of(image),
            self.request.arguments.get("negative_prompt"),
            self.request.seeds[image],
            self._settings(drawn),
        )

    def _settings(self, drawn: InfinityPipelineOutput) -> dict[str, Any]:
        policy, defaults = self.request.policy, self.pipeline.scheduler.config
        width, height = drawn.images[0].size
        sampling = {
            name: self.request.arguments.get(key, defaults.get(key))
            for name, key in (
                ("guidance", "guidance_scale"),
                ("temperature", "temperature"),
                ("top_k", "top_k"),
                ("top_p", "top_p"),
            )
        }
        return {
            "model": self.model,
            "method": policy.name,
            "budget": policy.settings()["budget"],
            "policy_settings": policy.settings(),
            "width": width,
            "height": height,
            "segments": len(drawn.schedule),
            **sampling,
            "dtype": str(self.pipeline.transformer.dtype).removeprefix("torch."),
            "device": str(self.pipeline.device),
        }

    def _compare(
        self, drawn: InfinityPipelineOutput, full: InfinityPipelineOutput, origins: list[Origin]
    ) -> list[dict[str, Any]]:
        from scalekv.cli.pictures import psnr, write_png

        comparisons = []
        for image, path in enumerate(self.request.paths):
            distance = psnr(drawn.images[image], full.images[image])
            sheet = self._sheet(drawn.images[image], drawn.cache, full.images[image], full.cache, distance)
            target = sheet_path(path)
            write_png(sheet, target, origins[image])
            comparisons.append({"path": str(target), "psnr_db": distance, "identical": distance == float("inf")})
        return comparisons

    def _sheet(self, picture: Image, cache: CacheReport, reference: Image, full: CacheReport, distance: float) -> Image:
        from scalekv.cli.pictures import side_by_side

        budget, several = self.request.policy.settings()["budget"], len(self.request.paths) > 1
        share = f" for {len(self.request.paths)} images" if several else ""
        quality = "identical" if distance == float("inf") else f"PSNR {distance:.1f} dB"
        return side_by_side(
            [
                (reference, ["full cache", f"kept {format_bytes(full.kept_bytes)}{share}"]),
                (picture, [f"{cache.policy}, {budget}", f"kept {format_bytes(cache.kept_bytes)}{share}, {quality}"]),
            ]
        )

    def _report(self, cache: CacheReport, comparisons: list[dict[str, Any]]) -> None:
        paths = self.request.paths
        if self.model in (TINY, TINY_CLASSES):
            self.output.note(f"{self.model} has random weights: it draws structure, not what the prompt says.")
        seeds = self.request.seeds
        where, seed = str(paths[0]), f"seed {seeds[0]}"
        if len(paths) > 1:
            where, seed = f"{len(paths)} pictures, {paths[0]} to {paths[-1]}", f"seeds {seeds[0]} to {seeds[-1]}"
        self.output.say(f"{where}  {cache}, {seed}")
        for comparison in comparisons:
            quality = "identical" if comparison["identical"] else f"PSNR {comparison['psnr_db']:.1f} dB"
            self.output.say(f"{comparison['path']}  {quality} against the full cache")

    def _as_dict(
        self,
        drawn: InfinityPipelineOutput,
        full: InfinityPipelineOutput | None,
        comparisons: list[dict[str, Any]],
        seconds: float,
    ) -> dict[str, Any]:
        return {
            "images": [str(path) for path in self.request.paths],
            "seconds": seconds,
            "cache": drawn.cache.to_dict(),
            "full_cache": None if full is None else full.cache.to_dict(),
            "comparisons": comparisons,
            "prompts": self.request.prompts,
            "seeds": self.request.seeds,
            "truncated_prompts": getattr(drawn, "truncated", []),
            "classes": getattr(drawn, "labels", None),
            "schedule": drawn.schedule.key,
            "version": __version__,
            **self._settings(drawn),
        }
