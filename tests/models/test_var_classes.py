"""ImageNet classes by number and by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scalekv.errors import InvalidInput
from scalekv.models.var.classes import class_id, imagenet_names, name_of, read_class_names

NAMES = imagenet_names()


def test_names_load_without_torch() -> None:
    code = "import sys, scalekv.models.var.classes as c; c.imagenet_names(); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("207", 207),
        (" 0 ", 0),
        ("-1", -1),
        ("golden retriever", 207),
        ("Golden_Retriever", 207),
        ("tench", 0),
        ("Tinca tinca", 0),
        ("tabby cat", 281),
        ("toilet paper", 999),
        ("great white shark, white shark", 2),
    ],
)
def test_texts(text: str, number: int) -> None:
    assert class_id(text, NAMES, 1000) == number


@pytest.mark.parametrize("number", range(0, 1000, 37))
def test_shown_names_come_back(number: int) -> None:
    shown = name_of(number, NAMES)
    same = [
        index for index, entry in enumerate(NAMES) if shown.lower() in [one.strip().lower() for one in entry.split(",")]
    ]
    assert number in same
    if len(same) == 1:
        assert class_id(shown, NAMES, 1000) == number


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crane", r"Several classes are called 'crane': 134 \(crane\), 517 \(crane\)"),
        ("retriever", r"No class is called 'retriever'; near are .*golden retriever \(207\)"),
        ("goldn retriever", r"near are golden retriever \(207\)"),
        ("foxx", r"near are .*red fox \(277\), kit fox \(278\).* a number from 0 to 999"),
        ("great white shark, tench", "No class is called 'great white shark, tench'"),
        ("qwertyuiop", "No class is called 'qwertyuiop'; give another name, or a number from 0 to 999"),
        ("1000", "Class 1000 does not exist; this model has classes 0 to 999, and -1 for none"),
        ("-2", "Class -2 does not exist"),
    ],
)
def test_what_is_no_class(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        class_id(text, NAMES, 1000)


def test_models_without_names() -> None:
    assert class_id("3", None, 10) == 3
    assert (name_of(3, None), name_of(-1, None)) == ("class 3", "no class")
    with pytest.raises(InvalidInput, match="has no class names; give a number from 0 to 9"):
        class_id("fox", None, 10)


def test_names_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("fox\nowl, barn owl\n")
    (tmp_path / "a.json").write_text(json.dumps(["fox", "owl"]))
    assert class_id("Barn Owl", read_class_names(tmp_path / "a.txt", 2), 2) == 1
    assert read_class_names(tmp_path / "a.json", 2) == ("fox", "owl")
    for name, message in (("a.txt", "must name 3 classes .* found 2"), ("b.txt", "Cannot read the class names")):
        with pytest.raises(InvalidInput, match=message):
            read_class_names(tmp_path / name, 3)
