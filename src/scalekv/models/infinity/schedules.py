"""The published Infinity schedules: 15 aspect templates x 4 pixel budgets. Readable without torch.

A template is named by height / width with three decimals (above 1 is portrait). All budgets of a template are prefixes
of one list of 13 segments.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from scalekv.errors import ScheduleError
from scalekv.planning import Schedule


@cache
def _table() -> dict[str, Any]:
    text = (files("scalekv.models.infinity") / "schedules.json").read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


def sizes() -> tuple[str, ...]:
    """Names of the pixel budgets, smallest first: 0.06M, 0.25M, 0.60M, 1M."""
    return tuple(_table()["sizes"])


def templates() -> tuple[str, ...]:
    """Names of the aspect templates, in the order in which the nearest one is searched."""
    return tuple(_table()["templates"])


def check_size(name: str) -> str:
    """The budget called ``name``, upper or lower case.

    Raises:
        ScheduleError: no such budget.
    """
    for size in sizes():
        if size.lower() == str(name).lower():
            return size
    raise ScheduleError(f"Unknown size {name!r}; choose one of {', '.join(sizes())}.")


def check_template(name: str | float) -> str:
    """The template called ``name``, as text or as a number.

    Raises:
        ScheduleError: no such template.
    """
    for template in templates():
        if template == name or float(template) == name:
            return template
    raise ScheduleError(f"Unknown aspect template {name!r}; choose one of {', '.join(templates())}.")


def nearest_template(aspect: float) -> str:
    """The template nearest to ``aspect`` (height / width); of two equally near ones the first in order."""
    return min(templates(), key=lambda name: abs(float(name) - aspect))


def nearest_size(template: str, tokens: float) -> str:
    """The budget of ``template`` whose last segment is nearest to ``tokens`` tokens."""
    return min(sizes(), key=lambda size: abs(schedule_for(template, size)[-1].tokens - tokens))


def nearest(
    size: str, height: int | None, width: int | None, aspect: float | None, pixels_per_token: int
) -> tuple[str, str]:
    """The (template, budget) nearest to a wanted picture.

    Args:
        size: the budget where no sides are given.
        height: pixels, together with ``width``; both decide template and budget.
        width: pixels.
        aspect: height / width where no sides are given; default 1.
        pixels_per_token: image pixels of a token's side.

    Raises:
        ScheduleError: no such budget.
    """
    if height is None or width is None:
        return nearest_template(1.0 if aspect is None else aspect), check_size(size)
    template = nearest_template(height / width)
    return template, nearest_size(template, height * width / pixels_per_token**2)


def schedule_for(template: str | float, size: str) -> Schedule:
    """The segments of one template and budget.

    Raises:
        ScheduleError: no such template or budget.
    """
    shapes = _table()["templates"][check_template(template)]
    return Schedule.from_shapes(shapes[: _table()["sizes"][check_size(size)]])


def extent(template: str | float) -> tuple[int, int]:
    """(rows, columns) of the largest map of ``template``, on which rotary positions are measured for every budget.

    Raises:
        ScheduleError: no such template.
    """
    rows, columns = _table()["templates"][check_template(template)][-1]
    return rows, columns
