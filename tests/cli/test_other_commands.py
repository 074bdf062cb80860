"""calibrate, convert, info, methods, env and the command itself."""

from __future__ import annotations

import builtins
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from scalekv._version import __version__
from scalekv.cli import env as env_command
from scalekv.cli.loading import find_device
from scalekv.cli.profile_map import RoleMap, save_profile
from scalekv.errors import InvalidInput
from scalekv.planning import Profile
from scalekv.policies import POLICIES

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "infinity" / "plain_square"


def test_calibrate_writes_a_profile_that_generate_takes(
    answer: Callable, run: Callable, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "prompts.txt").write_text("a lighthouse\n\n  a cat \n", encoding="utf-8")
    found = answer("calibrate", "prompts.txt", "--out", "profile.json", "--queries", "16", "--name", "mine")
    profile = Profile.load("profile.json")
    assert (profile.model, profile.layers, profile.details["prompts"]) == ("mine", 6, 2)
    assert found["drafters"]
    assert Image.open(found["picture"]).width > 300
    assert "without a profile" not in run("generate", "a").stderr
    monkeypatch.setattr(Profile, "builtin", lambda name: None)
    assert "without a profile" in run("generate", "a").stderr
    assert "without a profile" not in run("generate", "a", "--profile", "profile.json").stderr


def test_calibrations_add_up_and_are_compared(answer: Callable, run: Callable, folder: Path) -> None:
    for name, prompt in (("a", "a fox"), ("b", "a hen")):
        (folder / f"{name}.txt").write_text(prompt)
    common = ("--queries", "8", "--guidance", "1")
    answer("calibrate", "a.txt", "--out", "a.json", "--name", "mine", *common)
    answer("calibrate", "b.txt", "--out", "b.json", "--seed", "9", "--name", "mine", *common)
    answer("calibrate", "b.txt", "--out", "ab.json", "--seed", "9", "--add-to", "a.json", *common)
    both, expected = Profile.load("ab.json"), Profile.merged(Profile.load("a.json"), Profile.load("b.json"))
    assert both.model == "mine"
    assert both == expected
    found = answer("stability", "a.json", "b.json", "ab.json", "--budget", "5%")
    assert [one["prompts"] for one in found["profiles"]] == [1, 1, 2]
    assert [pair["shared_pictures"] for pair in found["pairs"]] == [0, 1, 1]
    assert all(0 < pair["rank_correlations"]["mass"] < 1 for pair in found["pairs"])
    assert all(0 <= value <= 1 for pair in found["pairs"] for value in pair["overlaps"].values())
    printed = run("stability", "a.json", "b.json")
    assert "sigma" in printed.stdout
    assert "ScaleKV's drafters at 10%" in printed.stdout
    assert "share prompts" not in printed.stderr
    assert "2 of 3 pairs share prompts" in run("stability", "a.json", "b.json", "ab.json").stderr


def test_calibrate_without_matplotlib(run: Callable, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object) -> object:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    (folder / "prompts.txt").write_text("a\n")
    monkeypatch.setattr(builtins, "__import__", without)
    result = run("calibrate", "prompts.txt", "--out", "profile.json", "--queries", "8")
    assert result.exit_code == 0
    assert "pip install 'scalekv[plot]'" in result.stderr
    assert [path.name for path in folder.iterdir() if path.suffix != ".txt"] == ["profile.json"]
    assert "D drafter at 10%" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_profile_and_map_both_or_neither(run: Callable, folder: Path, tiny_profile: Profile) -> None:
    (folder / "p.png").mkdir()
    roles = RoleMap.of(tiny_profile)
    with pytest.raises(InvalidInput, match=r"Cannot write .*p\.png"):
        save_profile(roles, folder / "p.json")
    assert [path.name for path in folder.iterdir()] == ["p.png"]
    (folder / "p.png").rmdir()
    assert save_profile(roles, folder / "p.json") == folder / "p.png"
    (folder / "prompts.txt").write_text("a\n")
    before = (folder / "p.png").read_bytes()
    assert run("calibrate", "prompts.txt", "--out", "p.json", "--queries", "8", "--name", "new").exit_code == 0
    assert Profile.load("p.json").model == "new"
    assert (folder / "p.png").read_bytes() != before
    assert len(list(folder.iterdir())) == 3


def test_map_marks_drafters(tiny_profile: Profile) -> None:
    roles = RoleMap.of(tiny_profile)
    lines = roles.text()
    assert sum(line.count("D") for line in lines[:-1]) == sum(map(len, roles.drafters.values())) > 0
    assert lines[-2].split()[0] == "16x16"


def test_convert_then_info_then_plan(answer: Callable, run: Callable, folder: Path) -> None:
    weights, vae = str(GOLDEN / "weights.safetensors"), str(GOLDEN / "vae.safetensors")
    found = answer("convert", weights, "--vae", vae, "--out", "model", "--dtype", "bf16")
    assert found["kind"] == "pipeline folder"
    assert (folder / "model" / "model_index.json").is_file()
    assert answer("info", "model")["components"]["text_encoder"] is None
    assert answer("plan", "--model", "model", "--size", "0.06M", "--budget", "10%")["width"] == 256
    assert "InfinityTransformer" in run("info", "model").stdout


def test_convert_into_an_empty_folder(answer: Callable, folder: Path) -> None:
    (folder / "model").mkdir()
    words = "convert", str(GOLDEN / "weights.safetensors"), "--vae", str(GOLDEN / "vae.safetensors"), "--out", "model"
    assert answer(*words)["kind"] == "pipeline folder"


@pytest.mark.parametrize(("name", "kind"), [("weights", "infinity transformer"), ("vae", "infinity vae")])
def test_info_on_files(answer: Callable, name: str, kind: str) -> None:
    assert answer("info", str(GOLDEN / f"{name}.safetensors"))["kind"] == kind


def test_info_on_a_profile(answer: Callable, folder: Path) -> None:
    Profile.builtin("infinity-2b").save("p.json")
    assert answer("info", "p.json")["models"] == ["infinity-2b"]
    assert answer("info", "p.json")["attention"] is None


def test_info_tells_where_layers_attend(answer: Callable, run: Callable, folder: Path) -> None:
    profile = Profile.builtin("tiny-random")
    profile.save("p.json")
    shares = answer("info", "p.json")["attention"]
    assert list(shares) == ["current", "previous", "first", "others"]
    lines = [line.split() for line in run("info", "p.json").stdout.splitlines()]
    for layer, values in enumerate(zip(*shares.values(), strict=True)):
        assert sum(values) == pytest.approx(1, abs=1e-3)
        assert [str(layer), *(f"{100 * value:.1f}" for value in values)] in lines


def test_methods(answer: Callable, run: Callable) -> None:
    listed = answer("methods")
    assert [entry["name"] for entry in listed] == list(POLICIES)
    assert all(entry["summary"] and entry["source"] for entry in listed)
    assert max(map(len, run("methods").stdout.splitlines())) <= 80


def test_env(answer: Callable, run: Callable) -> None:
    found = answer("env")
    assert found["torch"]["devices"][0]["name"] == "cpu"
    assert found["packages"]["diffusers"]
    assert run("env").stdout.startswith(f"scalekv {__version__}, Python ")


def test_env_without_torch(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def broken(name: str, *rest: object) -> object:
        if name == "torch":
            raise OSError("libtorch.so: cannot open shared object file")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", broken)
    result = run("env")
    assert result.exit_code == 0
    assert "torch: libtorch.so: cannot open shared object file" in result.stdout
    assert "mend: pip install 'torch>=2.6'" in result.stdout


def test_env_names_a_broken_optional_package(answer: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    real, version = importlib.import_module, env_command._version

    def broken(name: str) -> object:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name)

    monkeypatch.setattr(env_command.importlib, "import_module", broken)
    monkeypatch.setattr(env_command, "_version", lambda name: "0.28.0" if name == "torchvision" else version(name))
    (problem,) = [one for one in answer("env")["problems"] if one["package"] == "torchvision"]
    assert "nms does not exist" in problem["problem"]
    assert "pip uninstall torchvision" in problem["mend"]


def test_env_names_what_is_missing_or_old(answer: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {"matplotlib": None, "numba": None, "accelerate": None, "diffusers": "0.35.0"}
    version = env_command._version
    monkeypatch.setattr(env_command, "_version", lambda name: changed.get(name, version(name)))
    monkeypatch.setattr(env_command.metadata, "requires", lambda _: ["diffusers>=0.40", "torch>=2.6"])
    problems = {one["package"]: one for one in answer("env")["problems"]}
    assert set(problems) == set(changed)
    assert problems["matplotlib"]["mend"] == "pip install 'scalekv[plot]'"
    assert problems["numba"]["mend"] == "pip install 'scalekv[cpu]'"
    assert problems["diffusers"]["mend"] == "pip install 'diffusers>=0.40'"


def test_version_and_bare_command(run: Callable) -> None:
    assert run("--version").stdout == f"scalekv {__version__}\n"
    assert "generate" in run().stdout
    assert run().exit_code == 0


@pytest.mark.parametrize("command", ["generate", "plan", "calibrate", "stability", "convert", "info", "methods", "env"])
def test_help_fits_eighty_columns(run: Callable, command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert find_device("CPU").type == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device(None) == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda:1")


def test_env_lists_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    properties = SimpleNamespace(name="H100", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert {"name": "cuda:0", "kind": "H100", "bytes": 80 * 2**30} in env_command._devices(torch)


def test_libraries_that_print_do_not_spoil_json(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy(*_: object) -> list[dict[str, str]]:
        print("a library talks")
        return []

    monkeypatch.setattr(env_command, "_broken", noisy)
    result = run("env", "--json")
    assert json.loads(result.stdout)["scalekv"] == __version__
    assert "a library talks" in result.stderr
