"""The commands with VAR models: classes instead of prompts."""

from __future__ import annotations

import json

import pytest
import torch

from scalekv.models.var.layout import TRAINING_KEYS
from scalekv.pipelines import tiny_var_pipeline

SIDES = (1, 2, 3, 4)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """Official files of a tiny VAR model."""
    folder, pipeline = tmp_path_factory.mktemp("official"), tiny_var_pipeline(sides=SIDES)
    levels = torch.cat([torch.full((side * side,), step) for step, side in enumerate(SIDES)])[None]
    torch.save({**pipeline.transformer.state_dict(), TRAINING_KEYS[0]: levels}, folder / "t.pth")
    torch.save(pipeline.vae.state_dict(), folder / "v.pth")
    return folder


@pytest.fixture(scope="module")
def model(official, tmp_path_factory):
    from scalekv.pipelines import convert

    return str(convert(official / "t.pth", official / "v.pth", tmp_path_factory.mktemp("models") / "var"))


def test_generate_from_classes(answer, folder, model):
    words = ("--model", model, "--class", "golden retriever", "--class", "207", "--seed", "3")
    found = answer("generate", *words, "--out", f"{folder}/{{prompt}}-{{seed}}.png")
    assert found["classes"] == [207, 207]
    assert [path.rsplit("/", 1)[-1] for path in found["images"]] == ["golden-retriever-3.png", "207-4.png"]
    assert (found["width"], found["top_k"], found["temperature"]) == (64, 0, None)
    assert found["cache"]["kept_bytes"] <= 0.1 * found["cache"]["lossless_bytes"]


def test_convert_and_info(answer, folder, official):
    found = answer("convert", f"{official}/t.pth", "--vae", f"{official}/v.pth", "--out", "made")
    assert found["kind"] == "pipeline folder"
    assert answer("info", "made")["components"]["transformer"] == "VARTransformer"
    assert answer("info", f"{official}/t.pth")["kind"] == "var transformer"
    assert answer("info", f"{official}/v.pth")["config"]["shared_phis"] == 4


def test_plan_and_calibrate(answer, folder, model):
    (folder / "classes.txt").write_text("207\ntabby cat\n")
    answer("calibrate", "classes.txt", "--model", model, "--out", "p.json", "--queries", "4")
    assert json.loads((folder / "p.json").read_text())["layers"] == 4
    words = ("plan", "--model", model, "--dtype", "float32")
    plain, single = answer(*words), answer(*words, "--guidance", "0")
    assert plain["schedule"] == "1x1-2x2-3x3-4x4"
    assert plain["cache"]["lossless_bytes"] == 2 * single["cache"]["lossless_bytes"]
    assert answer(*words, "--guidance", "1")["rows"] == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a fox", "--class", "1"], "got both"),
        ([], "got neither"),
        (["a fox", "--model", "tiny-random-var"], "draws classes, not prompts"),
        (["--class", "1", "--negative", "fog"], "--negative is 'fog', which VAR models do not have"),
        (["--class", "1", "--size", "1M"], "--size is '1M'"),
        (["--class", "1000"], "Class 1000 does not exist"),
        (["--class", "gldn retriever"], "near are golden retriever (207)"),
        (["--class", ""], "is empty"),
    ],
)
def test_what_cannot_be_drawn(run, words, message):
    result = run("generate", *words)
    assert result.exit_code == 2
    assert message in result.stderr


def test_classes_for_a_model_of_prompts(run, folder):
    (folder / "m").mkdir()
    (folder / "m" / "model_index.json").write_text('{"_class_name": "InfinityPipeline"}')
    result = run("generate", "--class", "1", "--model", str(folder / "m"))
    assert result.exit_code == 2
    assert "draws prompts, not classes" in result.stderr
