"""Prompts and pictures of a run, written for other people's evaluators."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from scalekv.errors import InvalidInput
from scalekv.evaluation.gallery import Gallery
from scalekv.evaluation.layouts import LAYOUTS
from scalekv.evaluation.subjects import Subject


def export(subjects: Sequence[Subject], chosen: Sequence[Gallery], layout: str, out: Path) -> list[str]:
    """Write a folder; it appears whole or not at all.

    Args:
        subjects: the prompts.
        chosen: whose pictures; none for the prompts alone.
        layout: a key of `scalekv.evaluation.layouts.LAYOUTS`.
        out: a folder that does not exist or is empty.

    Returns:
        Sentences on what to know before these pictures are scored.

    Raises:
        InvalidInput: an unknown layout, prompts that it cannot hold, pictures that were not kept, or ``out`` exists.
    """
    if layout not in LAYOUTS:
        raise InvalidInput(f"There is no layout {layout!r}; choose one of {', '.join(LAYOUTS)}.")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InvalidInput(f"{out} exists already; choose another folder.")
    form = LAYOUTS[layout]()
    notes = form.notes(subjects, chosen)
    for gallery in chosen:
        gallery.check(len(subjects))
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}.") as name:
            whole = Path(name) / "out"
            whole.mkdir()
            form.prompts(subjects, whole)
            for gallery in chosen:
                form.pictures(subjects, gallery, whole / "pictures" / gallery.cell.folder)
            whole.replace(out)
    except OSError as error:
        raise InvalidInput(f"Cannot write {out}: {error.strerror or error}; choose another folder.") from error
    return notes
