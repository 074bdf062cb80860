"""Did it draw what was asked? Scores of pictures for prompts with exact answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any

from scalekv.errors import InvalidInput
from scalekv.scenes.detection import Detector
from scalekv.scenes.graph import Placed, holds
from scalekv.scenes.prompts import CATEGORIES, Prompt, Wanted

if TYPE_CHECKING:
    from scalekv.pipelines.infinity import InfinityPipeline


@dataclass(frozen=True)
class Verdict:
    """One picture against its prompt.

    Args:
        prompt: what was asked.
        found: what was seen.
        right: whether the picture shows all that was asked.
    """

    prompt: Prompt
    found: tuple[Placed, ...]
    right: bool


@dataclass(frozen=True)
class Scores:
    """Shares of right pictures.

    Args:
        verdicts: every picture.
    """

    verdicts: tuple[Verdict, ...]

    @property
    def categories(self) -> dict[str, float]:
        """Share of right pictures in every category that was asked, 0 to 1."""
        shares = {}
        for category in CATEGORIES:
            chosen = [one.right for one in self.verdicts if one.prompt.category == category]
            if chosen:
                shares[category] = sum(chosen) / len(chosen)
        return shares

    @property
    def overall(self) -> float:
        """Mean of the categories, as GenEval has it."""
        shares = self.categories
        return sum(shares.values()) / len(shares)

    def to_dict(self) -> dict[str, Any]:
        """Scores and single verdicts, ready for JSON."""
        verdicts = [
            {"prompt": one.prompt.text, "right": one.right, "found": [asdict(thing.thing) for thing in one.found]}
            for one in self.verdicts
        ]
        return {"overall": self.overall, "categories": self.categories, "verdicts": verdicts}


def fits(wanted: Wanted, found: Placed) -> bool:
    """Whether one thing is of the wanted kind."""
    thing = found.thing
    return (
        thing.shape == wanted.shape
        and wanted.colour in (None, thing.colour)
        and wanted.pattern in (None, thing.pattern)
    )


def is_right(prompt: Prompt, found: Sequence[Placed]) -> bool:
    """Whether things answer a prompt: counts are exact, other kinds are there, and the relation holds for a pair."""
    for wanted in prompt.wanted:
        matching = sum(fits(wanted, one) for one in found)
        if matching < 1 or (wanted.count and matching != wanted.count):
            return False
    if len(prompt.wanted) == 1:
        return True
    first, second = prompt.wanted
    return any(
        fits(first, one) and fits(second, other) and (prompt.relation is None or holds(prompt.relation, one, other))
        for one, other in permutations(found, 2)
    )


def score(prompts: Sequence[Prompt], pictures: Sequence[Any], detector: Detector | None = None) -> Scores:
    """Score pictures, one for each prompt.

    Args:
        prompts: what was asked.
        pictures: 128 x 128 RGB, arrays of bytes or PIL images, in the order of ``prompts``.
        detector: default the package's own.

    Raises:
        InvalidInput: not one picture for each prompt, or pictures of another size.
    """
    if len(prompts) != len(pictures) or not prompts:
        raise InvalidInput(f"Got {len(pictures)} pictures for {len(prompts)} prompts; give one for each, at least one.")
    found = (detector or Detector.load())(pictures)
    return Scores(
        tuple(Verdict(prompt, tuple(one), is_right(prompt, one)) for prompt, one in zip(prompts, found, strict=True))
    )


def score_pipeline(
    pipeline: InfinityPipeline,
    prompts: Sequence[Prompt],
    *,
    seed: int = 0,
    batch: int = 4,
    detector: Detector | None = None,
    progress: Callable[[int, int], None] | None = None,
    **generation: Any,
) -> Scores:
    """Draw every prompt and score the pictures.

    Args:
        pipeline: a model of this world.
        prompts: what to ask, such as `benchmark`.
        seed: picture i is drawn with seed ``seed + i``, alone or in a batch, with every policy alike.
        batch: pictures drawn together.
        detector: default the package's own.
        progress: called with (pictures done, pictures in all).
        generation: further arguments of the pipeline, such as ``kv_cache=ScaleKV(budget="10%")``.

    Raises:
        InvalidInput: no prompts, a batch below 1, or an argument that the pipeline refuses.
    """
    if batch < 1:
        raise InvalidInput(f"batch must be at least 1, got {batch}.")
    pictures: list[Any] = []
    for window in _windows(len(prompts), batch):
        generators = [_generator(seed + index) for index in range(window.start, window.stop)]
        texts = [prompt.text for prompt in prompts[window]]
        output: Any = pipeline(texts, generator=generators, **generation)
        pictures += output.images
        if progress is not None:
            progress(window.stop, len(prompts))
    return score(prompts, pictures, detector)


def _windows(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _generator(seed: int) -> Any:
    import torch

    return torch.Generator(device="cpu").manual_seed(seed)
