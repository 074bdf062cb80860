"""What is in a picture: things with attributes, where they are, and how they stand to each other.

World frame: x to the right, y up from the floor, z away from the viewer; the middle of the floor is the origin.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import product

from scalekv.errors import InvalidInput
from scalekv.scenes import words

SPLITS = ("train", "heldout")
HELD_OUT_SHARE = 0.125
"""Share of the combinations of shape, colour and pattern that training never sees."""

HALF_HEIGHTS = {"sphere": 1.0, "cube": 0.8, "cylinder": 0.85, "cone": 0.92, "torus": 0.98}
"""Half of a thing's height over its radius."""

SIDE_GAP = 0.45
"""Horizontal distance of centres from which one thing is left of the other; world units, as below."""
DEPTH_GAP = 0.75
"""Distance of centres in depth from which one thing is behind the other."""
HEIGHT_GAP = 0.6
"""Height difference of centres from which one thing is above the other, if it is also over it."""


@dataclass(frozen=True)
class Thing:
    """One solid, by its attributes.

    Args:
        shape: one of `words.SHAPES`.
        colour: one of `words.COLOURS`.
        pattern: one of `words.PATTERNS`.
        size: one of `words.SIZES`.

    Raises:
        InvalidInput: a word that the world does not know.
    """

    shape: str
    colour: str
    pattern: str = "plain"
    size: str = "medium"

    def __post_init__(self) -> None:
        known = (
            ("shape", self.shape, words.SHAPES),
            ("colour", self.colour, words.COLOURS),
            ("pattern", self.pattern, words.PATTERNS),
            ("size", self.size, words.SIZES),
        )
        for name, value, choices in known:
            if value not in choices:
                raise InvalidInput(f"The world has no {name} {value!r}; choose one of {', '.join(choices)}.")

    @property
    def combination(self) -> tuple[str, str, str]:
        """(shape, colour, pattern), what the split is made of."""
        return self.shape, self.colour, self.pattern

    @property
    def radius(self) -> float:
        """Radius of the ball that the thing fits into, world units."""
        return words.RADII[self.size]

    @property
    def half_height(self) -> float:
        """Half of the thing's height, world units."""
        return HALF_HEIGHTS[self.shape] * self.radius


@dataclass(frozen=True)
class Placed:
    """A thing at a place.

    Args:
        thing: what it is.
        x: centre, to the right.
        y: centre, above the floor.
        z: centre, away from the viewer.
        turn: angle about the vertical, radians.
    """

    thing: Thing
    x: float
    y: float
    z: float
    turn: float = 0.0


@dataclass(frozen=True)
class Surroundings:
    """Floor, wall and light.

    Args:
        floor: one of `words.FLOORS`.
        wall: one of `words.WALLS`.
        light: -1 from the left, 1 from the right.
        seed: of the tints and of the shades of single planks and bricks.
    """

    floor: str
    wall: str
    light: int = -1
    seed: int = 0


@dataclass(frozen=True)
class Scene:
    """A whole picture: what the renderer draws and captions describe.

    Args:
        placed: one to four things; things that captions mention first come first.
        surroundings: where they are.
        kind: ``"single"``, ``"pair"``, ``"count"`` or ``"mixed"``: how it was composed.
    """

    placed: tuple[Placed, ...]
    surroundings: Surroundings
    kind: str

    @property
    def things(self) -> tuple[Thing, ...]:
        """The things without their places."""
        return tuple(one.thing for one in self.placed)


def holds(relation: str, first: Placed, second: Placed) -> bool:
    """Whether ``first`` stands in ``relation`` to ``second``, decided by their places alone.

    Raises:
        InvalidInput: an unknown relation.
    """
    if relation not in words.RELATIONS:
        raise InvalidInput(f"Unknown relation {relation!r}; choose one of {', '.join(words.RELATIONS)}.")
    if relation in ("right of", "below", "in front of"):
        return holds(words.INVERSE[relation], second, first)
    if relation == "left of":
        return second.x - first.x >= SIDE_GAP
    if relation == "behind":
        return first.z - second.z >= DEPTH_GAP
    return first.y - second.y >= HEIGHT_GAP and abs(first.x - second.x) < SIDE_GAP


def split_of(combination: tuple[str, str, str]) -> str:
    """``"train"`` or ``"heldout"``: where things of this (shape, colour, pattern) belong; fixed for all time."""
    digest = hashlib.sha256("/".join(combination).encode()).digest()
    return "heldout" if int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32 else "train"


def combinations(split: str) -> tuple[tuple[str, str, str], ...]:
    """All (shape, colour, pattern) of a split, in fixed order.

    Raises:
        InvalidInput: an unknown split.
    """
    if split not in SPLITS:
        raise InvalidInput(f"Unknown split {split!r}; choose one of {', '.join(SPLITS)}.")
    everything = product(words.SHAPES, words.COLOURS, words.PATTERNS)
    return tuple(one for one in everything if split_of(one) == split)
