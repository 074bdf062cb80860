"""The steps of a VAR call that need only their arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

from torch import Tensor

from scalekv.errors import InvalidInput
from scalekv.models.var.classes import ClassNames, check_id, class_id
from scalekv.models.var.sampling import guidance_ramp
from scalekv.pipelines.arguments import check_count, check_numbers, check_share
from scalekv.planning import Schedule


@dataclass(frozen=True)
class Sampling:
    """How the tokens of a run are drawn, checked.

    Args:
        guidance: one weight per segment; 0 for none.
        top_k: 0 or more.
        top_p: 0 to 1.
    """

    guidance: list[float]
    top_k: int
    top_p: float

    @property
    def guided(self) -> bool:
        """Whether unconditional rows run at all."""
        return any(self.guidance)


def sampling_settings(schedule: Schedule, vocabulary: int, defaults: Any, **given: Any) -> Sampling:
    """The settings of a call; what is ``None`` comes from ``defaults``, the scheduler's configuration.

    A default ``top_k`` above the vocabulary is off; one that was asked for is refused.

    Raises:
        InvalidInput: a setting that cannot be used.
    """
    value = {name: getattr(defaults, name) if one is None else one for name, one in given.items()}
    scale = value["guidance_scale"]
    listed = check_numbers("guidance_scale", scale, len(schedule))
    top_k = check_count("top_k", value["top_k"], least=0)
    if top_k > vocabulary and given["top_k"] is not None:
        raise InvalidInput(f"top_k must lie between 0 (off) and the vocabulary of {vocabulary}, got {top_k}.")
    return Sampling(
        guidance=listed if isinstance(scale, (list, tuple)) else guidance_ramp(listed[0], schedule),
        top_k=top_k if top_k <= vocabulary else 0,
        top_p=check_share("top_p", value["top_p"]),
    )


def labels_of(given: Any, names: ClassNames | None, classes: int, copies: int) -> list[int] | None:
    """The class of every image, copies side by side; ``None`` if they are to be drawn.

    Args:
        given: an id, a name, several of them, a tensor of ids, or ``None``.
        names: of all classes, if known.
        classes: how many there are.
        copies: images of each class.

    Raises:
        InvalidInput: no class, or something else.
    """
    if given is None:
        return None
    listed: Sequence[Any]
    if isinstance(given, Tensor):
        if given.is_floating_point() or given.ndim > 1:
            raise InvalidInput(f"class_labels must be whole numbers in a row, got {given.dtype} of {given.ndim} sides.")
        listed = given.reshape(-1).tolist()
    else:
        listed = list(given) if isinstance(given, (list, tuple, range)) else [given]
    if not listed:
        raise InvalidInput("class_labels is empty; give at least one class.")
    labels = []
    for one in listed:
        if isinstance(one, str):
            labels.append(class_id(one, names, classes))
        elif hasattr(one, "__index__") and not isinstance(one, bool):
            labels.append(check_id(index(one), classes))
        else:
            raise InvalidInput(f"A class is a number or a name, got {one!r:.80} ({type(one).__name__}).")
    return [label for label in labels for _ in range(copies)]
