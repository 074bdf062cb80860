"""``scalekv report``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evaluation.report_runs import made_up_run, only
from scalekv.evaluation.report import style

pytest.importorskip("matplotlib")


@pytest.fixture
def results(folder: Path) -> Path:
    return made_up_run(folder / "run").path


def test_a_page_and_its_figures(run: Callable, folder: Path, results: Path) -> None:
    result = run("report", "run")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "run/report.html  3 methods, 3 prompts; 6 figures as PNG beside it\n"
    assert len(list(results.glob("report-*.png"))) == 6
    assert run("report", "run", "--quiet").output == ""
    assert list(folder.iterdir()) == [results]


def test_json_contract(answer: Callable, results: Path) -> None:
    found = answer("report", "run", "--out", "page.html")
    assert found["page"] == "page.html"
    assert all(Path(file).is_file() for file in found["figures"])
    assert (found["methods"], found["budgets"], found["prompts"], found["missing"]) == (
        ["scalekv", "sliding_window", "random"],
        ["60%", "30%"],
        3,
        [],
    )


def test_an_unfinished_run_says_so(run: Callable, folder: Path) -> None:
    made_up_run(folder / "run", change=only("full"))
    result = run("report", "run")
    assert result.exit_code == 0
    assert "The run is not finished: 9 of 21 results are there" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere holds no run of 'scalekv evaluate'"),
        (["page.txt"], "page.txt holds no run of 'scalekv evaluate'"),
        (["broken"], "run.json is damaged"),
        (["other"], "was not written by 'scalekv evaluate'"),
        (["empty"], "has no results yet"),
        (["run", "--out", "page.txt"], "expected a file name that ends in .html"),
        (["run", "--out", "foreign.html"], "is no report of ours"),
        (["run", "--out", "no/page.html"], "there is no folder"),
        (["run", "--out", "taken.html"], "taken-held.png exists, and a figure would replace it"),
        ([], "Missing argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused(run: Callable, folder: Path, results: Path, words: list[str], message: str) -> None:
    made_up_run(folder / "empty", change=lambda record: None)
    for name, text in (("broken", "{"), ("other", "{}")):
        (folder / name).mkdir()
        (folder / name / "run.json").write_text(text)
    for name in ("page.txt", "foreign.html", "taken-held.png"):
        (folder / name).write_text("mine")
    before = sorted(folder.rglob("*"))
    result = run("report", *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert sorted(folder.rglob("*")) == before
    assert (folder / "foreign.html").read_text() == (folder / "taken-held.png").read_text() == "mine"


def test_without_matplotlib(run: Callable, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "find_spec", lambda name: None)
    result = run("report", "run")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "pip install 'scalekv[plot]'" in result.stderr
