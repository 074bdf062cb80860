"""Measure methods against the full cache, and show what was found: results, tables, pictures, pages.

Reading results needs no torch; names load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalekv.evaluation.jobs import Cell, Grid, Share, parse_budgets
    from scalekv.evaluation.request import Request
    from scalekv.evaluation.runner import evaluate
    from scalekv.evaluation.store import RunFolder
    from scalekv.evaluation.subjects import Subject, read_subjects, scenes_subjects
    from scalekv.evaluation.summary import differences, summarize
    from scalekv.policies.specs import PolicySpec, parse_specs

_HOMES = {
    "scalekv.evaluation.jobs": ("Cell", "Grid", "Share", "parse_budgets"),
    "scalekv.evaluation.request": ("Request",),
    "scalekv.evaluation.runner": ("evaluate",),
    "scalekv.evaluation.store": ("RunFolder",),
    "scalekv.evaluation.subjects": ("Subject", "read_subjects", "scenes_subjects"),
    "scalekv.evaluation.summary": ("differences", "summarize"),
    "scalekv.policies.specs": ("PolicySpec", "parse_specs"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Cell",
    "Grid",
    "PolicySpec",
    "Request",
    "RunFolder",
    "Share",
    "Subject",
    "differences",
    "evaluate",
    "parse_budgets",
    "parse_specs",
    "read_subjects",
    "scenes_subjects",
    "summarize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
