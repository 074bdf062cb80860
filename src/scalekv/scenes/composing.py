"""Inventing scenes: every seed is one scene, the same on every machine."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from scalekv.errors import InvalidInput
from scalekv.scenes import words
from scalekv.scenes.camera import project
from scalekv.scenes.graph import SPLITS, Placed, Scene, Surroundings, Thing, combinations, holds

KINDS = ("single", "pair", "count", "mixed")
_KIND_SHARES = (0.24, 0.40, 0.16, 0.20)
_PATTERN_SHARES = {"plain": 0.46, "striped": 0.18, "checkered": 0.18, "dotted": 0.18}
_PLAIN_SIZES = (0.25, 0.45, 0.30)
_PATTERNED_SIZES = (0.08, 0.40, 0.52)
_MARGIN = 6.0
_TRIES = 200


def sample_scene(seed: int, split: str = "train", kind: str | None = None) -> Scene:
    """Invent the scene of a seed.

    Args:
        seed: 0 or more.
        split: ``"train"`` uses training combinations only; ``"heldout"`` has at least one that training never sees.
        kind: one of `KINDS`; default by chance.

    Raises:
        InvalidInput: an unknown split or kind, or a negative seed.
    """
    if split not in SPLITS or (kind is not None and kind not in KINDS) or seed < 0:
        raise InvalidInput(
            f"No scene has seed {seed}, split {split!r} and kind {kind!r}; seeds start at 0, splits are "
            f"{', '.join(SPLITS)}, kinds {', '.join(KINDS)}."
        )
    random = np.random.default_rng((seed, SPLITS.index(split)))
    kind = KINDS[int(random.choice(len(KINDS), p=_KIND_SHARES))] if kind is None else kind
    while True:
        things = _things(random, kind, split)
        placed = _LAYOUTS[kind](random, things)
        if placed is not None:
            return Scene(tuple(placed), _surroundings(random), kind)


def surroundings_of(seed: int) -> Surroundings:
    """Floor, wall and light of a seed, for scenes that are put together by hand."""
    return _surroundings(np.random.default_rng(seed))


def place_pair(random: np.random.Generator, first: Thing, second: Thing, relation: str) -> list[Placed] | None:
    """Put two things so that ``first`` stands in ``relation`` to ``second``; None if they do not fit."""
    for _ in range(_TRIES):
        placed = _pair_once(random, first, second, relation)
        if _fits(placed) and holds(relation, placed[0], placed[1]):
            return placed
    return None


def _surroundings(random: np.random.Generator) -> Surroundings:
    floor, wall = random.choice(words.FLOORS), random.choice(words.WALLS)
    return Surroundings(str(floor), str(wall), int(random.choice((-1, 1))), int(random.integers(2**31)))


@cache
def _pool(split: str, pattern: str) -> tuple[tuple[str, str, str], ...]:
    return tuple(one for one in combinations(split) if one[2] == pattern)


def _thing(random: np.random.Generator, split: str, sizes: tuple[str, ...] = words.SIZES) -> Thing:
    pattern = str(random.choice(words.PATTERNS, p=[_PATTERN_SHARES[one] for one in words.PATTERNS]))
    shape, colour, pattern = _pool(split, pattern)[int(random.integers(len(_pool(split, pattern))))]
    shares = np.array(_PLAIN_SIZES if pattern == "plain" else _PATTERNED_SIZES)
    shares *= [one in sizes for one in words.SIZES]
    return Thing(shape, colour, pattern, str(random.choice(words.SIZES, p=shares / shares.sum())))


def _things(random: np.random.Generator, kind: str, split: str) -> list[Thing]:
    if kind == "count":
        count = int(random.integers(2, 5))
        return [_thing(random, split, words.SIZES[: 5 - count])] * count
    sizes = words.SIZES[:2] if kind == "mixed" else words.SIZES
    count = {"single": 1, "pair": 2}.get(kind) or int(random.integers(3, 5))
    splits = [split] + [split if random.random() < 0.5 else "train" for _ in range(count - 1)]
    things: list[Thing] = []
    while len(things) < count:
        candidate = _thing(random, splits[len(things)], sizes)
        if candidate.combination not in [one.combination for one in things]:
            things.append(candidate)
    return things


def _single(random: np.random.Generator, things: list[Thing]) -> list[Placed] | None:
    column = float(random.choice((-1.0, 0.0, 1.0), p=(0.25, 0.5, 0.25)))
    x, z = column * random.uniform(0.75, 1.0) + random.uniform(-0.15, 0.15), random.uniform(-0.9, 0.5)
    placed = [_stand(random, things[0], x, z)]
    return placed if _fits(placed) else None


def _pair(random: np.random.Generator, things: list[Thing]) -> list[Placed] | None:
    relation = str(random.choice(words.RELATIONS))
    return place_pair(random, things[0], things[1], relation)


def _pair_once(random: np.random.Generator, first: Thing, second: Thing, relation: str) -> list[Placed]:
    if relation in ("right of", "below", "in front of"):
        other, one = _pair_once(random, second, first, words.INVERSE[relation])
        return [one, other]
    shift, z = random.uniform(-0.25, 0.25), random.uniform(-0.7, 0.4)
    if relation == "left of":
        apart = random.uniform(0.5, 0.68) * 2.1
        return [
            _stand(random, first, shift - apart * 0.75, z + random.uniform(-0.2, 0.2)),
            _stand(random, second, shift + apart * 0.75, z + random.uniform(-0.2, 0.2)),
        ]
    if relation == "above":
        low = _stand(random, second, shift, z)
        lift = 2 * second.half_height + random.uniform(0.02, 0.14)
        return [_stand(random, first, shift + random.uniform(-0.08, 0.08), z, lift), low]
    aside = float(random.choice((-1, 1))) * random.uniform(0.45, 0.85)
    far = _stand(random, first, shift + aside, random.uniform(0.8, 1.5))
    return [far, _stand(random, second, shift - aside, random.uniform(-1.3, -0.5))]


def _count(random: np.random.Generator, things: list[Thing]) -> list[Placed] | None:
    count = len(things)
    if count == 4 and random.random() < 0.5:
        columns, depths = [-1.0, 0.55, -0.55, 1.0], [0.9, 0.9, -0.9, -0.9]
    else:
        wide = 1.62 - things[0].radius * 0.2
        columns, depths = list(np.linspace(-wide, wide, count) if count > 2 else (-0.95, 0.95)), [-0.1] * count
    for _ in range(_TRIES):
        placed = [
            _stand(random, thing, x + random.uniform(-0.12, 0.12), z + random.uniform(-0.25, 0.25))
            for thing, x, z in zip(things, columns, depths, strict=True)
        ]
        if _fits(placed):
            return placed
    return None


def _mixed(random: np.random.Generator, things: list[Thing]) -> list[Placed] | None:
    for _ in range(_TRIES):
        placed = [_stand(random, one, random.uniform(-1.5, 1.5), random.uniform(-1.2, 1.3)) for one in things]
        if _fits(placed):
            return placed
    return None


_LAYOUTS: dict[str, Callable[[np.random.Generator, list[Thing]], list[Placed] | None]] = {
    "single": _single,
    "pair": _pair,
    "count": _count,
    "mixed": _mixed,
}


def _stand(random: np.random.Generator, thing: Thing, x: float, z: float, lift: float = 0.0) -> Placed:
    turn = random.uniform(-0.45, 0.45)
    if thing.shape == "cube":
        turn = float(random.choice((-1, 1))) * random.uniform(0.35, 0.75)
    return Placed(thing, float(x), float(lift + thing.half_height), float(z), float(turn))


def _fits(placed: list[Placed]) -> bool:
    """Whether everything is inside the picture and nothing hides much of another thing."""
    discs = []
    for one in placed:
        column, row, scale = project(one.x, one.y, one.z)
        reach = one.thing.radius * scale
        if not (column - 0.8 * reach > _MARGIN and column + 0.8 * reach < 128 - _MARGIN):
            return False
        if row - reach * 0.95 < 1 or row + reach * 0.95 > 127:
            return False
        discs.append((column, row, reach))
    for index, (column, row, reach) in enumerate(discs):
        for other, other_row, other_reach in discs[:index]:
            if (column - other) ** 2 + (row - other_row) ** 2 < (0.80 * (reach + other_reach)) ** 2:
                return False
    return True
