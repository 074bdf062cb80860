"""``scalekv generate``: pictures, what is written into them, and what happens when it is interrupted."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from scalekv._version import __version__
from scalekv.cli import generate as generate_command
from scalekv.cli.drawing import Run
from scalekv.cli.files import picture_paths, slug
from scalekv.pipelines import InfinityPipeline
from scalekv.planning import Profile, Schedule


@pytest.fixture(scope="module")
def tiny() -> InfinityPipeline:
    from scalekv.pipelines import tiny_pipeline

    pipeline = tiny_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(autouse=True)
def _one_tiny(monkeypatch: pytest.MonkeyPatch, tiny: InfinityPipeline) -> None:
    """Building the network takes longer than drawing with it."""
    monkeypatch.setattr(generate_command, "open_model", lambda *_: tiny)


def test_default_names_and_report(run: Callable, folder: Path) -> None:
    result = run("generate", "A lighthouse, at dawn!", "--seed", "7")
    assert result.exit_code == 0
    assert [path.name for path in folder.iterdir()] == ["a-lighthouse-at-dawn-7.png"]
    (line,) = result.stdout.splitlines()
    assert line.startswith("a-lighthouse-at-dawn-7.png  bytewise in int6/int4: kept 2")
    assert line.endswith("seed 7")
    assert "(10.0%)" in line
    assert "\x1b" not in result.output
    assert "random weights" in result.stderr
    assert result.stderr.count("without a profile") == 1
    run("generate", "A lighthouse, at dawn!", "--seed", "7")
    assert (folder / "a-lighthouse-at-dawn-7-2.png").exists()


def test_json_contract(answer: Callable, folder: Path) -> None:
    found = answer("generate", "a", "--seed", "1", "--budget", "20%", "--out", "a.png")
    cache = found["cache"]
    assert found["images"] == ["a.png"]
    assert found["seconds"] > 0
    assert cache["stock_bytes"] > cache["lossless_bytes"] > cache["nominal_bytes"] == cache["kept_bytes"]
    assert cache["peak_bytes"] == cache["measured_peak_bytes"] >= cache["kept_bytes"]
    assert (found["model"], found["method"], found["budget"], found["seeds"]) == ("tiny-random", "bytewise", "20%", [1])
    assert Image.open(folder / "a.png").size == (found["width"], found["height"]) == (256, 256)


def test_picture_says_how_it_was_made(run: Callable, folder: Path) -> None:
    words = ["--negative", "fog", "--seed", "5", "--guidance", "2.5", "--out", "a.png"]
    assert run("generate", "ein Wärter 灯台", *words).exit_code == 0
    text = Image.open(folder / "a.png").text
    prompt, negative, settings = text["parameters"].splitlines()
    assert (prompt, negative) == ("ein Wärter 灯台", "Negative prompt: fog")
    assert "Steps: 10" in settings
    assert "CFG scale: 2.5, Seed: 5, Size: 256x256" in settings
    own = json.loads(text["scalekv"])
    assert (own["method"], own["budget"], own["seed"], own["version"]) == ("bytewise", "10%", 5, __version__)


def test_images_do_not_depend_on_the_batch(answer: Callable, folder: Path) -> None:
    several = answer("generate", "a", "b", "-n", "2", "--seed", "3", "--out", "x-{seed}.png")
    assert several["images"] == ["x-3.png", "x-4.png", "x-5.png", "x-6.png"]
    answer("generate", "b", "--seed", "6", "--out", "alone.png")
    alone, together = (Image.open(folder / name).tobytes() for name in ("alone.png", "x-6.png"))
    assert max(abs(one - other) for one, other in zip(alone, together, strict=True)) <= 1


def test_compare_writes_both(answer: Callable, folder: Path) -> None:
    found = answer("generate", "a", "--seed", "1", "--compare", "--policy", "sliding-window", "--out", "a.png")
    (comparison,) = found["comparisons"]
    assert 5 < comparison["psnr_db"] < 80
    assert not comparison["identical"]
    assert found["full_cache"]["kept_bytes"] == found["cache"]["lossless_bytes"]
    sheet = Image.open(folder / comparison["path"])
    assert comparison["path"] == "a-compare.png"
    assert sheet.width > 512
    assert "scalekv" in sheet.text


def test_everything_kept_is_identical(answer: Callable, run: Callable) -> None:
    (comparison,) = answer("generate", "a", "--budget", "100%", "--compare", "--out", "a.png")["comparisons"]
    assert comparison == {"path": "a-compare.png", "psnr_db": None, "identical": True}
    assert "identical against the full cache" in run("generate", "a", "--policy", "full", "--compare").stdout


def test_quiet_prints_nothing(run: Callable, tiny_profile, folder: Path) -> None:
    tiny_profile.save("profile.json")
    result = run("generate", "a", "--policy", "scalekv", "--quiet", "--profile", "profile.json", "--out", "a.png")
    assert (result.exit_code, result.output) == (0, "")
    assert (folder / "a.png").exists()


def test_long_prompt_is_cut_and_said(run: Callable, answer: Callable, folder: Path) -> None:
    prompt = "lighthouse " * 1000
    result = run("generate", prompt[:10_000], "--seed", "1")
    assert result.exit_code == 0
    assert [line for line in result.stderr.splitlines() if "Warning" in line and "token" in line]
    (path,) = folder.iterdir()
    assert len(path.name) < 80


def test_nearest_size_is_said(run: Callable) -> None:
    result = run("generate", "a", "--size", "300x200")
    assert result.exit_code == 0
    assert "Warning: " in result.stderr
    assert "256 x 256" in result.stderr


@pytest.mark.parametrize("aspect", ["16:9", "5"])
def test_another_aspect_than_asked_is_said(run: Callable, aspect: str) -> None:
    errors = run("generate", "a", "--aspect", aspect, "--out", "a.png").stderr
    assert errors.count("drawing the nearest, 256 x 256") == 1


def test_adapted_profile_is_said(run: Callable, tiny_profile: Profile) -> None:
    words = "generate", "a", "--profile", "p.json", "--compare", "--out", "a.png"
    tiny_profile.save("p.json")
    assert "adapted" not in run(*words).stderr
    tiny_profile.adapted_to(Schedule.from_sides((1, 2, 3, 4, 5, 6, 8))).save("p.json")
    assert run(*words).stderr.count("The profile tiny is for 128x128; it was adapted to 256x256.\n") == 1


@pytest.mark.parametrize("segment", [0, 5, 9])
def test_interrupt_leaves_nothing(run: Callable, folder: Path, monkeypatch, tiny, segment: int) -> None:
    def interrupted(self: object, note: str = "") -> None:
        steps.append(note)
        if len(steps) > segment:
            raise KeyboardInterrupt

    steps: list[str] = []
    monkeypatch.setattr("scalekv.cli.output.Steps.advance", interrupted)
    result = run("generate", "a", "--seed", "1")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "Interrupted; nothing half-written is left behind."
    assert not list(folder.iterdir())


def test_interrupt_while_writing_leaves_nothing(run: Callable, folder: Path, monkeypatch) -> None:
    def interrupted(self: object, place: Path, **_: object) -> None:
        Path(place).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    assert run("generate", "a", "--seed", "1").exit_code == 130
    assert not list(folder.iterdir())


def test_full_disk_is_said(run: Callable, folder: Path, monkeypatch) -> None:
    def full(self: object, place: Path, **_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    result = run("generate", "a", "--seed", "1", "--out", "a.png")
    assert result.exit_code == 2
    assert result.stderr.endswith("Error: Cannot write a.png: No space left on device; choose another --out.\n")
    assert not list(folder.iterdir())


@pytest.mark.parametrize("kind", ["python", "torch", "cpu"])
def test_out_of_memory_is_said(run: Callable, folder: Path, monkeypatch, kind: str) -> None:
    import torch

    errors = {
        "python": MemoryError(),
        "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
    }

    def exhausted(*_: object, **__: object) -> None:
        raise errors[kind]

    monkeypatch.setattr(Run, "pictures", exhausted)
    result = run("generate", "a")
    assert result.exit_code == 3
    assert "--budget" in result.stderr
    assert "scalekv plan" in result.stderr
    assert not list(folder.iterdir())


def test_bugs_keep_their_traceback(run: Callable, monkeypatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Run, "pictures", broken)
    with pytest.raises(ZeroDivisionError):
        run("generate", "a")


def test_names(folder: Path) -> None:
    assert [str(path) for path in picture_paths("x.png", ["a", "b"], [1, 2])] == ["x-1.png", "x-2.png"]
    assert [str(path) for path in picture_paths(None, ["a", "a"], [1, 1])] == ["a-1.png", "a-1-2.png"]
    (folder / "pics").mkdir()
    assert picture_paths("pics", ["A cat"], [9]) == [Path("pics/a-cat-9.png")]
    assert picture_paths("pics/{prompt}-{index}.PNG", ["A cat"], [9]) == [Path("pics/a-cat-1.PNG")]
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug("!!!") == "picture"
    assert len(slug("x" * 500)) == 48


def test_names_of_sheets(run: Callable, folder: Path) -> None:
    for name in ("a-2-compare.png", "d-compare.png"):
        (folder / name).write_text("mine")
    (folder / "e-compare.png").mkdir()
    assert picture_paths(None, ["a"], [2], sheets=True) == [Path("a-2-2.png")]
    assert picture_paths(None, ["a", "a"], [2, 2]) == [Path("a-2.png"), Path("a-2-2.png")]
    both = "generate", "x", "x-compare", "--compare", "--seed", "1", "--out", "{prompt}.png"
    cases = [both, ("generate", "d", "--compare", "--out", "d.png"), ("generate", "e", "--compare", "--out", "e.png")]
    for words, named in zip(cases, ["x-compare.png", "d-compare.png exists", "it is a folder"], strict=True):
        before = sorted(folder.iterdir())
        result = run(*words)
        assert (result.exit_code, named in result.stderr) == (2, True)
        assert sorted(folder.iterdir()) == before


def test_a_sheet_is_replaced_with_its_picture(run: Callable, folder: Path) -> None:
    words = "generate", "a", "--compare", "--seed", "1", "--out", "a.png"
    assert [run(*words).exit_code for _ in range(2)] == [0, 0]
    assert sorted(path.name for path in folder.iterdir()) == ["a-compare.png", "a.png"]


def test_names_as_long_as_the_disk_takes(run: Callable, folder: Path) -> None:
    assert run("generate", "a", "--out", f"{'x' * 251}.png").exit_code == 0
    result = run("generate", "a", "--compare", "--out", f"{'x' * 251}.png")
    assert result.exit_code == 2
    assert "File name too long; choose another --out." in result.stderr


def heed_interrupts() -> None:
    """What a shell starts in the background ignores interrupts, and so would everything started from there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_in_a_shell(folder: Path) -> None:
    words = [sys.executable, "-m", "scalekv", "generate", *["a"] * 40, "--seed", "1", "--aspect", "16:9"]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    )
    for line in process.stderr:
        if "aspect" in line:  # this model is square, which is said when drawing begins
            break
    time.sleep(0.5)
    errors = ""
    # Python drops an interrupt that comes while an object is taken down; people press again, but not at once: a second
    # one would end a process that a busy machine is slow to end.
    for _ in range(3):
        os.kill(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            _, errors = process.communicate(timeout=20)
            break
    assert process.returncode == 130
    assert errors == "Interrupted; nothing half-written is left behind.\n"
    assert not list(folder.iterdir())
