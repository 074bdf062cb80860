"""What an evaluation draws: prompts or classes, from the built-in world and from the files of the usual benchmarks."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scalekv.errors import InvalidInput

STYLES = ("anime", "concept-art", "paintings", "photo")
"""Styles of the HPSv2 benchmark, the names of its prompt files and of its picture folders."""

_TEXT_NAMES = ("prompt", "text", "caption", "Prompt")
_ITEM_NAMES = ("item_id", "image_id", "id")
_CATEGORY_NAMES = ("category", "tag", "Category", "style")


@dataclass(frozen=True)
class Subject:
    """One thing to draw.

    Args:
        text: the prompt; for models that draw classes a number or name.
        category: what it is counted under, such as a GenEval tag or an HPSv2 style.
        item: how its benchmark calls it.
        source: where it comes from: ``"scenes"`` for the built-in world, whose pictures can be judged.
        details: its benchmark's own description, such as a line of GenEval's metadata.
    """

    text: str
    category: str | None = None
    item: str | None = None
    source: str | None = None
    details: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields that are set, ready for JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Subject:
        """Read :meth:`to_dict`."""
        return cls(**data)


def merged(known: Sequence[Subject], wanted: Sequence[Subject]) -> tuple[Subject, ...]:
    """``known`` and, after it, what of ``wanted`` is not among it; a text that is wanted twice is there twice."""
    left = Counter(_identity(one) for one in known)
    added = []
    for subject in wanted:
        if left[_identity(subject)]:
            left[_identity(subject)] -= 1
        else:
            added.append(subject)
    return (*known, *added)


def places(known: Sequence[Subject], wanted: Sequence[Subject]) -> list[int]:
    """Where every one of ``wanted`` is in ``known``, which holds them all; copies in order."""
    found: dict[str, list[int]] = {}
    for index, subject in enumerate(known):
        found.setdefault(_identity(subject), []).append(index)
    seen: Counter[str] = Counter()
    indices = []
    for subject in wanted:
        name = _identity(subject)
        indices.append(found[name][seen[name]])
        seen[name] += 1
    return indices


def scenes_subjects(count: int | None = None) -> tuple[Subject, ...]:
    """Held-out prompts of the built-in world, in the order of `scalekv.scenes.prompts.benchmark`.

    Args:
        count: how many, evenly over the categories; default the whole benchmark, 40 of each. Fewer where there are
            not as many different ones.

    Raises:
        InvalidInput: no prompt at all.
    """
    from scalekv.scenes.prompts import CATEGORIES, benchmark

    if count is not None and count < 1:
        raise InvalidInput(f"Expected at least 1 prompt of the built-in world, got {count}.")
    prompts = benchmark() if count is None else benchmark(-(-count // len(CATEGORIES)))
    beyond = 0 if count is None else -count % len(CATEGORIES)
    full = {category: [one for one in prompts if one.category == category] for category in CATEGORIES}
    for category in CATEGORIES[len(CATEGORIES) - beyond :]:
        full[category].pop()
    return tuple(
        Subject(one.text, category, source="scenes", details=asdict(one))
        for category, some in full.items()
        for one in some
    )


def class_list(text: str) -> list[int | str] | None:
    """Classes by number or name, such as ``"0-9,207,tabby cat"``; ``None`` for ``"all"``.

    Raises:
        InvalidInput: an empty entry, or one of digits that is no number or range.
    """
    if text.strip() == "all":
        return None
    classes: list[int | str] = []
    for piece in (piece.strip() for piece in text.split(",")):
        match = re.fullmatch(r"(\d{1,6})\s*(?:-\s*(\d{1,6}))?", piece)
        if match is not None and int(match[1]) <= int(match[2] or match[1]):
            classes += range(int(match[1]), int(match[2] or match[1]) + 1)
        elif match is None and re.search(r"[^\W\d]", piece):
            classes.append(piece)
        else:
            raise InvalidInput(
                f"Cannot read the classes {text!r}; write numbers and names such as '0-9,207,tabby cat', or 'all'."
            )
    return classes


def class_subjects(numbers: Sequence[int] | None, per_class: int, classes: int) -> tuple[Subject, ...]:
    """Classes of a class-conditional model, all pictures of a class one after another.

    Args:
        numbers: of the classes; ``None`` for all.
        per_class: pictures of each.
        classes: how many the model knows.

    Raises:
        InvalidInput: a class that the model does not know, or less than one picture of each.
    """
    if per_class < 1:
        raise InvalidInput(f"Expected at least 1 picture per class, got {per_class}.")
    chosen = range(classes) if numbers is None else numbers
    for number in chosen:
        if number >= classes:
            raise InvalidInput(f"Class {number} does not exist; this model has classes 0 to {classes - 1}.")
    return tuple(Subject(str(number), item=str(number)) for number in chosen for _ in range(per_class))


def read_subjects(path: Path) -> tuple[Subject, ...]:
    """The prompts of a benchmark, from a ``.json``, ``.jsonl`` or ``.csv`` file or a folder.

    Known by their form: lists of texts; entries with a ``prompt``, ``text`` or ``caption``; GenEval's
    ``evaluation_metadata.jsonl``; DPG-Bench's ``dpg_bench.csv`` (every item once) or folder of ``.txt`` files; HPSv2's
    folder with ``anime.json`` and so on, or one of these files; MJHQ-30K's ``meta_data.json`` (names to entries);
    COCO's captions (the first caption of every picture, in the order of the picture numbers).

    Raises:
        InvalidInput: it cannot be read, or holds no prompts in a known form.
    """
    if path.is_dir():
        subjects = _read_folder(path)
    elif path.suffix.lower() == ".csv":
        subjects = _unique(_entry(row, path) for row in _rows(path))
    elif path.suffix.lower() == ".jsonl":
        lines = [line for line in _text(path).splitlines() if line.strip()]
        subjects = [_entry(_parsed(line, path), path) for line in lines]
    else:
        subjects = _of_json(_parsed(_text(path), path), path)
    if not subjects:
        raise InvalidInput(f"{path} has no prompts.")
    return tuple(subjects)


def _identity(subject: Subject) -> str:
    return json.dumps(subject.to_dict(), sort_keys=True)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise InvalidInput(f"Cannot read the prompts in {path}: {reason}.") from error


def _parsed(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} is no JSON ({error}).") from error


def _rows(path: Path) -> list[dict[str, Any]]:
    return list(csv.DictReader(_text(path).splitlines(keepends=True)))


def _unique(subjects: Iterable[Subject]) -> list[Subject]:
    """Subjects by name, the first of each; those without a name all."""
    found: dict[str, Subject] = {}
    for number, subject in enumerate(subjects):
        found.setdefault(f"#{number}" if subject.item is None else subject.item, subject)
    return list(found.values())


def _read_folder(path: Path) -> list[Subject]:
    styles = [path / f"{style}.json" for style in STYLES if (path / f"{style}.json").is_file()]
    if styles:
        return [one for file in styles for one in _of_json(_parsed(_text(file), file), file)]
    texts = sorted(path.glob("*.txt"))
    if not texts:
        raise InvalidInput(
            f"{path} holds neither the prompts of DPG-Bench (*.txt) nor those of HPSv2 ({', '.join(STYLES)} as .json)."
        )
    return [Subject(" ".join(_text(file).split()), item=file.stem) for file in texts]


def _of_json(data: Any, path: Path) -> list[Subject]:
    if isinstance(data, dict) and isinstance(data.get("annotations"), list):
        entries = sorted((_entry(one, path) for one in data["annotations"]), key=lambda one: (one.item or "").zfill(20))
        return _unique(entries)
    if isinstance(data, dict):
        return [_entry({"id": name, **one} if isinstance(one, dict) else one, path) for name, one in data.items()]
    if not isinstance(data, list):
        raise InvalidInput(f"{path} holds no prompts in a known form; write a list of texts.")
    style = path.stem if path.stem in STYLES else None
    return [Subject(one, style) if isinstance(one, str) else _entry(one, path) for one in data]


def _entry(data: Any, path: Path) -> Subject:
    found = data if isinstance(data, dict) else {}

    def first(names: Sequence[str]) -> str | None:
        values = (found.get(name) for name in names)
        return next((str(value).strip() for value in values if value not in (None, "")), None)

    text = first(_TEXT_NAMES)
    if text is None:
        raise InvalidInput(
            f"An entry of {path} has no prompt ({str(data)[:60]}); it needs one of prompt, text, caption."
        )
    is_geneval = "include" in found
    return Subject(text, first(_CATEGORY_NAMES), first(_ITEM_NAMES), details=dict(found) if is_geneval else None)
