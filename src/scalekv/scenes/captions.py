"""Captions: what people might say of a scene, in several phrasings, at most 24 words, always true.

Things that are named without a relation are named from left to right, as people read a picture. A model that draws
scale by scale needs that: the tokens of a scale are drawn independently, so what no earlier scale and no word decides,
such as which of two things is where, comes out differently on either side of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalekv.scenes import words
from scalekv.scenes.graph import Placed, Scene, Thing, holds

MAX_WORDS = 24

_OPENINGS = ("", "", "", "there is ", "a picture of ", "we see ")
_SIDES = {-1: ("on the left",), 0: ("in the middle", "in the center"), 1: ("on the right",)}


@dataclass(frozen=True)
class Phrasing:
    """How things are called in one caption.

    Args:
        random: where choices come from.
        omit: chance that a size goes unmentioned; a colour does half as often.
    """

    random: np.random.Generator
    omit: float = 0.12

    def pick(self, names: tuple[str, ...]) -> str:
        """One of ``names``; the first is as likely as all others together."""
        if len(names) == 1 or self.random.random() < 0.5:
            return names[0]
        return names[1 + int(self.random.integers(len(names) - 1))]

    def noun(self, thing: Thing, count: int = 1) -> str:
        """A noun phrase without its article: size, pattern, colour, shape."""
        size = "" if self.random.random() < self.omit else self.pick(words.SIZE_NAMES[thing.size])
        colour = "" if self.random.random() < self.omit / 2 else self.pick(words.COLOUR_NAMES[thing.colour])
        shape = self.pick(words.SHAPE_NAMES[thing.shape])
        shape = words.PLURALS[shape] if count > 1 else shape
        pattern, tail = self.pick(words.PATTERN_ADJECTIVES[thing.pattern]), ""
        if thing.pattern != "plain" and self.random.random() < 0.3:
            pattern, tail = "", f"with {words.PATTERN_NOUNS[thing.pattern]}"
        return " ".join(part for part in (size, pattern, colour, shape, tail) if part)

    def one(self, thing: Thing) -> str:
        """A noun phrase with its article."""
        return with_article(self.noun(thing))


def with_article(noun: str) -> str:
    """``noun`` after "a" or "an"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def caption(scene: Scene, seed: int, omit: float = 0.12) -> str:
    """Describe a scene.

    Args:
        scene: what is in the picture.
        seed: of the phrasing; one seed always says the same of one scene.
        omit: chance that a size goes unmentioned; a colour goes unmentioned half as often, a pattern never. With 2
            things are called by shape and pattern alone, and two are named without a relation four times of five.
    """
    phrasing = Phrasing(np.random.default_rng((seed, 7)), omit)
    say = {"single": _single, "pair": _pair, "count": _count, "mixed": _mixed}[scene.kind]
    for _ in range(20):
        opening = phrasing.pick(_OPENINGS)
        opening = "there are " if opening == "there is " and scene.kind == "count" else opening
        text = f"{opening}{say(scene, phrasing)}"
        longer = text + _backdrop(scene, phrasing)
        for candidate in (longer, text):
            if len(candidate.split()) <= MAX_WORDS:
                return candidate
    short = Phrasing(phrasing.random, 1.0)
    return say(scene, short)


def _single(scene: Scene, phrasing: Phrasing) -> str:
    text = phrasing.one(scene.placed[0].thing)
    if phrasing.random.random() < 0.6:
        x = scene.placed[0].x
        text += " " + phrasing.pick(_SIDES[0 if abs(x) < 0.4 else 1 if x > 0 else -1])
    return text


def _pair(scene: Scene, phrasing: Phrasing) -> str:
    """Two things by a relation that holds, or, now and then, only by name: then the left one comes first."""
    order = [0, 1] if phrasing.random.random() < 0.5 else [1, 0]
    first, second = (scene.placed[index] for index in order)
    true = [name for name in words.RELATIONS if holds(name, first, second)]
    named = not true or phrasing.random.random() < max(0.15, 0.4 * phrasing.omit)
    if named:
        first, second = sorted((first, second), key=_from_left)
    noun, other = phrasing.one(first.thing), phrasing.one(second.thing)
    if named:
        return f"{noun} and {other}"
    relation = true[int(phrasing.random.integers(len(true)))]
    if len(true) > 1 and phrasing.random.random() < 0.7:
        relation = next((name for name in true if name in ("behind", "in front of")), relation)
    return f"{noun} {phrasing.pick(words.RELATION_NAMES[relation])} {other}"


def _count(scene: Scene, phrasing: Phrasing) -> str:
    count = len(scene.placed)
    return f"{words.NUMBERS[count]} {phrasing.noun(scene.placed[0].thing, count)}"


def _mixed(scene: Scene, phrasing: Phrasing) -> str:
    nouns = [phrasing.one(one.thing) for one in sorted(scene.placed, key=_from_left)]
    return f"{', '.join(nouns[:-1])} and {nouns[-1]}"


def _from_left(placed: Placed) -> float:
    return placed.x


def _backdrop(scene: Scene, phrasing: Phrasing) -> str:
    where = scene.surroundings
    text = ""
    if phrasing.random.random() < 0.4:
        text += f" on {phrasing.pick(words.FLOOR_NAMES[where.floor])}"
    if phrasing.random.random() < 0.3:
        text += f", {phrasing.pick(words.WALL_NAMES[where.wall])} in the background"
    return text
