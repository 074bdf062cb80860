"""What the documentation shows is run."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

from scalekv.errors import InvalidInput
from scalekv.planning import CacheGeometry, Schedule
from scalekv.policies import Policy, make_policy

DOCS = Path(__file__).parent.parent / "docs"


def blocks(path: Path) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL))


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
