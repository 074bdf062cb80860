"""``--cache-dtype``: it reaches every command that draws, and is refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from scalekv.pipelines import tiny_var_pipeline

TYPE = ("--cache-dtype", "bf16")
COMMANDS = {
    "generate": (
        "generate",
        "--class",
        "207",
        "--seed",
        "1",
        "--budget",
        "50%",
        "--policy",
        "random",
        "--out",
        "a.png",
    ),
    "compare": ("compare", "--class", "207", "--seed", "1", "--policies", "random", "--budgets", "50%"),
    "evaluate": ("evaluate", "--classes", "207", "--policies", "random", "--budgets", "50%", "--out", "run"),
    "calibrate": ("calibrate", "classes.txt", "--queries", "4", "--out", "p.json"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("models") / "var"
    tiny_var_pipeline(sides=(1, 2, 3)).save_pretrained(place)
    return str(place)


def test_generate(answer: Callable, folder: Path, model: str) -> None:
    words = (*COMMANDS["generate"], "--model", model)
    wide, narrow = answer(*words), answer(*words, *TYPE)
    assert [(one["dtype"], one["cache_dtype"]) for one in (wide, narrow)] == [
        ("float32", "float32"),
        ("float32", "bfloat16"),
    ]
    assert wide["cache"]["lossless_bytes"] == 2 * narrow["cache"]["lossless_bytes"]
    assert json.loads(Image.open(folder / "a.png").text["scalekv"])["cache_dtype"] == "bfloat16"


def test_from_the_environment(answer: Callable, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALEKV_CACHE_DTYPE", "float16")
    assert answer(*COMMANDS["generate"], "--model", model)["cache_dtype"] == "float16"


def test_compare(run: Callable, model: str) -> None:
    result = run(*COMMANDS["compare"], "--model", model, *TYPE)
    assert result.exit_code == 0, result.stderr
    assert "float32 with a cache in bfloat16, seed 1" in result.stdout
    assert "float32, seed 1" in run(*COMMANDS["compare"], "--model", model).stdout


def test_evaluate_and_its_report(answer: Callable, folder: Path, model: str) -> None:
    words = (*COMMANDS["evaluate"], "--model", model)
    full = answer(*words, *TYPE)["rows"][0]
    settings = json.loads((folder / "run" / "run.json").read_text())["settings"]
    assert (settings["dtype"], settings["cache_dtype"]) == ("float32", "bfloat16")
    planned = answer("plan", "--model", model, "--batch", "1", "--dtype", "bfloat16", "--policy", "full")
    assert full["figures"]["kept_bytes"] == planned["cache"]["nominal_bytes"]
    answer("report", "run", "--out", "r.html")
    assert "(bfloat16) is 100 %" in (folder / "r.html").read_text()


def test_calibrate(answer: Callable, folder: Path, model: str) -> None:
    (folder / "classes.txt").write_text("207\n")
    details = answer(*COMMANDS["calibrate"], "--model", model, *TYPE)["details"]
    assert (details["dtype"], details["cache_dtype"]) == ("float32", "bfloat16")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("value", ["int8", "float64", ""])
def test_other_types_are_refused(run: Callable, folder: Path, model: str, command: str, value: str) -> None:
    (folder / "classes.txt").write_text("207\n")
    result = run(*COMMANDS[command], "--model", model, "--cache-dtype", value)
    assert result.exit_code == 2
    (error,) = (line for line in result.stderr.splitlines() if line.startswith("Error: "))
    assert error == f"Error: --cache-dtype is {value!r}; choose one of float32, bfloat16, float16."
    assert [file.name for file in folder.iterdir()] == ["classes.txt"]
