"""How well the detector reads pictures whose scenes are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scalekv.scenes import Placed, Scene, holds, words
from scalekv.scenes.camera import project
from scalekv.scenes.detection import Detector

Table = dict[str, dict[str, float]]

_NEAR = 8.0


def pairs(scene: Scene, found: Sequence[Placed]) -> list[tuple[int, int]]:
    """Which found thing is which of the scene, nearest first, centres at most 8 pixels apart."""
    places = [project(one.x, one.y, one.z)[:2] for one in scene.placed]
    seen = [project(one.x, one.y, one.z)[:2] for one in found]
    away = sorted(
        (float(np.hypot(a[0] - b[0], a[1] - b[1])), i, j) for i, a in enumerate(places) for j, b in enumerate(seen)
    )
    matched: list[tuple[int, int]] = []
    for distance, i, j in away:
        if distance <= _NEAR and all(i != one and j != other for one, other in matched):
            matched.append((i, j))
    return matched


def accuracy(detector: Detector, pictures: NDArray[np.uint8], scenes: Sequence[Scene]) -> Table:
    """Shares of right answers by kind of scene, ``"all"`` first.

    Per kind: ``count`` (pictures with the right number of things), ``found`` (things), then of the found things
    ``shape``, ``colour``, ``pattern`` and ``size``, and ``relations`` (of all relations of all pairs that were found,
    those that are read as they are).
    """
    answers: dict[str, dict[str, list[bool]]] = {}
    for scene, found in zip(scenes, detector(pictures[: len(scenes)]), strict=True):
        for kind in ("all", scene.kind):
            _note(answers.setdefault(kind, {}), scene, found)
    return {
        kind: {"pictures": float(len(lists["count"]))}
        | {name: float(np.mean(flags)) for name, flags in lists.items() if flags}
        for kind, lists in answers.items()
    }


def _note(lists: dict[str, list[bool]], scene: Scene, found: Sequence[Placed]) -> None:
    def note(name: str, flag: bool) -> None:
        lists.setdefault(name, []).append(flag)

    matched = dict(pairs(scene, found))
    note("count", len(found) == len(scene.placed))
    for index, placed in enumerate(scene.placed):
        note("found", index in matched)
        if index not in matched:
            continue
        thing, read = placed.thing, found[matched[index]].thing
        for name in ("shape", "colour", "pattern", "size"):
            note(name, getattr(thing, name) == getattr(read, name))
    for i in matched:
        for j in matched:
            if i != j:
                for relation in words.RELATIONS:
                    truth = holds(relation, scene.placed[i], scene.placed[j])
                    note("relations", truth == holds(relation, found[matched[i]], found[matched[j]]))


def print_table(table: Table) -> None:
    """The table for people, in percent."""
    names = ("count", "found", "shape", "colour", "pattern", "size", "relations")
    print(f"{'':8}{'pictures':>9}" + "".join(f"{name:>11}" for name in names))
    for kind, row in table.items():
        cells = "".join(f"{100 * row[name]:11.2f}" if name in row else f"{'-':>11}" for name in names)
        print(f"{kind:8}{int(row['pictures']):9}{cells}")
