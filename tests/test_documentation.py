"""What the documentation shows is run."""

from __future__ import annotations

import re
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from scalekv.cli.app import app
from scalekv.errors import InvalidInput
from scalekv.models.catalog import model_spec
from scalekv.pipelines import tiny_var_pipeline
from scalekv.planning import CONVENTIONS, CacheGeometry, Schedule
from scalekv.policies import Policy, make_policy

DOCS = Path(__file__).parent.parent / "docs"


def blocks(path: Path, language: str = "python") -> str:
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL))


@pytest.fixture
def stranger(monkeypatch):
    """A module made of the documentation's code alone."""
    module = types.ModuleType("documented")
    monkeypatch.setitem(sys.modules, "documented", module)
    exec(compile(blocks(DOCS / "adding_a_method.md"), "adding_a_method.md", "exec"), module.__dict__)
    return module


def test_a_stranger_adds_a_method_from_the_documentation_alone(stranger):
    method = stranger.ValueNorm
    geometry = CacheGeometry(3, 2, 8, Schedule.from_sides([1, 2, 3, 5, 8]))
    assert issubclass(method, Policy)
    for budget in ("100%", "30%", "5%"):
        plan = method(budget=budget).plan(geometry)
        assert plan.drift_bytes <= plan.limit_bytes
    assert stranger.result.cache.policy == "value_norm"
    assert make_policy("documented.ValueNorm", keep_newest=False) == method(keep_newest=False)


@pytest.mark.parametrize("name", ["documented.Nothing", "no_such_module.Method", "scalekv.policies.make_policy"])
def test_what_is_no_method_is_refused(stranger, name):
    with pytest.raises(InvalidInput, match="policy"):
        make_policy(name)


SMALLER = {
    "var_d30.pth": "small.pth",
    "--classes all --per-class 50": "--classes 0-1 --per-class 1",
    "--batch 32 --npz": "--batch 2 --npz",
}
"""What the commands of the page on VAR are shortened to; the name of an official file is a promise of its size."""


def test_every_command_on_var_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sides = (1, 2, 3, 4)
    tiny = tiny_var_pipeline(depth=2, sides=sides)
    levels = torch.cat([torch.full((side * side,), step) for step, side in enumerate(sides)])[None]
    torch.save({**tiny.transformer.state_dict(), "lvl_1L": levels}, "small.pth")
    torch.save(tiny.vae.state_dict(), "vae_ch160v4096z32.pth")
    Path("classes.txt").write_text("207\ntabby cat\n")
    Path("others.txt").write_text("tench\n5\n")
    text = blocks(DOCS / "var.md", "sh")
    for long, short in SMALLER.items():
        assert long in text
        text = text.replace(long, short)
    commands = [shlex.split(line) for line in text.splitlines() if line]
    assert {words[1] for words in commands} >= {"generate", "convert", "info", "plan", "calibrate", "stability"}
    assert {words[1] for words in commands} >= {"compare", "evaluate", "export"}
    for words in commands:
        assert words[0] == "scalekv"
        result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
        assert result.exit_code == 0, (words, result.stderr)
    archives = sorted(
        path.relative_to("imagenet-npz/pictures").as_posix() for path in Path().glob("imagenet-npz/**/*.npz")
    )
    assert archives == ["ams_kv/60pct.npz", "full/100pct.npz", "hack/60pct.npz"]
    pictures = np.load("imagenet-npz/pictures/hack/60pct.npz")["arr_0"]
    assert (pictures.shape, pictures.dtype) == ((2, 64, 64, 3), np.uint8)


def test_the_page_on_var_draws(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(blocks(DOCS / "var.md"), "var.md", "exec"), names)
    assert names["result"].labels == [207, 281]
    assert names["result"].cache.kept_bytes <= 0.2 * names["result"].cache.lossless_bytes
    assert Path("retriever.png").is_file()
    # The coarse segments see both halves, so the kept tokens are compared and not pixels.
    tokens, given = names["repainted"].drawn[-1], names["given"][-1]
    assert torch.equal(tokens[..., :8], given[..., :8])
    assert not torch.equal(tokens[..., 8:], given[..., 8:])
    bits, kept = names["changed"].drawn[-1], names["bits"][-1]
    assert torch.equal(bits[:, :, :8], kept[:, :, :8])
    assert not torch.equal(bits[:, :, 8:], kept[:, :, 8:])


def test_the_memory_table_of_var():
    """VAR-d30 at batch 32 as published, 14.01 GiB, and what an exact cache takes here."""
    rows = re.findall(r"^\| (var-d\d+) \| (.*) \|$", (DOCS / "var.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name, _ in rows] == ["var-d16", "var-d20", "var-d24", "var-d30", "var-d36"]
    for name, cells in rows:
        spec = model_spec(name)
        figures = [2 * (spec.parameters + spec.autoencoder.parameters)]
        for batch in (1, 32, 128):
            geometry = spec.geometry(spec.schedule, batch)
            figures += [CONVENTIONS["hack"].cache_bytes(geometry), geometry.lossless_bytes]
        told = [str(16 * spec.schedule[-1].width), *(f"{size / 2**30:.2f}" for size in figures)]
        assert cells.split(" | ") == told
    assert dict(rows)["var-d30"].split(" | ")[4:6] == ["14.01", "5.82"]
