"""``scalekv compare``: a sheet of methods and budgets."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from scalekv.cli import compare as compare_command
from scalekv.pipelines import tiny_pipeline


@pytest.fixture(scope="module")
def tiny():
    pipeline = tiny_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(autouse=True)
def _one_tiny(monkeypatch, tiny):
    """Building the network takes longer than drawing with it."""
    monkeypatch.setattr(compare_command, "open_model", lambda *_: tiny)


def test_a_sheet_of_methods_and_budgets(answer, folder):
    words = ("--policies", "random,sliding-window", "--budgets", "100%,10%", "--seed", "3", "--out", "a.png")
    found = answer("compare", "a red <b>ball</b>", *words, "--pictures", "single")
    entries = {(entry["method"], entry["budget"]): entry for entry in found["entries"]}
    assert list(entries) == [
        ("random", "100%"),
        ("random", "10%"),
        ("sliding_window", "100%"),
        ("sliding_window", "10%"),
    ]
    assert [entry["identical"] for entry in entries.values()] == [True, False, True, False]
    assert 5 < entries["random", "10%"]["psnr_db"] < 80
    assert entries["random", "10%"]["cache"]["kept_bytes"] <= 0.1 * found["full_cache"]["kept_bytes"]
    sheet = Image.open(folder / "a.png")
    assert sheet.width > 2 * 256
    assert sheet.height > 3 * 256  # the full cache above two methods
    assert json.loads(sheet.text["scalekv"])["method"] == "random, sliding_window"
    full, random = (Image.open(folder / path) for path in (found["full_path"], entries["random", "100%"]["path"]))
    assert full.tobytes() == random.tobytes()
    assert len(list((folder / "single").iterdir())) == 5


def test_methods_with_settings_of_their_own(answer, folder):
    words = ("--policies", "snapkv,snapkv:queries=all,pooling=max,bytewise", "--budgets", "10%", "--pictures", "one")
    found = answer("compare", "a", *words, "--out", "a.png")
    told = [(entry["method"], entry["policy_settings"]["queries"]) for entry in found["entries"]]
    assert told == [("snapkv", "uniform:32"), ("snapkv", "all"), ("bytewise", "uniform:64")]
    names = {path.name for path in (folder / "one").iterdir()}
    assert names >= {"snapkv-10percent.png", "snapkv+pooling=max,queries=all-10percent.png", "bytewise-10percent.png"}
    words = json.loads(Image.open(folder / "a.png").text["scalekv"])["method"]
    assert words == "snapkv, snapkv:pooling=max,queries=all, bytewise in int6/int4"


def test_what_cannot_be_planned_leaves_its_place_empty(run, answer, folder):
    words = ("compare", "a", "--policies", "full,random", "--budgets", "10%", "--out", "a.png")
    result = run(*words)
    assert result.exit_code == 0
    assert "full at 10% is not drawn: No full plan fits" in result.stderr
    assert "no plan" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    refused, drawn = answer(*words, "--pictures", "single")["entries"]
    assert (refused["path"], refused["psnr_db"], refused["cache"]) == (None, None, None)
    assert drawn["error"] is None
    assert sorted(path.name for path in (folder / "single").iterdir()) == ["full.png", "random-10percent.png"]


def test_names_of_our_own_making(run, folder):
    words = ("compare", "A fox", "--policies", "random", "--budgets", "10%", "--seed", "4")
    assert [run(*words).exit_code for _ in range(2)] == [0, 0]
    assert sorted(path.name for path in folder.iterdir()) == ["comparison-a-fox-4-2.png", "comparison-a-fox-4.png"]


def test_classes(answer, monkeypatch, folder):
    from scalekv.pipelines import tiny_var_pipeline

    pipeline = tiny_var_pipeline(sides=(1, 2, 3, 4))
    monkeypatch.setattr(compare_command, "open_model", lambda *_: pipeline)
    words = ("--policies", "random", "--budgets", "20%", "--out", "a.png")
    found = answer("compare", "--class", "golden retriever", *words)
    assert (found["model"], found["width"]) == ("tiny-random-var", 64)
    assert Image.open(folder / "a.png").width > 192  # small pictures are enlarged until their text has room


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "got neither"),
        (["a", "--class", "1"], "got both"),
        (["a", "--policies", "random,magic"], "'magic'"),
        (["a", "--policies", "snapkv:queries"], "Cannot read the policy 'snapkv:queries'"),
        (["a", "--policies", "snapkv:budget=4%"], "Leave the budget out"),
        (["a", "--policies", "random,,full"], "--policies is 'random,,full', with an empty entry"),
        (["a", "--budgets", ""], "--budgets is ''"),
        (["a", "--budgets", "10%,11"], "'11'"),
        (["a", "--budgets", "10%,0.1"], "at 10% is listed twice"),
        (["a", "--policies", "full", "--budgets", "10%,4%"], "None of the methods can be planned"),
        (["a", "--out", "a.txt"], "a.txt"),
        (["a", "--pictures", "taken"], "taken exists already; choose another --pictures."),
        (["a", "--pictures", "no/where"], "no folder"),
        (["--class", "1", "--negative", "fog"], "--negative is 'fog'"),
    ],
)
def test_bad_input(run, folder, words, message):
    (folder / "taken").mkdir()
    (folder / "taken" / "mine.txt").write_text("mine")
    result = run("compare", *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert [path.name for path in folder.rglob("*")] == ["taken", "mine.txt"]
