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
from scalekv.policies.specs import label_of

if TYPE_CHECKING:
    import torch

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
        profile: calibration to use instead of the model's own.
        arguments: further arguments of the pipeline.
    """

    prompts: list[str]
    copies: int
    seed: int
    paths: list[Path]
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
        plan = self._policy.plan(geometry, known)
        if chosen is not None:
            self._say_adapted(chosen, geometry.schedule)
        self._steps.begin(len(geometry.schedule))
        self._cache = KVCache(plan, self._policy, dtype=dtype, device=device)
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
    """One request on one pipeline, drawn with one policy or several."""

    def __init__(self, output: Output, model: str, pipeline: InfinityPipeline, request: Request) -> None:
        self.output, self.model, self.pipeline, self.request = output, model, pipeline, request

    def draw(self, policy: Policy, compare: bool) -> None:
        """Draw, write and report."""
        from scalekv.cli.pictures import write_png

        begin = time.perf_counter()
        drawn = self.pictures(policy)
        full = self.pictures(Full()) if compare else None
        settings = {**self.settings(drawn), **policy_settings(policy)}
        origins = [self.origin(image, settings) for image in range(len(self.request.paths))]
        for picture, path, origin in zip(drawn.images, self.request.paths, origins, strict=True):
            write_png(picture, path, origin)
        comparisons = [] if full is None else self._compare(policy, drawn, full, origins)
        seconds = time.perf_counter() - begin
        self._report(drawn.cache, comparisons)
        self.output.result({**self._as_dict(drawn, full, comparisons, seconds), **settings})

    def pictures(self, policy: Policy) -> InfinityPipelineOutput:
        """Draw all images of the request under ``policy``.

        Raises:
            BudgetError: the budget of the policy cannot be met.
            ProfileError: a profile that does not fit the model, or lacks what the policy needs.
        """
        import torch

        request = self.request
        generators = [torch.Generator(device="cpu").manual_seed(seed) for seed in request.seeds]
        with self.output.progress(f"{method_of(policy)} {budget_of(policy)}") as steps:
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

    def origin(self, image: int, settings: dict[str, Any]) -> Origin:
        """How ``image`` was made, under the ``settings`` of its run and policy."""
        from scalekv.cli.pictures import Origin

        return Origin(
            self.request.prompt_of(image),
            self.request.arguments.get("negative_prompt"),
            self.request.seeds[image],
            settings,
        )

    def settings(self, drawn: InfinityPipelineOutput) -> dict[str, Any]:
        """What pictures were drawn with, but for the policy."""
        defaults = self.pipeline.scheduler.config
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
            "width": width,
            "height": height,
            "segments": len(drawn.schedule),
            **sampling,
            "dtype": str(self.pipeline.transformer.dtype).removeprefix("torch."),
            "cache_dtype": str(self.pipeline.attention_dtype).removeprefix("torch."),
            "device": str(self.pipeline.device),
        }

    def _compare(
        self, policy: Policy, drawn: InfinityPipelineOutput, full: InfinityPipelineOutput, origins: list[Origin]
    ) -> list[dict[str, Any]]:
        from scalekv.cli.pictures import write_png
        from scalekv.evaluation.metrics import psnr
        from scalekv.evaluation.report.sheet import Row, Sheet, Tile

        share = f" for {len(self.request.paths)} images" if len(self.request.paths) > 1 else ""
        kept = [f"kept {format_bytes(cache.kept_bytes)}{share}" for cache in (full.cache, drawn.cache)]
        name, comparisons = f"{method_of(policy)}, {budget_of(policy)}", []
        for image, path in enumerate(self.request.paths):
            reference, picture = full.images[image], drawn.images[image]
            distance = psnr(picture, reference)
            tiles = (
                Tile(reference, ("full cache", kept[0])),
                Tile(picture, (name, f"{kept[1]}, {quality_text(distance)}")),
            )
            target = sheet_path(path)
            write_png(Sheet(rows=(Row(tiles),), most_pixels=None).draw(), target, origins[image])
            comparisons.append({"path": str(target), "psnr_db": distance, "identical": distance == float("inf")})
        return comparisons

    def say_what_weights(self) -> None:
        """Note it if the model has never learnt anything."""
        if self.model in (TINY, TINY_CLASSES):
            self.output.note(f"{self.model} has random weights: it draws structure, not what the prompt says.")

    def _report(self, cache: CacheReport, comparisons: list[dict[str, Any]]) -> None:
        self.say_what_weights()
        paths, seeds = self.request.paths, self.request.seeds
        where, seed = str(paths[0]), f"seed {seeds[0]}"
        if len(paths) > 1:
            where, seed = f"{len(paths)} pictures, {paths[0]} to {paths[-1]}", f"seeds {seeds[0]} to {seeds[-1]}"
        self.output.say(f"{where}  {cache}, {seed}")
        for comparison in comparisons:
            quality = quality_text(comparison["psnr_db"])
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
        }


_TOLD_ELSEWHERE = ("budget", "strict", "codec")


def short_name(policy: Policy) -> str:
    """The name of a policy with the settings that are not its defaults; not its codec."""
    return label_of(policy, but=_TOLD_ELSEWHERE)


def method_of(policy: Policy) -> str:
    """The short name of a policy, with its codec if it has one."""
    return short_name(policy) if policy.codec == "none" else f"{short_name(policy)} in {policy.codec}"


def budget_of(policy: Policy) -> str:
    """The budget of a policy as text."""
    return str(policy.settings()["budget"])


def policy_settings(policy: Policy) -> dict[str, Any]:
    """What files and JSON say about a policy."""
    return {"method": policy.name, "budget": budget_of(policy), "policy_settings": policy.settings()}


def quality_text(distance: float) -> str:
    """A PSNR in words."""
    return "identical" if distance == float("inf") else f"PSNR {distance:.1f} dB"
