"""Say at the end of a run which recorded cases were checked, against what, and how close we came."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A kind of array that no case recorded is not a skipped test; a folder without cases fails a test of its own."""
    here = Path(__file__).parent
    nothing = [
        item
        for item in items
        if here in item.path.parents
        and any("empty parameter set" in str(mark.kwargs.get("reason")) for mark in item.iter_markers("skip"))
    ]
    if nothing:
        config.hook.pytest_deselected(items=nothing)
        items[:] = [item for item in items if item not in nothing]


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any) -> None:
    families: dict[str, dict[str, list[str]]] = {}
    for report in terminalreporter.stats.get("passed", []):
        entry = dict(report.user_properties).get("parity")
        if entry:
            family, case, what = entry
            families.setdefault(family, {}).setdefault(case, []).append(what)
    for family, cases in sorted(families.items()):
        terminalreporter.write_line(f"parity: checked {len(cases)} {family} cases: {', '.join(sorted(cases))}")
        for case, checks in sorted(cases.items()):
            terminalreporter.write_line(f"  {case}: {'; '.join(checks)}")
