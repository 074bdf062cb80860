"""Prompts from the files of the usual benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scalekv.errors import InvalidInput
from scalekv.evaluation import Subject, read_subjects, scenes_subjects
from scalekv.evaluation.following import prompt_of
from scalekv.evaluation.subjects import class_list, class_subjects
from scalekv.scenes.prompts import CATEGORIES, benchmark

GENEVAL = {"tag": "counting", "include": [{"class": "bird", "count": 2}], "prompt": "a photo of two birds"}


def test_geneval(tmp_path: Path) -> None:
    file = tmp_path / "evaluation_metadata.jsonl"
    file.write_text(json.dumps(GENEVAL) + "\n\n" + json.dumps({**GENEVAL, "prompt": "b"}) + "\n")
    first, second = read_subjects(file)
    assert first == Subject("a photo of two birds", "counting", details=GENEVAL)
    assert second.text == "b"


def test_dpg(tmp_path: Path) -> None:
    file = tmp_path / "dpg_bench.csv"
    file.write_text('item_id,text,question\nx1,"A ""red""\nball",is it?\nx1,"A ""red""\nball",red?\ny2,A cube,cube?\n')
    assert read_subjects(file) == (Subject('A "red"\nball', item="x1"), Subject("A cube", item="y2"))
    (tmp_path / "prompts").mkdir()
    for name, text in (("b", "second\n"), ("a", " first ")):
        (tmp_path / "prompts" / f"{name}.txt").write_text(text)
    assert read_subjects(tmp_path / "prompts") == (Subject("first", item="a"), Subject("second", item="b"))


def test_hpsv2(tmp_path: Path) -> None:
    for name in ("photo", "anime", "drawbench"):
        (tmp_path / f"{name}.json").write_text(json.dumps([f"{name} 0", f"{name} 1"]))
    found = read_subjects(tmp_path)
    assert [(one.text, one.category) for one in found] == [
        ("anime 0", "anime"),
        ("anime 1", "anime"),
        ("photo 0", "photo"),
        ("photo 1", "photo"),
    ]
    assert read_subjects(tmp_path / "photo.json") == found[2:]


def test_mjhq_and_coco(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps({"f1": {"category": "food", "prompt": "soup"}}))
    assert read_subjects(tmp_path / "m.json") == (Subject("soup", "food", "f1"),)
    captions = [(9, 100, "late"), (7, 20, "first"), (8, 20, "second")]
    entries = [{"id": number, "image_id": image, "caption": text} for number, image, text in captions]
    (tmp_path / "c.json").write_text(json.dumps({"images": [], "annotations": entries}))
    assert read_subjects(tmp_path / "c.json") == (Subject("first", item="20"), Subject("late", item="100"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b"{", "is no JSON"),
        ("a.json", b"3", "no prompts in a known form"),
        ("a.json", b"[]", "has no prompts"),
        ("a.json", b'[{"x": 1}]', "needs one of prompt, text, caption"),
        ("a.jsonl", b'{"prompt": "a"}\n{"pro', "is no JSON"),
        ("a.jsonl", b"\n", "has no prompts"),
        ("a.csv", b"name\nx\n", "has no prompt"),
        ("a.csv", b"\xff\xfe", "no UTF-8 text"),
        ("b.json", None, "Cannot read the prompts"),
        (".", None, "neither the prompts of DPG-Bench"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=said):
        read_subjects(tmp_path / name)


def test_the_built_in_prompts_are_the_benchmark() -> None:
    subjects = scenes_subjects()
    assert tuple(prompt_of(subject) for subject in subjects) == benchmark()
    stored = [Subject.from_dict(json.loads(json.dumps(subject.to_dict()))) for subject in subjects]
    assert tuple(prompt_of(subject) for subject in stored) == benchmark()
    assert prompt_of(Subject("a ball")) is None


@pytest.mark.parametrize("count", [1, 7, 10, 70])
def test_as_many_built_in_prompts_as_asked_for(count: int) -> None:
    subjects = scenes_subjects(count)
    assert len(subjects) == count
    sizes = [sum(one.category == category for one in subjects) for category in CATEGORIES]
    assert max(sizes) - min(sizes) <= 1
    assert {one.text for one in subjects} <= {one.text for one in scenes_subjects()}


def test_classes() -> None:
    assert class_list("0-2, 7") == [0, 1, 2, 7]
    assert class_list("all") is None
    assert [one.text for one in class_subjects([3, 5], 2, 10)] == ["3", "3", "5", "5"]
    assert len(class_subjects(None, 3, 10)) == 30
    assert class_list("3, tabby cat,T-shirt ,5-6") == [3, "tabby cat", "T-shirt", 5, 6]
    for text in ("", "3-1", "-1", "1,,2", "1.5", "tabby cat,"):
        with pytest.raises(InvalidInput, match="Cannot read the classes"):
            class_list(text)
    with pytest.raises(InvalidInput, match="classes 0 to 9"):
        class_subjects([10], 1, 10)
    with pytest.raises(InvalidInput, match="at least 1 picture"):
        class_subjects([1], 0, 10)
    with pytest.raises(InvalidInput, match="at least 1 prompt"):
        scenes_subjects(0)
