"""Where results go: names that say what is inside, and complaints before the expensive work, not after it."""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from scalekv.errors import InvalidInput, ProfileError
from scalekv.planning import Profile

NAME_LENGTH = 48
REPORT_MARK = b'content="scalekv report"'
"""What a page of ours has in its head."""

_FIELDS = ("index", "seed", "prompt")


def expanded(text: str | Path) -> Path:
    """``text`` as a path, a leading ``~`` replaced.

    Raises:
        InvalidInput: the home folder of a user who is not known.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InvalidInput(f"Cannot use {text}: there is no such home folder; write the path in full.") from error


def _mode(path: Path, option: str = "--out") -> int | None:
    """The mode of what is at ``path``; ``None`` if nothing is.

    Raises:
        InvalidInput: nothing can be there: the name is too long, or the folder cannot be entered.
    """
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInput(f"Cannot write {path}: {reason}; choose another {option}.") from error


def is_folder(path: Path, option: str = "--out") -> bool:
    """Whether there is a folder at ``path``, the value of ``option``.

    Raises:
        InvalidInput: nothing can be there.
    """
    return stat.S_ISDIR(_mode(path, option) or 0)


def check_folder(folder: Path, what: str, option: str = "--out") -> None:
    """Make sure that ``folder`` exists and takes new files; leaves nothing in it. ``option`` named it.

    Raises:
        InvalidInput: it does not exist, is a file, or cannot be written.
    """
    if _mode(folder, option) is None:
        raise InvalidInput(
            f"Cannot write {what}: there is no folder {folder}; make it first, or choose another {option}."
        )
    if not is_folder(folder, option):
        raise InvalidInput(f"Cannot write {what}: {folder} is not a folder; choose another {option}.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise InvalidInput(f"Cannot write {what}: {folder}: {reason}; choose a writable {option}.") from error


def check_new_folder(folder: Path, option: str = "--out", overwrite: bool | None = None) -> None:
    """Make sure that ``folder`` can be made; an empty one may exist.

    Args:
        folder: what was asked for.
        option: with which it was.
        overwrite: whether it may be replaced; ``None`` in commands that never do.

    Raises:
        InvalidInput: it exists and may not be replaced, or its parent takes no new folder.
    """
    if _mode(folder, option) is not None and not is_folder(folder, option):
        raise InvalidInput(f"{folder} is a file; choose a folder for {option}.")
    if is_folder(folder, option) and any(folder.iterdir()) and not overwrite:
        way = "" if overwrite is None else ", or replace it with --overwrite"
        raise InvalidInput(f"{folder} exists already; choose another {option}{way}.")
    check_folder(folder.absolute().parent, str(folder), option)


def check_file(path: Path, suffix: str) -> None:
    """Make sure that ``path`` is named ``*.suffix`` and can be written.

    Raises:
        InvalidInput: another suffix, a folder, or a place that cannot be written.
    """
    if path.suffix.lower() != suffix:
        raise InvalidInput(f"--out is {path}; expected a file name that ends in {suffix}.")
    if is_folder(path):
        raise InvalidInput(f"--out is {path}, which is a folder; name a file in it.")
    check_folder(path.absolute().parent, str(path))


def check_profile_file(path: Path) -> None:
    """Make sure that a profile can be written to ``path`` and its map beside it, and that neither replaces other files.

    An existing profile is replaced, and so is the picture beside it.

    Raises:
        InvalidInput: another suffix than ``.json``, a folder, a file that is no profile, a picture without a profile,
            or a place that cannot be written.
    """
    check_file(path, ".json")
    picture = path.with_suffix(".png")
    if is_folder(picture):
        raise InvalidInput(f"Cannot write {picture}, the map of the profile: it is a folder; choose another --out.")
    if _mode(path) is not None:
        try:
            Profile.load(path)
        except ProfileError as error:
            raise InvalidInput(f"{path} exists and is no profile; move it away, or choose another --out.") from error
    elif _mode(picture) is not None:
        raise InvalidInput(
            f"{picture} exists, and the map of {path} would replace it; move it away, or choose another --out."
        )


def check_report_file(path: Path) -> None:
    """Make sure that a report can be written to ``path``, and that it replaces no other page.

    Raises:
        InvalidInput: another suffix than ``.html``, a folder, a page that is no report, or a place that cannot be
            written.
    """
    check_file(path, ".html")
    if _mode(path) is not None and REPORT_MARK not in path.read_bytes()[:2000]:
        raise InvalidInput(f"{path} exists and is no report of ours; move it away, or choose another --out.")


def slug(text: str) -> str:
    """``text`` as part of a file name: lower-case words joined by hyphens, at most ``NAME_LENGTH`` characters."""
    words = re.findall(r"\w+", text.lower())
    name = ""
    for word in words:
        if len(name) + len(word) + 1 > NAME_LENGTH:
            break
        name = f"{name}-{word}" if name else word
    return name or (words[0][:NAME_LENGTH] if words else "picture")


def sheet_path(picture: Path) -> Path:
    """Where the comparison sheet of a picture goes."""
    return picture.with_name(f"{picture.stem}-compare.png")


def _files_of(picture: Path, sheets: bool) -> list[Path]:
    return [picture, sheet_path(picture)] if sheets else [picture]


def picture_paths(out: str | None, prompts: Sequence[str], seeds: Sequence[int], sheets: bool = False) -> list[Path]:
    """One path per image; ``prompts`` and ``seeds`` hold one entry per image.

    Args:
        out: nothing (names in the current folder), a folder, or a ``.png`` name, in which ``{index}``, ``{seed}`` and
            ``{prompt}`` are filled in. A plain name for several images gets ``-1``, ``-2``, ... appended. Names of our
            own making never replace a file; a name that was asked for does.
        prompts: texts.
        seeds: seeds.
        sheets: whether every image gets a comparison sheet too, at :func:`sheet_path`. A sheet replaces a file only
            together with its picture.

    Raises:
        InvalidInput: another suffix, an unknown field, two files of one name, a sheet that would replace a file of its
            own, or a place that cannot be written.
    """
    if out is not None and not out.strip():
        raise InvalidInput("--out is empty; give a folder or a name that ends in .png.")
    path = expanded(out or ".")
    if out is None or out.endswith("/") or is_folder(path):
        check_folder(path, "pictures")
        return _fresh(path, [f"{slug(prompt)}-{seed}" for prompt, seed in zip(prompts, seeds, strict=True)], sheets)
    if path.suffix.lower() != ".png":
        raise InvalidInput(f"--out is {out}; expected a folder that exists or a name that ends in .png.")
    check_folder(path.absolute().parent, str(path))
    several, stem = len(seeds) > 1, path.stem
    if several and not re.search(r"\{(index|seed|prompt)\}", stem):
        stem += "-{index}"
    paths = []
    for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True), start=1):
        values = {"index": str(index), "seed": str(seed), "prompt": slug(prompt)}
        paths.append(path.with_name(_filled(stem, values) + path.suffix))
    if len(set(paths)) < len(paths):
        raise InvalidInput(f"--out {out} gives several images one name; use {{index}} or {{seed}} in it.")
    _check_places(out, paths, sheets)
    return paths


def _check_places(out: str, pictures: Sequence[Path], sheets: bool) -> None:
    """Refuse names that are folders, and sheets in the place of another picture or of a file that is not theirs."""
    for file in (file for picture in pictures for file in _files_of(picture, sheets)):
        if is_folder(file):
            raise InvalidInput(f"Cannot write {file}: it is a folder; choose another --out.")
    for picture, sheet in ((one, sheet_path(one)) for one in pictures if sheets):
        if sheet in pictures:
            raise InvalidInput(
                f"--out {out} names a picture {sheet.name}, as the comparison of {picture.name} is; use {{index}} or "
                f"{{seed}} in it."
            )
        if _mode(sheet) is not None and _mode(picture) is None:
            raise InvalidInput(
                f"{sheet} exists, and --compare would replace it; move it away, or choose another --out."
            )


def _filled(stem: str, values: Mapping[str, str]) -> str:
    def fill(match: re.Match[str]) -> str:
        if match[1] not in values:
            known = ", ".join(f"{{{name}}}" for name in _FIELDS)
            raise InvalidInput(f"--out has an unknown field {match[0]}; known are {known}.")
        return values[match[1]]

    return re.sub(r"\{(\w*)\}", fill, stem)


def _fresh(folder: Path, stems: Sequence[str], sheets: bool) -> list[Path]:
    paths: list[Path] = []
    taken: set[Path] = set()
    for stem in stems:
        path, number = folder / f"{stem}.png", 1
        while any(file in taken or _mode(file) is not None for file in _files_of(path, sheets)):
            number += 1
            path = folder / f"{stem}-{number}.png"
        taken.update(_files_of(path, sheets))
        paths.append(path)
    return paths


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one per line; blank lines do not count.

    Raises:
        InvalidInput: it cannot be read, is no text, or has no prompt.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = error.strerror or error
        raise InvalidInput(f"Cannot read the prompts in {path}: {reason}; give a text file.") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is no UTF-8 text; write one prompt per line.") from error
    if "\0" in text:
        raise InvalidInput(f"{path} is no text (it has zero bytes); write one prompt per line.")
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise InvalidInput(f"{path} has no prompts; write one per line.")
    return prompts
