"""The folder of an evaluation: what was asked, one line for every result, pictures and what the full cache drew.

    run.json                              the model, the settings, the prompts; see `RunInfo`
    profile.json                          what methods were planned with, if there was a profile
    results-0.jsonl, results-1.jsonl ...  one line for every result, one file for every process
    results.csv                           all results, once the run is complete
    summary.md                            the tables of `scalekv.evaluation.tables.markdown`, likewise
    fid.json                              FID by method and budget, if it was measured
    pictures/METHOD/BUDGET/00012-0.png    pictures by prompt and seed; those of the full cache always
    drawn/00012-0.npz                     bits or tokens of the full cache

Needs no torch.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from scalekv.errors import InvalidInput
from scalekv.evaluation.info import RunInfo
from scalekv.evaluation.jobs import FULL, Cell
from scalekv.evaluation.subjects import Subject
from scalekv.files import replacing, write_atomically
from scalekv.planning import Profile

if TYPE_CHECKING:
    from PIL.Image import Image

Record = dict[str, Any]


_HEAD = ("key", "policy", "label", "budget", "prompt_index", "seed")
"""What every result has."""


class RunFolder:
    """A run on disk.

    Args:
        path: its folder.
        info: what it is about.
    """

    def __init__(self, path: Path, info: RunInfo) -> None:
        self.path, self.info = path, info

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Read an existing run.

        Raises:
            InvalidInput: no run, or a damaged one.
        """
        file = Path(path) / "run.json"
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidInput(f"{path} holds no run of 'scalekv evaluate' (no run.json in it).") from error
        except ValueError as error:
            raise InvalidInput(f"{file} is damaged (it is no JSON); evaluate into another folder.") from error
        return cls(Path(path), RunInfo.from_dict(data, str(file)))

    @classmethod
    def begin_or_continue(
        cls, path: Path, settings: dict[str, Any], subjects: Sequence[Subject], details: dict[str, Any]
    ) -> Self:
        """The run in ``path`` with more prompts, or a new one; nothing is written.

        All processes of a run come to the same, whoever writes first.

        Raises:
            InvalidInput: a folder with other things in it, or a run with other settings.
        """
        foreign = path.exists() and not (path.is_dir() and all(_is_own(file.name) for file in path.iterdir()))
        if (path / "run.json").exists():  # looked for last: another process may have begun the run meanwhile
            return cls(path, cls.open(path).info.continued(settings, subjects, details))
        if foreign:
            raise InvalidInput(f"{path} exists and is no run of 'scalekv evaluate'; choose another --out.")
        return cls(path, RunInfo.begin(settings, subjects, details))

    def save(self) -> None:
        """Write ``run.json``.

        Raises:
            InvalidInput: the folder cannot be written.
        """
        text = json.dumps(self.info.to_dict(), ensure_ascii=False, indent=1)
        write_atomically(self.path / "run.json", (text + "\n").encode())

    def save_profile(self, profile: Profile | None) -> None:
        """Write the profile that methods are planned with, if there is one.

        Raises:
            InvalidInput: the folder cannot be written.
        """
        if profile is not None:
            profile.save(self.path / "profile.json")

    def profile(self) -> Profile | None:
        """The profile that methods were planned with; ``None`` if there was none.

        Raises:
            ProfileError: a damaged one.
        """
        path = self.path / "profile.json"
        return Profile.load(path) if path.is_file() else None

    def records(self) -> list[Record]:
        """All results, ordered by method, budget, prompt and seed; each once.

        Raises:
            InvalidInput: a damaged line that is not the last of its file.
        """
        found: dict[str, Record] = {}
        for file in sorted(self.path.glob("results*.jsonl")):
            for record in read_lines(file):
                found.setdefault(record["key"], record)
        return sorted(found.values(), key=_order)

    def picture_path(self, cell: Cell, index: int, seed: int) -> Path:
        """Where the picture of a prompt goes."""
        return self.path / "pictures" / cell.folder / f"{index:05d}-{seed}.png"

    def save_picture(self, cell: Cell, index: int, seed: int, picture: Image) -> None:
        """Write a picture."""
        with replacing(self.picture_path(cell, index, seed)) as temporary:
            picture.save(temporary, format="PNG")

    def picture(self, cell: Cell, index: int, seed: int) -> Image | None:
        """Read a picture; ``None`` if it is not there or damaged."""
        from PIL import Image

        try:
            with Image.open(self.picture_path(cell, index, seed)) as picture:
                rgb: Image.Image = picture.convert("RGB")
                return rgb
        except (OSError, SyntaxError):
            return None

    def _drawn_path(self, index: int, seed: int) -> Path:
        return self.path / "drawn" / f"{index:05d}-{seed}.npz"

    def save_reference(self, index: int, seed: int, picture: Image, drawn: Sequence[NDArray[np.integer]]) -> None:
        """Write what the full cache drew: the picture, and per segment its bits or tokens."""
        self.save_picture(FULL, index, seed, picture)
        small = [one.astype(np.min_scalar_type(int(one.max()))) for one in drawn]
        with replacing(self._drawn_path(index, seed)) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, *small)

    def reference(self, index: int, seed: int) -> tuple[Image, list[NDArray[np.integer]]] | None:
        """Read what the full cache drew; ``None`` if any of it is not there or damaged."""
        picture = self.picture(FULL, index, seed)
        try:
            with np.load(self._drawn_path(index, seed)) as file:
                drawn = [file[f"arr_{segment}"] for segment in range(len(file.files))]
        except Exception:  # a torn archive fails in many ways
            return None
        return None if picture is None else (picture, drawn)

    @contextlib.contextmanager
    def writer(self, rank: int) -> Iterator[Writer]:
        """Take results of process ``rank``; what a kill left of a line is removed first.

        Raises:
            InvalidInput: another process writes the same file.
        """
        path = self.path / f"results-{rank}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as stream:
            _lock(stream, path)
            stream.truncate(_whole_bytes(stream))
            yield Writer(stream)

    def write_csv(self) -> Path:
        """Write ``results.csv``: a row for every result, lists as numbers between blanks."""
        rows = [_flat(record) for record in self.records()]
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        table = csv.DictWriter(text, names, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        path = self.path / "results.csv"
        write_atomically(path, text.getvalue().encode())
        return path

    def save_fids(self, fids: Mapping[str, float]) -> None:
        """Write FIDs by ``METHOD/BUDGET``."""
        write_atomically(self.path / "fid.json", (json.dumps(dict(fids), indent=1) + "\n").encode())

    def fids(self) -> dict[str, float]:
        """FIDs by ``METHOD/BUDGET``; none if they were not measured.

        Raises:
            InvalidInput: a damaged file.
        """
        file = self.path / "fid.json"
        try:
            return dict(json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError) as error:
            raise InvalidInput(f"{file} is damaged; delete it, and evaluate again with --metric fid.") from error


class Writer:
    """Appends results to one file."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def append(self, records: Sequence[Record]) -> None:
        """Write results in one go and wait until they are on the disk."""
        lines = (json.dumps(record, ensure_ascii=False, allow_nan=False, default=str) for record in records)
        self._stream.write("".join(f"{line}\n" for line in lines).encode())
        self._stream.flush()
        os.fsync(self._stream.fileno())


def read_lines(path: Path) -> Iterator[Record]:
    """The results in one file; a last line without its end, as a kill leaves it, is none.

    Raises:
        InvalidInput: a damaged line.
    """
    content = path.read_bytes()
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            record = json.loads(line)
            for name in _HEAD:
                record[name]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(
                f"Line {number} of {path} is damaged; delete the line, and its result will be made again."
            ) from error
        yield record


def _is_own(name: str) -> bool:
    """Whether a run makes files of this name; other processes of it may have begun already."""
    return name in ("pictures", "drawn", "profile.json") or name.startswith(("results", "."))


def _whole_bytes(stream: IO[bytes]) -> int:
    stream.seek(0)
    return stream.read().rfind(b"\n") + 1


def _lock(stream: IO[bytes], path: Path) -> None:
    """Keep other processes off a file until it is closed, where the system can."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InvalidInput(f"Another evaluation writes {path}; wait for it, or choose another --out.") from error


def _order(record: Record) -> tuple[Any, ...]:
    return record["label"], record["budget"], record["prompt_index"], record["seed"]


def _flat(record: Record) -> Record:
    row: Record = {}
    for name, value in record.items():
        if name == "settings":  # the label tells what differs
            continue
        if isinstance(value, dict):
            row.update({f"{name}.{inner}": one for inner, one in value.items()})
        elif isinstance(value, list):
            row[name] = " ".join(map(str, value))
        else:
            row[name] = value
    return row
