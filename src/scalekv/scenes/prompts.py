"""Prompts with exact answers, by category as GenEval prints them (Ghosh et al., 2023), and patterns besides.

Every prompt carries what a picture must show. What a prompt does not mention is not asked for: "a ball" may be striped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalekv.errors import InvalidInput
from scalekv.scenes import words
from scalekv.scenes.captions import with_article
from scalekv.scenes.graph import combinations

CATEGORIES = (
    "single object",
    "two objects",
    "counting",
    "colours",
    "patterns",
    "position",
    "colour attribution",
)


@dataclass(frozen=True)
class Wanted:
    """Some things of one kind that a picture must show.

    Args:
        shape: one of `words.SHAPES`.
        colour: one of `words.COLOURS`; None for any.
        pattern: one of `words.PATTERNS`; None for any.
        count: how many; 0 for at least one.
    """

    shape: str
    colour: str | None = None
    pattern: str | None = None
    count: int = 0


@dataclass(frozen=True)
class Prompt:
    """A text and what a picture of it must show.

    Args:
        text: what a model is asked for.
        category: one of `CATEGORIES`.
        wanted: one or two kinds of things.
        relation: how the first stands to the second; None for anyhow.
    """

    text: str
    category: str
    wanted: tuple[Wanted, ...]
    relation: str | None = None


def benchmark(per_category: int = 40, seed: int = 0, split: str = "heldout") -> tuple[Prompt, ...]:
    """The benchmark: prompts of every category, categories one after another.

    Args:
        per_category: prompts of each; fewer where there are not as many different ones.
        seed: which ones.
        split: where the combinations of shape, colour and pattern come from: ``"heldout"`` ones were never trained on
            (of two things, the first), ``"train"`` ones were. Prompts without colours are the same in both.

    Raises:
        InvalidInput: an unknown split, or less than one prompt per category.
    """
    if per_category < 1:
        raise InvalidInput(f"The benchmark needs at least 1 prompt per category, got {per_category}.")
    pool, known = combinations(split), combinations("train")
    prompts: list[Prompt] = []
    for index, category in enumerate(CATEGORIES):
        random = np.random.default_rng((seed, index))
        found: dict[str, Prompt] = {}
        for _ in range(50 * per_category):
            if len(found) == per_category:
                break
            prompt = _invent(random, category, pool, known)
            found.setdefault(prompt.text, prompt)
        prompts += found.values()
    return tuple(prompts)


Pool = tuple[tuple[str, str, str], ...]
Random = np.random.Generator

_OPENINGS = ("", "there is ", "we see ", "a picture of ")
_COUNT_OPENINGS = ("", "there are ", "we see ", "a picture of ")


def _draw(random: Random, pool: Pool, plain: bool) -> tuple[str, str, str]:
    fitting = [one for one in pool if (one[2] == "plain") == plain]
    return fitting[int(random.integers(len(fitting)))]


def _noun(random: Random, wanted: Wanted) -> str:
    """What captions call it, without an article."""
    pattern = "" if wanted.pattern in (None, "plain") else str(wanted.pattern)
    shape = str(random.choice(words.SHAPE_NAMES[wanted.shape]))
    shape = words.PLURALS[shape] if wanted.count > 1 else shape
    return " ".join(part for part in (pattern, wanted.colour or "", shape) if part)


def _one(random: Random, wanted: Wanted, category: str) -> Prompt:
    text = f"{random.choice(_OPENINGS)}{with_article(_noun(random, wanted))}"
    return Prompt(text, category, (wanted,))


def _two(random: Random, pair: tuple[Wanted, Wanted], category: str, relation: str | None = None) -> Prompt:
    nouns = [with_article(_noun(random, one)) for one in pair]
    return Prompt(f" {relation or 'and'} ".join(nouns), category, pair, relation)


def _invent(random: Random, category: str, pool: Pool, known: Pool) -> Prompt:
    if category in ("two objects", "position"):
        first, second = (Wanted(str(shape)) for shape in random.choice(words.SHAPES, size=2, replace=False))
        relation = str(random.choice(words.RELATIONS)) if category == "position" else None
        return _two(random, (first, second), category, relation)
    if category == "single object":
        return _one(random, Wanted(str(random.choice(words.SHAPES))), category)
    if category == "counting":
        shape, colour, _ = _draw(random, pool, plain=True)
        some = Wanted(shape, colour, count=int(random.integers(2, 5)))
        return Prompt(f"{random.choice(_COUNT_OPENINGS)}{_counted(random, some)}", category, (some,))
    shape, colour, pattern = _draw(random, pool, plain=category != "patterns")
    if category == "patterns":
        return _one(random, Wanted(shape, colour, pattern), category)
    if category == "colours":
        return _one(random, Wanted(shape, colour), category)
    return _two(random, _attribution(random, Wanted(shape, colour), known), category)


def _counted(random: Random, wanted: Wanted) -> str:
    return f"{words.NUMBERS[wanted.count]} {_noun(random, wanted)}"


def _attribution(random: Random, first: Wanted, known: Pool) -> tuple[Wanted, Wanted]:
    """``first`` beside a known plain thing of other shape and colour, in either order."""
    while True:
        shape, colour, _ = _draw(random, known, plain=True)
        if shape != first.shape and colour != first.colour:
            break
    second = Wanted(shape, colour)
    return (first, second) if random.random() < 0.5 else (second, first)
