"""Say at the end of a run which recorded cases were checked, against what, and how close we came."""

from __future__ import annotations

from typing import Any

import pytest


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
