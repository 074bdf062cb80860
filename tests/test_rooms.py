"""Imports point down only, and the rooms that promise it load neither torch nor diffusers."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import scalekv

PACKAGE = Path(scalekv.__file__).parent
ORDER = ["planning", "kernels", "policies", "cache", "models", "pipelines", "calibration", "evaluation", "cli"]
BESIDE = {"scenes"}


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "scalekv" and parts[1] in {*ORDER, *BESIDE} else None


def imports_at_run_time(path: Path) -> set[str]:
    """Modules a file imports, wherever it does, but for those under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


FILES = [path for name in ORDER for path in sorted((PACKAGE / name).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    own = ORDER.index(path.relative_to(PACKAGE).parts[0])
    rooms = {room(module) for module in imports_at_run_time(path)} - {None} - BESIDE
    upward = {name for name in rooms if ORDER.index(name) > own}
    assert not upward


@pytest.mark.parametrize("path", [path for path in FILES if "policies" in path.parts or "planning" in path.parts])
def test_planning_and_policies_know_no_model(path):
    text = path.read_text().lower()
    code = "\n".join(ast.unparse(node) for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.If, ast.Compare)))
    assert "infinity" not in code
    assert "scalekv.models" not in text


@pytest.mark.parametrize(
    "module",
    [
        "scalekv",
        "scalekv.planning",
        "scalekv.policies",
        "scalekv.models.catalog",
        "scalekv.evaluation.tables",
        "scalekv.evaluation.store",
    ],
)
def test_light_rooms_load_neither_torch_nor_diffusers(module):
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'diffusers', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=_environment()).returncode == 0


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
