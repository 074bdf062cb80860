"""Say at the end of a run which recorded cases were checked, against what, and how close we came."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parity import infinity_golden, var_golden
from parity.golden import FAMILIES, family_of, left_out, named_folder

LOADERS = {"infinity": infinity_golden.load_case, "var": var_golden.load_case}


@pytest.fixture
def case(folder: Path) -> Any:
    """The recorded case in ``folder``."""
    return LOADERS[str(family_of(folder))](folder)


@pytest.fixture
def note(folder: Path, record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Remembers what was checked of a case, for the summary."""
    return lambda what: record_property("parity", (FAMILIES[str(family_of(folder))], folder.name, what))


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
    for name in (name for folder, name in FAMILIES.items() if left_out(folder)):
        terminalreporter.write_line(f"parity: checked no {name} cases: {named_folder()} has none of them")
