"""``scalekv evaluate`` and ``scalekv export``."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.helpers import SIDES, small
from scalekv.cli import evaluating
from scalekv.evaluation import RunFolder
from scalekv.pipelines import tiny_var_pipeline

EVALUATE = ("evaluate", "--policies", "random,sliding_window", "--budgets", "30%", "--batch", "2", "--out", "run")


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    var = tiny_var_pipeline(sides=(1, 2, 3), num_classes=20)
    var.set_progress_bar_config(disable=True)
    return {"tiny-random": small(SIDES), "tiny-random-var": var}


@pytest.fixture(autouse=True)
def _prompts_and_models(folder: Path, monkeypatch: pytest.MonkeyPatch, models: dict[str, Any]) -> None:
    (folder / "p.txt").write_text("a cat\n\na dog\na bird\n", encoding="utf-8")
    monkeypatch.setattr(evaluating, "open_model", lambda name, *_: models[name])
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_a_run_and_its_table(run: Callable, folder: Path) -> None:
    result = run(*EVALUATE, "--prompts", "p.txt")
    assert result.exit_code == 0, result.stderr
    table = result.stdout.splitlines()
    assert table[0].split() == ["method", "budget", "kept", "PSNR", "dB", "SSIM", "equal"]
    assert [line.split()[:2] for line in table[1:4]] == [["full", "100%"], ["random", "30%"], ["sliding_window", "30%"]]
    assert "identical" in table[1]
    assert table[-1].startswith("run/results.csv: 9 results of 3 prompts, bytes of 2 at once")
    assert max(map(len, table[:4])) < 80
    assert "random weights" in result.stderr
    assert "3 methods and budgets, 3 pictures of each." in result.stderr
    assert len(list(csv.DictReader((folder / "run" / "results.csv").open()))) == 9
    assert "| random | 30% |" in (folder / "run" / "summary.md").read_text()
    assert json.loads((folder / "run" / "run.json").read_text())["commands"] == [
        f"scalekv {' '.join(EVALUATE)} --prompts p.txt"
    ]


def test_json_contract(answer: Callable) -> None:
    found = answer(*EVALUATE, "--prompts", "p.txt", "--limit", "2")
    assert (found["run"], found["results"]) == ("run", 6)
    full, random, _ = found["rows"]
    assert (full["label"], full["metrics"]["identical"]["mean"]) == ("full", 1)
    assert random["metrics"]["psnr"]["low"] <= random["metrics"]["psnr"]["mean"] <= random["metrics"]["psnr"]["high"]
    assert random["figures"]["kept_bytes"] <= random["figures"]["limit_bytes"]


def test_quiet_prints_nothing(run: Callable) -> None:
    result = run(*EVALUATE, "--prompts", "p.txt", "--limit", "1", "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_ctrl_c_leaves_a_run_that_goes_on(run: Callable, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []

    def interrupted(self: object, done: int, total: int, what: str) -> None:
        told.append(done)
        if len(told) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(evaluating._Told, "__call__", interrupted)
        result = run(*EVALUATE, "--prompts", "p.txt")
    assert result.exit_code == 130
    assert "run holds all results so far; the same command goes on from here." in result.stderr
    before = (folder / "run" / "results-0.jsonl").read_bytes()
    assert before.count(b"\n") == 4
    assert run(*EVALUATE, "--prompts", "p.txt").exit_code == 0
    after = (folder / "run" / "results-0.jsonl").read_bytes()
    assert after.startswith(before)
    assert after.count(b"\n") == 9


def test_two_processes(run: Callable, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = []
    for rank in ("1", "0"):
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}.items():
            monkeypatch.setenv(name, value)
        outputs.append(run(*EVALUATE, "--prompts", "p.txt"))
    assert [result.exit_code for result in outputs] == [0, 0]
    assert outputs[0].output == ""
    assert "in 2 processes" in outputs[1].stderr
    assert "9 results of 3 prompts" in outputs[1].stdout
    assert len(RunFolder.open(folder / "run").records()) == 9


def test_the_first_of_two_processes_says_that_others_go_on(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = run(*EVALUATE, "--prompts", "p.txt")
    assert result.exit_code == 0
    assert "others still have 3 pictures to draw" in result.stderr
    assert result.stdout == ""


def test_progress_is_told_in_lines_without_a_terminal(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating, "LINE_SECONDS", 0.0)
    assert "2 of 9 pictures, 0:00:" in run(*EVALUATE, "--prompts", "p.txt").stderr


def test_settings_strict_and_what_does_not_fit(answer: Callable) -> None:
    words = ("--policies", "scalekv:pooling=max,random", "--budgets", "2MiB,0.1%", "--strict")
    found = answer(*EVALUATE, *words, "--prompts", "p.txt", "--limit", "1")
    labels = {row["label"]: row for row in found["rows"] if row["budget"] == "2 MiB"}
    assert labels.keys() == {"scalekv:pooling=max,strict=true", "random:strict=true"}
    assert all(row["figures"]["peak_bytes"] <= row["figures"]["limit_bytes"] for row in labels.values())
    assert ["strict budget" in row["infeasible"] for row in found["rows"] if row["budget"] == "0.1%"] == [True] * 2


def test_metrics_of_ones_own(answer: Callable, folder: Path) -> None:
    (folder / "mine.py").write_text("def words(picture, reference, prompt):\n    return len(prompt.split())\n")
    found = answer(*EVALUATE, "--prompts", "p.txt", "--metric", "mine.py:words")
    assert found["rows"][1]["metrics"]["words"]["mean"] == 2


def test_classes_and_their_archive(run: Callable, folder: Path) -> None:
    words = ("--classes", "3,5-6", "--per-class", "2", "--npz", "npz")
    result = run(*EVALUATE, *words)
    assert result.exit_code == 0, result.stderr
    assert "18 results of 6 prompts" in result.stdout
    for name in ("full/100pct", "random/30pct", "sliding_window/30pct"):
        with np.load(folder / "npz" / "pictures" / f"{name}.npz") as archive:
            assert archive["arr_0"].shape == (6, 48, 48, 3)


def test_classes_by_name(answer: Callable, folder: Path, monkeypatch: pytest.MonkeyPatch, models: Any) -> None:
    names = tuple(f"animal {index}, beast {index}" for index in range(20))
    monkeypatch.setattr(models["tiny-random-var"], "class_names", names)
    words = ("--policies", "random", "--classes")
    assert answer(*EVALUATE, *words, "3, Animal 7,beast 9, 11-12")["results"] == 10
    drawn = [one.text for one in RunFolder.open(folder / "run").info.subjects]
    assert drawn == ["3", "7", "9", "11", "12"]
    assert answer(*EVALUATE, *words, "3,7,9,11-12")["results"] == 10  # nothing new


def test_export(run: Callable, answer: Callable, folder: Path) -> None:
    assert run(*EVALUATE, "--prompts", "p.txt", "--save-pictures", "--quiet").exit_code == 0
    found = answer("export", "run", "out", "--layout", "fid", "--policy", "random")
    assert found["pictures"] == ["out/pictures/full/100pct", "out/pictures/random/30pct"]
    assert len(list((folder / "out" / "pictures" / "random" / "30pct").iterdir())) == 3
    result = run("export", "run", "sheets", "--layout", "dpg")
    assert "sheets: 3 prompts, 9 pictures of 3 methods and budgets" in result.stdout
    assert "--pic-num 1" in result.stderr
    assert run("export", "p.txt", "list", "--layout", "geneval").exit_code == 0
    assert (folder / "list" / "evaluation_metadata.jsonl").read_text().count("\n") == 3


BAD = {
    "no policy": (["--policies", "nothing"], "Unknown policy 'nothing'"),
    "a setting": (["--policies", "random:colour=red"], "does not take these settings"),
    "a budget": (["--budgets", "10"], "Cannot read the budget '10'"),
    "no file": (["--prompts", "none.txt"], "There is no file or folder 'none.txt'"),
    "an empty file": (["--prompts", "empty.txt"], "empty.txt has no prompts"),
    "no prompts at all": (["--prompts", "0"], "at least 1 prompt"),
    "limit of scenes": (["--prompts", "scenes", "--limit", "3"], "--limit is for files"),
    "limit": (["--limit", "0"], "--limit is 0"),
    "batch": (["--batch", "0"], "--batch is 0; expected a whole number from 1"),
    "seeds": (["--seeds", "0"], "--seeds is 0"),
    "seed": (["--seed", "-1"], "--seed is -1"),
    "sheet": (["--sheet", "-1"], "--sheet is -1"),
    "both": (["--classes", "3"], "Give --prompts or --classes, got both"),
    "a class model": (["--model", "tiny-random-var"], "write --classes 207"),
    "a metric": (["--metric", "beauty"], "There is no metric 'beauty'"),
    "a scorer": (["--metric", "none:f"], "There is no module none"),
    "lpips": (["--metric", "lpips"], "LPIPS needs torchvision, which is not installed"),
    "fid": (["--metric", "fid"], "FID needs torch_fidelity, which is not installed"),
    "another folder": (["--out", "."], "is no run of 'scalekv evaluate'"),
    "a file": (["--out", "p.txt"], "is no run of 'scalekv evaluate'"),
    "archives": (["--npz", "full"], "full exists already; choose another --npz."),
    "archives in a file": (["--npz", "p.txt"], "choose a folder for --npz."),
    "archives nowhere": (["--npz", "a/b"], "there is no folder"),
    "no model": (["--model", "./none"], "There is no model folder"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_sentence(run: Callable, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalekv.evaluation.metrics.find_spec", lambda name: None)
    (folder / "empty.txt").write_text("\n")
    (folder / "full").mkdir()
    (folder / "full" / "x").write_text("x")
    before = sorted(folder.rglob("*"))
    words, said = BAD[kind]
    result = run(*EVALUATE, "--prompts", "p.txt", *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert sorted(folder.rglob("*")) == before


def test_only_classes_for_models_that_draw_classes(run: Callable) -> None:
    result = run(*EVALUATE, "--classes", "25")
    assert result.exit_code == 2
    assert "Class 25 does not exist; this model has classes 0 to 19" in result.stderr


def test_another_setting_is_named(run: Callable) -> None:
    assert run(*EVALUATE, "--prompts", "p.txt", "--limit", "1").exit_code == 0
    result = run(*EVALUATE, "--prompts", "p.txt", "--limit", "1", "--guidance", "2")
    assert result.exit_code == 2
    assert "generation.guidance_scale = its default, not 2.0" in result.stderr


def test_bad_exports(run: Callable, folder: Path) -> None:
    assert run(*EVALUATE, "--prompts", "p.txt", "--sheet", "1", "--quiet").exit_code == 0
    (folder / "full").mkdir()
    (folder / "full" / "x").write_text("x")
    for words, said in (
        (("run", "out", "--layout", "zip"), "There is no layout 'zip'; choose one of geneval, dpg, hpsv2, fid, npz."),
        (("run", "full", "--layout", "fid"), "full exists already"),
        (("run", "out", "--layout", "fid"), "pictures of random at 30% were not kept"),
        (("run", "out", "--layout", "fid", "--policy", "scalekv"), "run has no results of scalekv"),
        (("run", "out", "--layout", "hpsv2"), "have no style"),
        (("run", "a/b/out", "--layout", "fid"), "there is no folder"),
        (("none", "out", "--layout", "fid"), "There is no file or folder 'none'"),
    ):
        result = run("export", *words)
        assert (result.exit_code, said in result.stderr) == (2, True), result.stderr
    assert not (folder / "out").exists()
