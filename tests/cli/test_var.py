"""The commands with VAR models: classes instead of prompts."""

from __future__ import annotations

import json

import pytest
import torch

from models.var_tiny import tiny_autoencoder, transformer_state
from scalekv.models.var.layout import TRAINING_KEYS
from scalekv.models.var.schedules import SIDES_256, SIDES_512
from scalekv.pipelines import tiny_var_pipeline

SIDES = (1, 2, 3, 4)


def refusals(stderr: str) -> int:
    """Sentences about what is wrong; warnings and notes are lines of their own."""
    assert "Traceback" not in stderr
    return sum(line.startswith("Error: ") for line in stderr.splitlines())


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


def test_convert_a_file_that_does_not_tell_all(answer, run, folder):
    """Neither the scales of its tokens nor, with plain attention, its heads."""
    state = transformer_state(depth=1, patch_nums=SIDES, width=64, num_heads=2, attn_l2_norm=False)
    torch.save({name: tensor for name, tensor in state.items() if name not in TRAINING_KEYS}, folder / "t.pth")
    torch.save(tiny_autoencoder(num_scales=len(SIDES)).state_dict(), folder / "v.pth")
    words = ("convert", "t.pth", "--vae", "v.pth", "--out", "made")
    assert "give patch_nums" in run(*words).stderr
    answer(*words, "--patch-nums", "1, 2,3,4", "--num-heads", "2")
    config = answer("info", "made")["config"]
    assert (config["patch_nums"], config["num_heads"]) == (list(SIDES), 2)


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
        (["--class", ""], "A class is empty"),
        (["--class", "1", "--top-k", "300"], "the vocabulary of 256, got 300"),
        (["--class", "1", "--model", "var-d30"], "download var_d30.pth and vae_ch160v4096z32.pth"),
        (["--class", "1", "--model", "nowhere"], "tiny-random or tiny-random-var"),
        (["--class", "1", "--profile", "infinity-2b"], "the model has 4 layers and 4 heads"),
        (["--class", "1", "--budget", "0.0001%"], "the smallest feasible one"),
    ],
)
def test_what_cannot_be_drawn(run, folder, words, message):
    result = run("generate", *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert refusals(result.stderr) == 1
    assert not list(folder.iterdir())


def test_classes_for_a_model_of_prompts(run, folder):
    (folder / "m").mkdir()
    (folder / "m" / "model_index.json").write_text('{"_class_name": "InfinityPipeline"}')
    result = run("generate", "--class", "1", "--model", str(folder / "m"))
    assert result.exit_code == 2
    assert "draws prompts, not classes" in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["calibrate", "no.txt", "--out", "p.json"], "No class is called 'foxx'; near are"),
        (["calibrate", "yes.txt", "--out", "p.json", "--size", "1M"], "draws one size only"),
        (["compare", "--class", "gldn retriever"], "near are golden retriever (207)"),
        (["compare", "a fox"], "draws classes, not prompts"),
        (["compare", "--class", "1", "--budgets", "0.001%"], "None of the methods can be planned"),
        (["evaluate", "--classes", "0-1000", "--out", "run"], "Class 1000 does not exist"),
        (["evaluate", "--classes", "3-1", "--out", "run"], "write numbers and names such as '0-9,207,tabby cat'"),
        (["evaluate", "--classes", "3,gldn retriever", "--out", "run"], "near are golden retriever (207)"),
        (["evaluate", "--classes", "1", "--per-class", "0", "--out", "run"], "--per-class is 0"),
        (["evaluate", "--classes", "1", "--top-k", "300", "--out", "run"], "the vocabulary of 256, got 300"),
        (["evaluate", "--prompts", "yes.txt", "--out", "run"], "draws classes, not prompts; write --classes 207"),
        (["plan", "--size", "1M"], "has no size '1M'"),
    ],
    ids=lambda words: " ".join(words[:4]) if isinstance(words, list) else "",
)
def test_what_other_commands_refuse(run, folder, model, words, message):
    (folder / "yes.txt").write_text("207\n")
    (folder / "no.txt").write_text("207\nfoxx\n")
    result = run(*words, "--model", model)
    assert result.exit_code == 2
    assert message in result.stderr
    assert refusals(result.stderr) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["no.txt", "yes.txt"]


@pytest.mark.parametrize(
    ("transformer", "vae", "options", "message"),
    [
        ("t", "t", [], "is a var transformer, expected a var vae"),
        ("v", "v", [], "is a var vae, expected a var transformer"),
        ("t", "v", ["--model", "var-d16"], "is not var-d16: it has layers 4, expected 16"),
        ("t", "v", ["--text-encoder", "t5"], "is a VAR model, which has no text encoder"),
        ("cut", "v", [], "is truncated or damaged"),
    ],
)
def test_files_that_are_not_converted(run, folder, official, transformer, vae, options, message):
    (official / "cut.pth").write_bytes((official / "t.pth").read_bytes()[:100_000])
    words = (f"{official}/{transformer}.pth", "--vae", f"{official}/{vae}.pth", "--out", "made", *options)
    result = run("convert", *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert refusals(result.stderr) == 1
    assert not list(folder.iterdir())


def test_profiles_of_different_classes(answer, folder, model):
    for name, classes in (("a", "207\n208\n"), ("b", "tench\nbanana\n")):
        (folder / "classes.txt").write_text(classes)
        answer("calibrate", "classes.txt", "--model", model, "--out", f"{name}.json", "--queries", "4")
    (pair,) = answer("stability", "a.json", "b.json")["pairs"]
    assert not pair["shared_pictures"]
    assert -1 <= pair["rank_correlations"]["asi"] <= 1


@pytest.mark.parametrize("size", [SIDES_256, SIDES_512], ids=["256", "512"])
@pytest.mark.parametrize("shared_aln", [False, True])
@pytest.mark.parametrize("attn_l2_norm", [False, True])
def test_every_kind_of_official_file(answer, folder, size, shared_aln, attn_l2_norm):
    """From a file in the published layout to a picture, and what info and plan say of it."""
    state = transformer_state(
        depth=1, patch_nums=size, width=64, num_heads=1, shared_aln=shared_aln, attn_l2_norm=attn_l2_norm
    )
    torch.save(state, folder / "t.pth")
    tokenizer = tiny_autoencoder(num_scales=10, channel_multipliers=(1, 1, 1, 1, 1))
    torch.save({"trainer": {"vae_local": tokenizer.state_dict()}}, folder / "v.pth")
    answer("convert", "t.pth", "--vae", "v.pth", "--out", "made")
    config = answer("info", "made")["config"]
    assert (config["shared_aln"], config["attn_l2_norm"], config["num_heads"]) == (shared_aln, attn_l2_norm, 1)
    drawn = answer("generate", "--class", "4", "--model", "made", "--budget", "40%", "--out", "a.png", "--seed", "1")
    assert drawn["width"] == drawn["height"] == 16 * size[-1]
    assert drawn["cache"]["kept_bytes"] == drawn["cache"]["nominal_bytes"]
    planned = answer("plan", "--model", "made", "--dtype", "float32", "--budget", "40%")
    assert planned["cache"]["peak_bytes"] == drawn["cache"]["measured_peak_bytes"]
