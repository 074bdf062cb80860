"""Scorers of one's own: any callable that looks at a picture, its reference and its prompt."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from scalekv.errors import InvalidInput

if TYPE_CHECKING:
    from PIL.Image import Image

_FORM = "write MODULE:NAME or FILE.py:NAME"


@dataclass(frozen=True)
class Scorer:
    """A callable by its name.

    Args:
        spec: ``module:name`` or ``file.py:name``.
        call: takes the picture, the picture of the full cache (both PIL) and the prompt, and returns a number, or
            several by name.
    """

    spec: str
    call: Callable[[Image, Image, str], Any]

    @property
    def name(self) -> str:
        """Under which its numbers are stored."""
        return self.spec.rpartition(":")[2]

    def __call__(self, picture: Image, reference: Image, prompt: str) -> dict[str, float]:
        """Its numbers: one under its own name, several as ``name.part``.

        Raises:
            InvalidInput: it returned something else, or numbers that are not finite.
        """
        found = self.call(picture, reference, prompt)
        parts = found if isinstance(found, dict) else {None: found}
        try:
            scores = {f"{self.name}.{part}" if part else self.name: float(value) for part, value in parts.items()}
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"{self.spec} returned {found!r:.60}; expected a number, or numbers by name.") from error
        for name, value in scores.items():
            if not math.isfinite(value):
                raise InvalidInput(f"{self.spec} returned {value} as {name}; expected finite numbers.")
        return scores


def load_scorer(spec: str) -> Scorer:
    """Import a scorer; a class is called once, without arguments, to make it.

    Raises:
        InvalidInput: no such module or name, or something that cannot be called.
    """
    place, separator, name = spec.rpartition(":")
    if not (separator and place and name):
        raise InvalidInput(f"Cannot read the metric {spec!r}; {_FORM}.")
    found: Any = _module(place, spec)
    for part in name.split("."):
        if not hasattr(found, part):
            raise InvalidInput(f"There is no {name} in {place}; {_FORM}.")
        found = getattr(found, part)
    made = found() if isinstance(found, type) else found
    if not callable(made):
        raise InvalidInput(f"{spec} cannot be called; it must take (picture, reference, prompt).")
    return Scorer(spec, made)


def _module(place: str, spec: str) -> ModuleType:
    path = Path(place)
    if path.suffix != ".py" and Path(f"{place}.py").is_file():
        path = Path(f"{place}.py")
    if path.suffix != ".py":
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not place.startswith(error.name):
                raise
            raise InvalidInput(f"There is no module {place} for the metric {spec}; {_FORM}.") from error
    found = importlib.util.spec_from_file_location(f"scalekv_metric_{path.stem}", path)
    if not path.is_file() or found is None or found.loader is None:
        raise InvalidInput(f"There is no file {path} for the metric {spec}; {_FORM}.")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module
