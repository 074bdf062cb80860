"""Reading ``--size`` and ``--aspect``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from scalekv.errors import ScheduleError
from scalekv.models.infinity import schedules


@dataclass(frozen=True)
class PictureSize:
    """What was asked for; everything ``None`` means the model's own size, square.

    Args:
        size: name of a pixel budget.
        width: pixels, together with ``height``.
        height: pixels.
        aspect: width over height.
    """

    size: str | None = None
    width: int | None = None
    height: int | None = None
    aspect: float | None = None

    @classmethod
    def parse(cls, size: str | None, aspect: str | None) -> PictureSize:
        """Read the two options.

        Raises:
            ScheduleError: neither a known size nor WIDTHxHEIGHT, no ratio, or two ratios.
        """
        ratio = None if aspect is None else _ratio(aspect)
        if size is None:
            return cls(aspect=ratio)
        match = re.fullmatch(r"\s*(\d{1,9})\s*[x×]\s*(\d{1,9})\s*", size, re.IGNORECASE)
        if match is None:
            return cls(size=_known(size), aspect=ratio)
        width, height = int(match[1]), int(match[2])
        if min(width, height) < 1:
            raise ScheduleError(f"The size {size!r} has a side of 0 pixels; {_forms()}.")
        if ratio is not None:
            raise ScheduleError(f"The size {size!r} has an aspect ratio of its own; leave --aspect {aspect} out.")
        return cls(width=width, height=height)

    @property
    def height_over_width(self) -> float | None:
        """The aspect as the schedules count it."""
        return None if self.aspect is None else 1 / self.aspect

    def __str__(self) -> str:
        if self.width is not None:
            return f"{self.width}x{self.height}"
        aspect = "" if self.aspect is None else f"the aspect {self.aspect:.4g}"
        return " at ".join(part for part in (self.size, aspect) if part) or "the model's own size"

    def is_exactly(self, width: int, height: int, explicit: bool) -> bool:
        """Whether a picture of ``width`` x ``height`` is just what was asked for.

        Args:
            width: pixels.
            height: pixels.
            explicit: whether the model draws one schedule only; others draw the published aspects.
        """
        if self.width is not None:
            return (self.width, self.height) == (width, height)
        if self.height_over_width is None:
            return True
        drawn = height / width if explicit else float(schedules.nearest_template(self.height_over_width))
        return abs(self.height_over_width - drawn) < 1e-3

    def pipeline_arguments(self) -> dict[str, Any]:
        """What a pipeline call takes."""
        given = {"size": self.size, "width": self.width, "height": self.height, "aspect_ratio": self.aspect}
        return {name: value for name, value in given.items() if value is not None}


def _known(size: str) -> str:
    try:
        return schedules.check_size(size.strip())
    except ScheduleError:
        raise ScheduleError(f"Cannot read the size {size!r}; {_forms()}.") from None


def _forms() -> str:
    return f"write one of {', '.join(schedules.sizes())}, or width and height in pixels such as 1024x768"


def _ratio(text: str) -> float:
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(?:[:/]\s*([0-9]*\.?[0-9]+)\s*)?", text)
    width, height = (float(match[1]), float(match[2] or 1)) if match else (0.0, 0.0)
    if not (width > 0 and height > 0 and 0.01 <= width / height <= 100 and math.isfinite(width / height)):
        raise ScheduleError(f"Cannot read the aspect {text!r}; write width to height such as 16:9, 1:1 or 1.78.")
    return width / height
