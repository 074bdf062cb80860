"""The layouts in which other people's evaluators read prompts and pictures.

Each was read from that project's own code and instructions. A layout writes the pictures of every method and budget
as ``pictures/METHOD/BUDGET``; that folder is what the evaluator is given.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scalekv.errors import InvalidInput
from scalekv.evaluation.gallery import Gallery
from scalekv.evaluation.npz import write_npz
from scalekv.evaluation.subjects import Subject

if TYPE_CHECKING:
    from PIL.Image import Image

JPEG_QUALITY = 95
"""Of the pictures for HPSv2, whose own sample code uses 75 [ours]."""

GRID = 4
"""Pictures of one prompt on a sheet of DPG-Bench."""


class Layout:
    """One evaluator's files: this one a flat folder of pictures and a list of prompts.

    The flat folder, for tools that compare two folders of pictures (pytorch-fid, clean-fid, torch-fidelity): every
    picture as ``00012-0.png`` (prompt and seed), the references of the full cache in ``pictures/full/100pct`` under
    the same names; the prompts in ``prompts.txt``.
    """

    def notes(self, subjects: Sequence[Subject], chosen: Sequence[Gallery]) -> list[str]:
        """What to know before scoring.

        Raises:
            InvalidInput: prompts that this layout cannot hold.
        """
        return []

    def prompts(self, subjects: Sequence[Subject], out: Path) -> None:
        """Write the prompts."""
        lines = [" ".join(subject.text.split()) + "\n" for subject in subjects]
        (out / "prompts.txt").write_text("".join(lines), encoding="utf-8")

    def pictures(self, subjects: Sequence[Subject], gallery: Gallery, folder: Path) -> None:
        """Write the pictures of one method into ``folder``."""
        folder.mkdir(parents=True)
        for index in range(len(subjects)):
            for path in gallery.paths(index):
                shutil.copyfile(path, folder / path.name)


class GenEval(Layout):
    """GenEval (djghosh13/geneval): ``00000/metadata.jsonl`` and ``00000/samples/0000.png``, one sample for every seed.

    Confirmed from its instructions and ``evaluation/evaluate_images.py``: folders of digits, in each the line of
    ``evaluation_metadata.jsonl`` that belongs to it; four samples are usual. The line is what scores a picture.
    """

    def notes(self, subjects: Sequence[Subject], chosen: Sequence[Gallery]) -> list[str]:
        """Say which prompts cannot be scored."""
        plain = sum(not _is_geneval(subject) for subject in subjects)
        if not plain:
            return []
        return [
            f"{plain} of {len(subjects)} prompts carry no GenEval metadata, so GenEval's evaluator cannot score them; "
            "give its evaluation_metadata.jsonl to 'scalekv evaluate --prompts'."
        ]

    def prompts(self, subjects: Sequence[Subject], out: Path) -> None:
        """``evaluation_metadata.jsonl``."""
        lines = [json.dumps(_metadata(subject)) + "\n" for subject in subjects]
        (out / "evaluation_metadata.jsonl").write_text("".join(lines), encoding="utf-8")

    def pictures(self, subjects: Sequence[Subject], gallery: Gallery, folder: Path) -> None:
        """One folder for every prompt."""
        for index, subject in enumerate(subjects):
            samples = folder / f"{index:05d}" / "samples"
            samples.mkdir(parents=True)
            (samples.parent / "metadata.jsonl").write_text(json.dumps(_metadata(subject)) + "\n", encoding="utf-8")
            for number, path in enumerate(gallery.paths(index)):
                shutil.copyfile(path, samples / f"{number:04d}.png")


class DPG(Layout):
    """DPG-Bench (TencentQQGYLab/ELLA): ``ITEM.png``, four pictures of a prompt on one sheet of two by two.

    Confirmed from its ``dpg_bench/compute_dpg_bench.py``: the file is named by the item; the pictures are cut out row
    by row at ``--resolution``, the first ``--pic-num`` of them. Prompts as ``prompts/ITEM.txt``, as it ships them.
    """

    def notes(self, subjects: Sequence[Subject], chosen: Sequence[Gallery]) -> list[str]:
        """Say with which options to score."""
        if not chosen:
            return []
        count = min(GRID, *(len(gallery.seeds) for gallery in chosen))
        notes = [f"Score these sheets with --pic-num {count} and --resolution of one picture's side."]
        if count < GRID:
            notes.append(
                f"DPG-Bench has {GRID} pictures for every prompt, here are {count}; evaluate with --seeds {GRID}."
            )
        return notes

    def prompts(self, subjects: Sequence[Subject], out: Path) -> None:
        """``prompts/ITEM.txt``."""
        (out / "prompts").mkdir()
        for index, subject in enumerate(subjects):
            (out / "prompts" / f"{_item(subject, index)}.txt").write_text(subject.text, encoding="utf-8")

    def pictures(self, subjects: Sequence[Subject], gallery: Gallery, folder: Path) -> None:
        """One sheet for every prompt."""
        folder.mkdir(parents=True)
        for index, subject in enumerate(subjects):
            _sheet(list(gallery.pictures(index))[:GRID]).save(folder / f"{_item(subject, index)}.png")


class HPSv2(Layout):
    """HPSv2 (tgxs002/HPSv2): ``STYLE/00000.jpg``, numbered within anime, concept-art, paintings and photo.

    Confirmed from its instructions and ``hpsv2/evaluation.py``: five digits, ``.jpg``; it wants 800 of every style and
    looks for them in the order of its own ``STYLE.json``, which is also written, into ``prompts``. The first seed only.
    """

    def notes(self, subjects: Sequence[Subject], chosen: Sequence[Gallery]) -> list[str]:
        """Say what is missing of the benchmark.

        Raises:
            InvalidInput: a prompt without a style.
        """
        plain = sum(subject.category is None for subject in subjects)
        if plain:
            raise InvalidInput(
                f"{plain} of {len(subjects)} prompts have no style, by which HPSv2 sorts; evaluate its folder of "
                "anime.json, concept-art.json, paintings.json and photo.json."
            )
        short = [style for style, some in _styles(subjects).items() if len(some) != 800]
        return [f"HPSv2 has 800 prompts of every style; here {', '.join(short)} has another number."] if short else []

    def prompts(self, subjects: Sequence[Subject], out: Path) -> None:
        """``prompts/STYLE.json``."""
        (out / "prompts").mkdir()
        for style, indices in _styles(subjects).items():
            texts = [subjects[index].text for index in indices]
            (out / "prompts" / f"{style}.json").write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")

    def pictures(self, subjects: Sequence[Subject], gallery: Gallery, folder: Path) -> None:
        """One folder for every style."""
        for style, indices in _styles(subjects).items():
            (folder / style).mkdir(parents=True)
            for number, index in enumerate(indices):
                picture = next(gallery.pictures(index))
                picture.save(folder / style / f"{number:05d}.jpg", quality=JPEG_QUALITY, subsampling=0)


class Npz(Layout):
    """One ``.npz`` for the ImageNet evaluator of openai/guided-diffusion, which is what VAR's FID is measured with.

    ``pictures/METHOD/BUDGET.npz`` with ``arr_0``: (pictures, height, width, 3) bytes, all seeds and prompts. Confirmed
    from its instructions; the published FIDs take 50,000 pictures of 256 x 256, 50 of every class.
    """

    def pictures(self, subjects: Sequence[Subject], gallery: Gallery, folder: Path) -> None:
        """One file beside where the others make a folder."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        pictures = (picture for index in range(len(subjects)) for picture in gallery.pictures(index))
        write_npz(folder.with_name(f"{folder.name}.npz"), pictures, len(subjects) * len(gallery.seeds))


LAYOUTS: dict[str, Callable[[], Layout]] = {
    "geneval": GenEval,
    "dpg": DPG,
    "hpsv2": HPSv2,
    "fid": Layout,
    "npz": Npz,
}
"""Layouts by name."""


def _is_geneval(subject: Subject) -> bool:
    return "include" in (subject.details or {})


def _metadata(subject: Subject) -> dict[str, object]:
    if _is_geneval(subject):
        return dict(subject.details or {})
    return {"tag": subject.category, "prompt": subject.text}


def _item(subject: Subject, index: int) -> str:
    return f"{index:05d}" if subject.item is None else re.sub(r"[^\w-]", "_", subject.item)


def _styles(subjects: Sequence[Subject]) -> dict[str, list[int]]:
    """Indices of the prompts of every style."""
    found: dict[str, list[int]] = defaultdict(list)
    for index, subject in enumerate(subjects):
        found[re.sub(r"[^\w-]", "_", str(subject.category))].append(index)
    return dict(found)


def _sheet(pictures: Sequence[Image]) -> Image:
    """Up to four pictures of one size, two by two; a single one alone."""
    from PIL import Image

    width, height = pictures[0].size
    if len(pictures) == 1:
        return pictures[0]
    sheet = Image.new("RGB", (2 * width, 2 * height))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % 2 * width, number // 2 * height))
    return sheet
