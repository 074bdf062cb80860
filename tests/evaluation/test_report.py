"""Pages of runs: everything shown, nothing from elsewhere, and what an unfinished run lacks."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from evaluation.report_runs import GEOMETRY, HOSTILE, made_up_run, only, profile, sources
from scalekv.errors import InvalidInput
from scalekv.evaluation import RunFolder
from scalekv.evaluation.report.contents import Contents
from scalekv.evaluation.report.fronts import pareto_front

pytest.importorskip("matplotlib")

from scalekv.evaluation.report.page import write_report
from scalekv.evaluation.report.plots import spread

VOID = {"meta", "img", "wbr", "br", "path"}
POLICIES = "scalekv,hack,heatkv,random,sliding_window:strict=true"


class Outline(HTMLParser):
    """Fails on elements that are not closed in order; collects headings, texts and cells."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice"
        self.tags.append(tag)
        if tag not in VOID - {"path"}:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data


def outline(page: Path) -> Outline:
    found = Outline()
    found.feed(page.read_text(encoding="utf-8"))
    found.close()
    assert found.open == []
    return found


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Path, list[Path]]:
    run = made_up_run(tmp_path_factory.mktemp("report") / "run", POLICIES, profile=profile())
    page = run.path / "report.html"
    return run, page, write_report(run, page)[1]


def test_all_sections_figures_and_methods(shown: tuple[RunFolder, Path, list[Path]]) -> None:
    run, page, files = shown
    found = outline(page)
    assert found.texts["h2"] == [
        "Fidelity against bytes",
        "All results",
        "Equal bits per segment",
        "Pictures",
        "What is held where",
        "What attention looks at",
        "Memory over time",
    ]
    names = ["fidelity", "agreement", "pictures-0", "pictures-1", "held", "heads", "attention", "memory"]
    assert [file.name for file in files] == [f"report-{name}.png" for name in names]
    rows = found.texts["th"]
    assert [sum(row.strip().removesuffix("◆").strip() == label for row in rows) for label in POLICIES.split(",")] == [
        2
    ] * 5
    assert found.tags.count("img") == len(files)
    assert "aside" not in found.tags, "a complete run lacks nothing"
    for file in files:
        assert min(Image.open(file).size) > 200
    assert sorted(one.name for one in run.path.iterdir() if one.name.startswith(".")) == []


def test_nothing_comes_from_elsewhere(shown: tuple[RunFolder, Path, list[Path]]) -> None:
    text = shown[1].read_text(encoding="utf-8")
    assert all(source.startswith(("data:image/", "#")) for source in sources(text))
    assert not re.search(r"https?:|<script|<link|<iframe", text)


def test_a_prompt_stays_text(shown: tuple[RunFolder, Path, list[Path]]) -> None:
    found = outline(shown[1])
    assert HOSTILE in found.texts["figcaption"]
    assert "script" not in found.tags


def test_intervals_and_the_best_of_each_column(shown: tuple[RunFolder, Path, list[Path]]) -> None:
    text = shown[1].read_text(encoding="utf-8")
    assert re.search(r"\d+\.\d\d <small>\d+\.\d\d–\d+\.\d\d</small>", text)
    assert 'class="best"' in text
    assert text.count("◆") > 2
    assert "dB" in outline(shown[1]).texts["li"][0]


def test_the_same_run_gives_the_same_page(shown: tuple[RunFolder, Path, list[Path]]) -> None:
    run, page, files = shown
    before = [file.read_bytes() for file in (page, *files)]
    write_report(run, page)
    assert [file.read_bytes() for file in (page, *files)] == before


def test_a_run_that_was_killed_says_what_it_lacks(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run", change=only("full"))
    with (run.path / "results-0.jsonl").open("a") as stream:
        stream.write('{"key": "cut of')
    contents, _ = write_report(run, tmp_path / "a.html")
    notices = " ".join(outline(tmp_path / "a.html").texts["aside"])
    assert "The run is not finished: 9 of 21 results are there (3 prompts)." in notices
    assert "Methods have results of different prompts" in notices
    assert "the run had no profile" in notices
    assert contents.missing


def test_methods_that_have_not_begun_are_named(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run", change=lambda one: one if one["label"] != "random" else None)
    assert "Nothing yet of random at 60%, random at 30%." in Contents.of(run).missing


def test_budgets_that_are_not_met_and_pictures_that_are_the_same(tmp_path: Path) -> None:
    def same(record: dict[str, Any]) -> dict[str, Any]:
        if record["label"] == "sliding_window" and record["budget"] == "60%":
            return {**record, "identical": True, "psnr": None, "mse": 0.0}
        return record

    run = made_up_run(tmp_path / "run", "sliding_window,random", "60%,0.1%", change=same)
    contents, files = write_report(run, tmp_path / "a.html")
    found = outline(tmp_path / "a.html")
    assert sum("the smallest feasible" in cell for cell in found.texts["td"]) == 2
    assert "identical" in found.texts["td"]
    assert any(file.name == "a-fidelity.png" for file in files), "the other method has a place in the plot"
    assert contents.mapped_budget == "60%"


def test_nothing_but_identical_pictures(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run", change=lambda one: {**one, "identical": True, "psnr": None})
    files = write_report(run, tmp_path / "a.html")[1]
    assert "a-fidelity.png" not in [file.name for file in files]
    assert outline(tmp_path / "a.html").texts["td"].count("identical") == 6


def test_one_prompt_and_one_method(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run", "random", "30%", ("a cat",))
    write_report(run, tmp_path / "a.html")
    assert "random" in "".join(outline(tmp_path / "a.html").texts["th"])


def test_a_run_that_does_not_tell_the_shape_of_its_model(tmp_path: Path) -> None:
    run = made_up_run(tmp_path / "run")
    del run.info.details["geometry"]
    files = write_report(run, tmp_path / "a.html")[1]
    assert "memory" not in " ".join(file.name for file in files)
    assert "does not tell the model's shape" in outline(tmp_path / "a.html").texts["aside"][0]


def test_planned_and_measured_memory_are_of_the_batch_of_the_run(tmp_path: Path) -> None:
    contents = Contents.of(made_up_run(tmp_path / "run", profile=profile()))
    assert contents.geometry == GEOMETRY
    for label, plan in contents.plans.items():
        assert contents.measured[label]["peak_bytes"] == plan.peak_bytes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: None, "has no results yet"),
        (lambda record: {"key": record["key"]}, "Line 1 of .*results-0.jsonl is damaged"),
    ],
)
def test_runs_that_cannot_be_shown(tmp_path: Path, change: Any, message: str) -> None:
    run = made_up_run(tmp_path / "run", change=change)
    with pytest.raises(InvalidInput, match=message):
        write_report(run, tmp_path / "a.html")
    assert [one.name for one in tmp_path.iterdir()] == ["run"]


def test_pictures_of_others_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a-memory.png").write_bytes(b"mine")
    with pytest.raises(InvalidInput, match="a-memory.png exists, and a figure would replace it"):
        write_report(made_up_run(tmp_path / "run"), tmp_path / "a.html")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a-memory.png", "run"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, written, write = made_up_run(tmp_path / "run"), [], Path.write_bytes

    def failing(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return write(path, content)

    with monkeypatch.context() as patched, pytest.raises(InvalidInput, match="No space left"):
        patched.setattr(Path, "write_bytes", failing)
        write_report(run, tmp_path / "a.html")
    assert [one.name for one in tmp_path.iterdir()] == ["run"]


points = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=12)


@given(points)
def test_the_front_is_what_nothing_beats(found: list[tuple[int, int]]) -> None:
    def beaten(one: tuple[int, int]) -> bool:
        return any(other != one and other[0] <= one[0] and other[1] >= one[1] for other in found)

    assert sorted(pareto_front(found)) == [index for index, one in enumerate(found) if not beaten(one)]


@given(st.lists(st.tuples(st.floats(-0.5, 1.5), st.floats(0.01, 0.3)), min_size=1, max_size=12))
def test_names_beside_a_plot_do_not_overlap(wanted: list[tuple[float, float]]) -> None:
    places = spread([height for height, _ in wanted], [size for _, size in wanted])
    shrink = min(1.0, 1.0 / sum(size for _, size in wanted))
    edges = sorted((place, size * shrink / 2) for place, (_, size) in zip(places, wanted, strict=True))
    assert edges[0][0] - edges[0][1] >= -1e-9
    assert edges[-1][0] + edges[-1][1] <= 1 + 1e-9
    for (low, half), (high, other) in pairwise(edges):
        assert high - low >= half + other - 1e-9
