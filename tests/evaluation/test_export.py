"""Folders for other evaluators hold what their code looks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluation.helpers import request_of
from scalekv.errors import InvalidInput
from scalekv.evaluation import RunFolder, Subject, evaluate
from scalekv.evaluation.export import export
from scalekv.evaluation.gallery import galleries

GENEVAL = {"tag": "counting", "include": [{"class": "bird", "count": 2}], "prompt": "two birds"}
SUBJECTS = [
    Subject("two birds", "anime", "bird.1", details=GENEVAL),
    Subject("a cat", "photo", "cat"),
    Subject("a dog", "photo", "dog"),
]


@pytest.fixture(scope="module")
def run(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Three prompts at two seeds, full and one method."""
    request = request_of("random", "20%", subjects=SUBJECTS, seeds=(0, 1_000_000), save_pictures=True)
    return evaluate(pipeline, request, tmp_path_factory.mktemp("export") / "run")


def written(run: RunFolder, layout: str, out: Path) -> tuple[Path, list[str]]:
    notes = export(run.info.subjects, galleries(run), layout, out)
    return out / "pictures" / "random" / "20pct", notes


def pixels(path: Path) -> Any:
    return np.asarray(Image.open(path).convert("RGB"))


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_geneval(run: RunFolder, tmp_path: Path) -> None:
    folder, notes = written(run, "geneval", tmp_path / "out")
    files = [
        f"0000{index}/{name}"
        for index in range(3)
        for name in ("metadata.jsonl", *(f"samples/000{s}.png" for s in (0, 1)))
    ]
    assert names(folder) == files
    assert json.loads((folder / "00000" / "metadata.jsonl").read_text()) == GENEVAL
    assert (folder / "00001" / "samples" / "0001.png").read_bytes() == (
        run.path / "pictures" / "random" / "20pct" / "00001-1000000.png"
    ).read_bytes()
    assert [json.loads(line)["prompt"] for line in (tmp_path / "out" / "evaluation_metadata.jsonl").open()] == [
        subject.text for subject in SUBJECTS
    ]
    assert notes[0].startswith("2 of 3 prompts carry no GenEval metadata")


def test_dpg(run: RunFolder, tmp_path: Path) -> None:
    folder, notes = written(run, "dpg", tmp_path / "out")
    assert names(folder) == ["bird_1.png", "cat.png", "dog.png"]
    side = 64
    sheet = pixels(folder / "cat.png")
    assert sheet.shape == (2 * side, 2 * side, 3)
    for number, seed in enumerate((0, 1_000_000)):
        expected = pixels(run.path / "pictures" / "random" / "20pct" / f"00001-{seed}.png")
        assert np.array_equal(sheet[:side, number * side : (number + 1) * side], expected)
    assert (tmp_path / "out" / "prompts" / "dog.txt").read_text() == "a dog"
    assert "--pic-num 2" in notes[0]
    assert "--seeds 4" in notes[1]


def test_hpsv2(run: RunFolder, tmp_path: Path) -> None:
    folder, notes = written(run, "hpsv2", tmp_path / "out")
    assert names(folder) == ["anime/00000.jpg", "photo/00000.jpg", "photo/00001.jpg"]
    assert sorted(path.name for path in folder.iterdir()) == ["anime", "photo"]
    with Image.open(folder / "photo" / "00001.jpg") as picture:
        assert picture.format == "JPEG"
    original = pixels(run.path / "pictures" / "random" / "20pct" / "00002-0.png").astype(int)
    assert np.abs(pixels(folder / "photo" / "00001.jpg") - original).mean() < 6
    assert json.loads((tmp_path / "out" / "prompts" / "photo.json").read_text()) == ["a cat", "a dog"]
    assert "800 prompts of every style" in notes[0]


def test_fid(run: RunFolder, tmp_path: Path) -> None:
    folder, notes = written(run, "fid", tmp_path / "out")
    assert names(folder) == [f"0000{index}-{seed}.png" for index in range(3) for seed in (0, 1_000_000)]
    assert names(folder) == names(tmp_path / "out" / "pictures" / "full" / "100pct")
    assert (tmp_path / "out" / "prompts.txt").read_text().splitlines() == [subject.text for subject in SUBJECTS]
    assert notes == []


def test_npz(run: RunFolder, tmp_path: Path) -> None:
    folder, _ = written(run, "npz", tmp_path / "out")
    with np.load(folder.with_name("20pct.npz")) as archive:
        assert archive.files == ["arr_0"]
        array = archive["arr_0"]
    assert (array.shape, array.dtype) == ((6, 64, 64, 3), np.uint8)
    assert np.array_equal(array[3], pixels(run.path / "pictures" / "random" / "20pct" / "00001-1000000.png"))
    assert (tmp_path / "out" / "pictures" / "full" / "100pct.npz").exists()


def test_prompts_alone(tmp_path: Path) -> None:
    for layout in ("geneval", "dpg", "hpsv2", "fid", "npz"):
        export(SUBJECTS, [], layout, tmp_path / layout)
        assert not (tmp_path / layout / "pictures").exists()
        assert names(tmp_path / layout)


def test_what_cannot_be_exported(run: RunFolder, pipeline: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no layout 'zip'"):
        export(SUBJECTS, [], "zip", tmp_path / "out")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("x")
    with pytest.raises(InvalidInput, match="exists already"):
        export(SUBJECTS, [], "fid", tmp_path / "there")
    with pytest.raises(InvalidInput, match="1 of 1 prompts have no style"):
        export([Subject("a")], [], "hpsv2", tmp_path / "out")
    sparse = evaluate(pipeline, request_of("random", "20%", sheet=1), tmp_path / "run")
    with pytest.raises(InvalidInput, match="2 of 3 pictures of random at 20% were not kept.*--save-pictures"):
        export(sparse.info.subjects, galleries(sparse), "fid", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "there"]
