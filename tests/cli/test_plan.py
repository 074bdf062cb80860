"""``scalekv plan``: the figures, and that they are the ones a run reports."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scalekv.models.catalog import model_names, model_spec
from scalekv.models.footprint import ModelShape, RunShape, schedule_of
from scalekv.planning import Profile
from scalekv.policies import Full, ScaleKV

MIB = 2**20


def test_published_table_of_infinity_8b(answer):
    found = answer("plan", "--model", "infinity-8b", "--batch", "8", "--budget", "10%")
    assert found["cache"]["lossless_bytes"] == 56218.75 * MIB
    assert round(found["cache"]["stock_bytes"] / MIB, 1) == 138088.1
    assert found["cache"]["nominal_bytes"] <= 0.1 * found["cache"]["lossless_bytes"]
    assert found["cache"]["peak_bytes"] > found["cache"]["nominal_bytes"]
    assert found["profile"] == {"model": "infinity-8b", "adapted_from": None}
    assert found["table"] == []


def test_the_paper_would_print(answer):
    found = answer("plan", "--model", "infinity-8b", "--policy", "scalekv", "--batch", "8", "--budget", "650 tokens")[
        "conventions"
    ]["scalekv"]
    assert round(found["full_bytes"] / MIB, 1) == 84328.1
    assert round(found["kept_bytes"] / MIB, 1) == 8531.2


@pytest.mark.parametrize("name", [name for name in model_names() if model_spec(name).sides is None])
@pytest.mark.parametrize("size", ["0.06M", "0.25M", "0.60M", "1M", "512x384"])
def test_every_known_model_and_size(answer, name, size):
    found = answer("plan", "--model", name, "--size", size)
    assert [row["budget"] for row in found["table"]] == ["100%", "50%", "20%", "10%", "4%", "2%"]
    assert found["table"][0]["nominal_bytes"] == found["cache"]["lossless_bytes"]
    assert found["footprint"]["weights_bytes"] > 2 * model_spec(name).parameters


@pytest.mark.parametrize("name", [name for name in model_names() if model_spec(name).sides is not None])
def test_every_known_model_of_one_schedule(answer, name):
    found, pair = (answer("plan", "--model", name, "--batch", batch) for batch in ("128", "2"))
    assert found["schedule"].endswith("32x32" if name == "var-d36" else "16x16")
    assert found["cache"]["lossless_bytes"] == 64 * pair["cache"]["lossless_bytes"]
    assert found["footprint"]["weights_bytes"] > 2 * model_spec(name).parameters
    assert found["footprint"]["text_encoder_bytes"] == 0


def test_published_memory_of_var_d30(answer):
    found = answer("plan", "--model", "var-d30", "--batch", "32", "--budget", "10%")["cache"]
    assert round(found["stock_bytes"] / 2**30, 2) == 14.01
    assert round(found["lossless_bytes"] / 2**30, 2) == 5.82


def test_memory_names_the_largest_batch(answer):
    batch = answer("plan", "--budget", "10%", "--memory", "24GB")["memory"]["largest_batch"]
    fits = answer("plan", "--budget", "10%", "--batch", str(batch))["footprint"]["total_bytes"]
    over = answer("plan", "--budget", "10%", "--batch", str(batch + 1))["footprint"]["total_bytes"]
    assert fits <= 24e9 < over


def test_compression_fits_more_images(answer):
    rows = {row["budget"]: row["largest_batch"] for row in answer("plan", "--memory", "24GB")["table"]}
    assert 0 < rows["100%"] < rows["20%"] <= rows["2%"]


def test_too_little_memory_is_an_answer(answer, run):
    assert answer("plan", "--memory", "1GB")["memory"]["largest_batch"] == 0
    assert "not even one image fits" in run("plan", "--memory", "1GB").stdout


@pytest.mark.parametrize("memory", [10 * 2**30, 24 * 10**9, 200 * 2**30])
@pytest.mark.parametrize("policy", [Full(), ScaleKV(), ScaleKV("10%", strict=True), ScaleKV("2GiB")])
def test_largest_batch_is_the_largest(memory, policy):
    shape = ModelShape.of_spec(model_spec("infinity-2b"))
    schedule = schedule_of(shape, "0.25M")
    run = RunShape(shape, schedule, 2, 2, shape.profile.adapted_to(schedule))
    batch = run.largest_batch(policy, memory)
    assert run.footprint(policy, batch).total_bytes <= memory < run.footprint(policy, batch + 1).total_bytes


def test_guidance_of_one_halves_the_cache(answer):
    with_guidance, without = answer("plan"), answer("plan", "--guidance", "1")
    assert without["cache"]["lossless_bytes"] * 2 == with_guidance["cache"]["lossless_bytes"]


def test_codecs_hold_more_and_say_so(answer, run):
    found = answer("plan", "--budget", "10%", "--codec", "int8/int4")
    assert found["settings"]["codec"] == found["cache"]["codec"] == "int8/int4"
    assert found["cache"]["nominal_bytes"] <= found["cache"]["limit_bytes"]
    said = run("plan", "--budget", "10%", "--codec", "int8").stdout
    assert f"exact before segment {found['cache']['coded_from']} of 12, at last int8" in said
    assert "nothing is coded" in run("plan", "--budget", "100%", "--codec", "int8").stdout
    assert answer("plan", "--budget", "100%", "--codec", "int4")["cache"]["coded_from"] is None


def test_strict_holds_the_peak(answer):
    cache = answer("plan", "--budget", "10%", "--strict")["cache"]
    assert cache["peak_bytes"] <= cache["limit_bytes"]


def test_wide_pictures_are_wide(answer):
    found = answer("plan", "--aspect", "16:9")
    assert found["width"] > found["height"]
    assert found["profile"]["adapted_from"]


def test_adapted_profile_is_said(run):
    assert "adapted from 1024x1024" in run("plan", "--size", "0.25M").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "100000x1"], "infinity-2b does not draw 100000x1; planned is the nearest, 432x144."),
        (["--aspect", "5"], "infinity-2b does not draw the aspect 5; planned is the nearest, 1776x592."),
        (
            ["--aspect", "2", "--model", "var-d30"],
            "var-d30 does not draw the aspect 2; planned is the nearest, 256x256.",
        ),
        (["--size", "1024x1024"], None),
        (["--size", "0.25M", "--aspect", "1:2"], None),
        (["--aspect", "1", "--model", "var-d30"], None),
    ],
)
def test_another_size_than_asked_is_said(run, words, said):
    warned = [line for line in run("plan", *words).stderr.splitlines() if "draw" in line]
    assert warned == ([f"Warning: {said}"] if said else [])


def test_built_in_profiles_by_name(answer, run):
    assert answer("plan", "--profile", "infinity-2b")["profile"]["model"] == "infinity-2b"
    assert "for infinity-8b (40 layers" in run("plan", "--profile", "infinity-8b").stderr


def test_a_folder_of_another_shape_leaves_the_built_in_profile_out(answer, run, tiny_folder, folder):
    copied = Path(shutil.copytree(tiny_folder, folder / "named"))
    index = json.loads((copied / "model_index.json").read_text())
    (copied / "model_index.json").write_text(json.dumps({**index, "model_name": "infinity-2b"}))
    assert answer("plan", "--model", "named", "--budget", "10%")["profile"] is None
    said = "The built-in profile infinity-2b is for another network"
    assert said in run("plan", "--model", "named").stderr
    assert said in run("generate", "a", "--model", "named", "--out", "a.png").stderr


def test_estimates_follow_their_documented_formulas():
    shape = ModelShape.of_spec(model_spec("infinity-2b"))
    footprint = RunShape(shape, schedule_of(shape), 2, 2, shape.profile).footprint(ScaleKV("10%"), 3)
    assert footprint.activation_bytes == 3 * 2 * 64**2 * 2048 * (2 + 2 + 4 + 4) * 2
    assert footprint.decoding_bytes == 3 * 1024**2 * 128 * 4 * 2
    run_bytes = footprint.plan.peak_bytes + footprint.activation_bytes
    assert footprint.total_bytes == footprint.weights_bytes + max(run_bytes, footprint.decoding_bytes)
    assert footprint.to_dict()["decoding_bytes"] == footprint.decoding_bytes


def test_decoding_counts_where_it_is_the_larger_phase():
    shape = ModelShape.of_spec(model_spec("infinity-2b"))
    footprint = RunShape(shape, schedule_of(shape), 1, 2, shape.profile).footprint(ScaleKV("1%"), 8)
    assert footprint.decoding_bytes > footprint.plan.peak_bytes + footprint.activation_bytes
    assert footprint.total_bytes == footprint.weights_bytes + footprint.decoding_bytes


def test_infeasible_budgets_are_dashes(run, answer):
    rows = answer("plan", "--policy", "full")["table"]
    assert ["error" in row for row in rows] == [False, True, True, True, True, True]
    assert "- means: No full plan fits" in run("plan", "--policy", "full").stdout


def test_text_fits_eighty_columns(run):
    lines = run("plan", "--model", "infinity-8b", "--batch", "8", "--memory", "80GB").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("\x1b" in line or "─" in line for line in lines)


def test_folder_and_its_own_profile(answer, tiny_folder, tiny_profile, folder):
    found = answer("plan", "--model", str(tiny_folder), "--dtype", "float32", "--budget", "10%")
    assert found["footprint"]["transformer_bytes"] == 4 * _parameters(tiny_folder / "transformer")
    assert found["profile"] is None
    tiny_profile.save(folder / "profile.json")
    named = answer("plan", "--model", str(tiny_folder), "--profile", "profile.json", "--budget", "10%")
    assert named["profile"]["model"] == "tiny"


def _parameters(folder: Path) -> int:
    from safetensors import safe_open

    with safe_open(next(folder.glob("*.safetensors")), "pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118


def test_tiny_model_needs_no_folder(answer):
    assert answer("plan", "--model", "tiny-random", "--budget", "10%")["model"] == "tiny-random"


def test_environment_variables(answer, monkeypatch):
    monkeypatch.setenv("SCALEKV_BUDGET", "20%")
    monkeypatch.setenv("SCALEKV_MODEL", "infinity-8b")
    found = answer("plan")
    assert (found["model"], found["settings"]["budget"]) == ("infinity-8b", "20%")


def test_warning_is_one_line_once(run):
    result = run("plan", "--model", "infinity-125m")
    assert result.stderr.startswith("Warning: Bytewise runs without a profile")
    assert result.stderr.count("\n") == 1


def test_builtin_profiles_fit_their_models():
    for name in model_names():
        known = Profile.builtin(model_spec(name).profile)
        assert known is None or known.layers == model_spec(name).layers


def test_help_plan_and_methods_import_no_torch(folder):
    code = (
        "import sys, contextlib, io\n"
        "import scalekv.planning\n"
        "from scalekv.cli.app import app\n"
        "for words in (['--help'], ['generate', '--help'], ['plan', '--json'], ['methods']):\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        app(words)\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
