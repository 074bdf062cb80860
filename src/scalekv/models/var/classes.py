"""The classes of ImageNet by name. Readable without torch.

A class has an id and one or several names, of which the first is shown.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from difflib import SequenceMatcher, get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path

from scalekv.errors import InvalidInput

ClassNames = Sequence[str]
"""One entry per class id: its names, separated by commas."""

UNCONDITIONAL = -1
"""The id that means no class at all."""


@cache
def imagenet_names() -> tuple[str, ...]:
    """The 1000 classes in the order of their ids, from the word lists of timm (WordNet)."""
    text = (files("scalekv.models.var") / "class_names.json").read_text(encoding="utf-8")
    return tuple(json.loads(text)["names"])


def read_class_names(path: str | Path, classes: int) -> tuple[str, ...]:
    """The names of other classes: a text file with one line per class, or a JSON list.

    Raises:
        InvalidInput: it cannot be read, or does not name ``classes`` classes.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        names = json.loads(text) if Path(path).suffix.lower() == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise InvalidInput(f"Cannot read the class names in {path} ({error}); write one class per line.") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(names) != classes:
        found = len(names) if isinstance(names, list) else "something else"
        raise InvalidInput(f"{path} must name {classes} classes in the order of their ids, one each, found {found}.")
    return tuple(names)


def class_id(text: str, names: ClassNames | None, classes: int) -> int:
    """The id that ``text`` says: the number itself, or one of the names, upper or lower case.

    Args:
        text: such as ``"207"``, ``"golden retriever"`` or several of its names, ``"white shark, great white shark"``.
        names: of all classes; ``None`` if only numbers are known.
        classes: how many there are.

    Raises:
        InvalidInput: no such class, or several; says which are near.
    """
    word = _plain(text)
    if re.fullmatch(r"-?\d+", word):
        return check_id(int(word), classes)
    if names is None:
        raise InvalidInput(f"This model has no class names; give a number from 0 to {classes - 1} instead of {text!r}.")
    wanted = set(_words(text))
    found = [index for index, entry in enumerate(names) if wanted <= set(_words(entry))]
    if len(found) > 1:
        listed = ", ".join(f"{index} ({names[index]})" for index in found)
        raise InvalidInput(f"Several classes are called {text!r}: {listed}; give the number.")
    if not found:
        near = _near(word, names)
        hint = f"near are {near}; give one of these, or" if near else "give another name, or"
        raise InvalidInput(f"No class is called {text!r}; {hint} a number from 0 to {classes - 1}.")
    return found[0]


def check_id(number: int, classes: int) -> int:
    """``number`` if it is a class, or `UNCONDITIONAL`.

    Raises:
        InvalidInput: it is neither.
    """
    if not UNCONDITIONAL <= number < classes:
        raise InvalidInput(
            f"Class {number} does not exist; this model has classes 0 to {classes - 1}, and {UNCONDITIONAL} for none."
        )
    return number


def name_of(number: int, names: ClassNames | None) -> str:
    """The name that is shown for a class."""
    if number == UNCONDITIONAL:
        return "no class"
    return f"class {number}" if names is None else names[number].split(",")[0].strip()


def _plain(text: str) -> str:
    return " ".join(text.replace("_", " ").lower().split())


def _words(entry: str) -> list[str]:
    return [_plain(name) for name in entry.split(",")]


def _near(word: str, names: ClassNames, limit: int = 5) -> str:
    known = {name: index for index, entry in enumerate(names) for name in _words(entry)}
    pieces = {piece for name in known for piece in name.split()}
    similar = {word, *get_close_matches(word, pieces, n=1, cutoff=0.75)}
    inside = [name for name in known if word and similar & set(name.split())]
    close = dict.fromkeys([*inside, *get_close_matches(word, known, n=limit, cutoff=0.7)])
    ranked = sorted(close, key=lambda name: -SequenceMatcher(None, word, name).ratio())
    return ", ".join(f"{name} ({known[name]})" for name in ranked[:limit])
