"""A command line that runs in this process, in a folder of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import scalekv
from scalekv.cli.app import app
from scalekv.planning import Profile, Schedule

Run = Callable[..., Result]

DRAWING = ("generate", "compare", "evaluate", "calibrate")
"""Commands that draw with the built-in model if none is named; tests take a smaller one."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a test, with no SCALEKV_* variable around."""
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    # Processes that a test starts find the package from any folder.
    monkeypatch.setenv("PYTHONPATH", str(Path(scalekv.__file__).parents[1]))
    for name in (
        "MODEL",
        "BUDGET",
        "POLICY",
        "SIZE",
        "ASPECT",
        "SEED",
        "OUT",
        "DTYPE",
        "CACHE_DTYPE",
        "DEVICE",
        "MEMORY",
        "POLICIES",
        "BUDGETS",
    ):
        monkeypatch.delenv(f"SCALEKV_{name}", raising=False)
    return place


@pytest.fixture
def run(folder: Path) -> Run:
    """Run the command line; an unexpected exception fails the test."""

    def call(*words: str) -> Result:
        quick = words and words[0] in DRAWING and "SCALEKV_MODEL" not in os.environ
        env = {"SCALEKV_MODEL": "tiny-random"} if quick else None
        return CliRunner().invoke(app, list(words), catch_exceptions=False, env=env)

    return call


@pytest.fixture
def answer(run: Run) -> Callable[..., Any]:
    """The JSON answer of a command, which must be all there is on standard output."""

    def call(*words: str) -> Any:
        result = run(*words, "--json")
        assert result.exit_code == 0, result.stderr
        assert result.stdout.count("\n") == 1
        return json.loads(result.stdout)

    return call


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline, saved."""
    from scalekv.pipelines import tiny_pipeline

    place = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline().save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def tiny_profile() -> Profile:
    """A made-up profile that fits the tiny pipeline."""
    schedule = Schedule.from_sides((1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
    table = tuple(tuple(float((layer * 7 + index) % 5) for layer in range(6)) for index in range(len(schedule)))
    return Profile("tiny", 6, 4, schedule, statistics={"asi": table})
