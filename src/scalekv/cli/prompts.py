"""Where prompts come from: files, benchmarks, the built-in world."""

from __future__ import annotations

from scalekv.cli.files import expanded, read_prompts
from scalekv.errors import InvalidInput
from scalekv.evaluation.subjects import Subject, read_subjects, scenes_subjects

STRUCTURED = (".json", ".jsonl", ".csv")


def prompts_from(source: str, limit: int | None = None) -> tuple[Subject, ...]:
    """The prompts that ``--prompts`` names.

    Args:
        source: ``scenes``, a number of them, a file or a folder.
        limit: only the first ones of a file or folder.

    Raises:
        InvalidInput: none of these, a file that holds no prompts, or a limit below 1 or beside ``scenes``.
    """
    word = source.strip()
    if limit is not None and limit < 1:
        raise InvalidInput(f"--limit is {limit}; expected a whole number from 1.")
    if word == "scenes" or word.isdecimal():
        if limit is not None:
            raise InvalidInput("Write how many of the built-in prompts as --prompts 70; --limit is for files.")
        return scenes_subjects(None if word == "scenes" else int(word))
    path = expanded(word)
    if not path.exists():
        raise InvalidInput(
            f"There is no file or folder {source!r} with prompts; give one, or 'scenes' for the built-in world's."
        )
    if path.is_dir() or path.suffix.lower() in STRUCTURED:
        return read_subjects(path)[:limit]
    return tuple(Subject(text) for text in read_prompts(path))[:limit]
