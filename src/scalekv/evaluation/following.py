"""Did it draw what was asked? The built-in world's detector, on the pictures of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from scalekv.evaluation.subjects import Subject
from scalekv.scenes.camera import SIDE
from scalekv.scenes.detection import Detector
from scalekv.scenes.prompts import Prompt, Wanted
from scalekv.scenes.scoring import score

if TYPE_CHECKING:
    from PIL.Image import Image


def prompt_of(subject: Subject) -> Prompt | None:
    """What a picture of this subject must show; ``None`` if it is not of the built-in world."""
    if subject.source != "scenes" or subject.details is None:
        return None
    details = dict(subject.details)
    return Prompt(**{**details, "wanted": tuple(Wanted(**dict(one)) for one in details["wanted"])})


class Judge:
    """Says of every picture whether it shows what was asked; the detector is loaded when it is first needed."""

    def __init__(self) -> None:
        self._detector: Detector | None = None

    def __call__(self, subjects: Sequence[Subject], pictures: Sequence[Image]) -> list[dict[str, Any] | None]:
        """``category`` and ``right`` of every picture; ``None`` for other prompts and other sizes."""
        prompts = [prompt_of(subject) for subject in subjects]
        chosen = [
            index
            for index, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True))
            if prompt is not None and picture.size == (SIDE, SIDE)
        ]
        found: list[dict[str, Any] | None] = [None] * len(pictures)
        if not chosen:
            return found
        self._detector = self._detector or Detector.load()
        asked = [prompt for index in chosen if (prompt := prompts[index]) is not None]
        scores = score(asked, [pictures[index] for index in chosen], self._detector)
        for index, verdict in zip(chosen, scores.verdicts, strict=True):
            found[index] = {"category": verdict.prompt.category, "right": verdict.right}
        return found
