"""What an evaluation is asked to do, and what it is made with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scalekv.errors import InvalidInput
from scalekv.evaluation import identity
from scalekv.evaluation.jobs import Grid
from scalekv.evaluation.plugins import Scorer
from scalekv.evaluation.subjects import Subject
from scalekv.planning import Profile, ProfileLike

_TAKEN = ("prompt", "class_labels", "generator", "kv_cache", "profile", "output_type", "return_dict")


@dataclass(frozen=True)
class Request:
    """What to evaluate.

    Args:
        grid: methods, budgets and seeds.
        subjects: what to draw.
        name: of the model, for people.
        batch: pictures drawn together.
        generation: further arguments of the pipeline, such as ``guidance_scale``; plain values.
        profile: calibration to use instead of the model's own.
        lpips: measure LPIPS too.
        fid: measure FID too, once all pictures are there; keeps them all.
        scorers: scorers of one's own.
        save_pictures: keep all pictures, not only those of the full cache and of the first prompts.
        sheet: prompts whose pictures are kept anyway, for contact sheets.
        command: what was typed, for ``run.json``.

    Raises:
        InvalidInput: nothing to draw, a batch below 1, or an argument that an evaluation decides itself.
    """

    grid: Grid
    subjects: Sequence[Subject]
    name: str = ""
    batch: int = 4
    generation: dict[str, Any] = field(default_factory=dict)
    profile: ProfileLike | None = None
    lpips: bool = False
    fid: bool = False
    scorers: tuple[Scorer, ...] = ()
    save_pictures: bool = False
    sheet: int = 8
    command: str | None = None

    def __post_init__(self) -> None:
        if not self.subjects:
            raise InvalidInput("An evaluation needs at least one prompt, got none.")
        if self.batch < 1 or self.sheet < 0:
            raise InvalidInput(
                f"Expected a batch of 1 or more and a sheet of 0 or more, got {self.batch}, {self.sheet}."
            )
        for taken in _TAKEN:
            if taken in self.generation:
                raise InvalidInput(f"An evaluation sets {taken} itself; leave it out.")

    @property
    def keeps_all(self) -> bool:
        """Whether all pictures are kept."""
        return self.save_pictures or self.fid

    def settings(self, pipeline: Any, profile: Profile | None) -> dict[str, Any]:
        """All that results depend on, beside method, budget, prompt and seed."""
        return {
            "pipeline": type(pipeline).__name__,
            "model_mark": identity.model_mark(pipeline),
            "profile_mark": identity.profile_mark(profile),
            "dtype": str(pipeline.weights_dtype).removeprefix("torch."),
            "cache_dtype": str(pipeline.attention_dtype).removeprefix("torch."),
            "device": pipeline.device.type,
            "batch": self.batch,
            "generation": self.generation,
            "metrics": ["psnr", "ssim", "ms_ssim", *(["lpips"] if self.lpips else [])],
            "scorers": [scorer.spec for scorer in self.scorers],
        }

    def details(self, pipeline: Any) -> dict[str, Any]:
        """What else is good to know about a run."""
        return {
            "model": self.name,
            "created": identity.now(),
            "commands": [self.command] if self.command else [],
            "asked": [[cell.spec.label, cell.budget, seed] for cell in self.grid.cells for seed in self.grid.seeds],
            "versions": identity.versions(),
            "machine": identity.machine(pipeline.device),
            "geometry": identity.geometry(pipeline),
        }
