"""Rows of results as text: for a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from scalekv.evaluation.intervals import Interval
from scalekv.evaluation.summary import Row
from scalekv.planning import format_bytes

TERMINAL = ("psnr", "ssim", "lpips", "agreement")
"""Metrics for which a line of a terminal has room; `summarize` has all."""

METRICS = {
    "psnr": ("PSNR dB", 2),
    "ssim": ("SSIM", 3),
    "ms_ssim": ("MS-SSIM", 3),
    "lpips": ("LPIPS", 3),
    "agreement": ("equal", 3),
}
"""Column and decimals of the metrics by name; ``equal`` is the share of equal bits or tokens."""

OTHER = 3
"""Decimals of scorers of one's own."""

_NOTHING = "-"


def metrics_of(rows: Sequence[Row]) -> list[str]:
    """Names of the metrics that any row has, known ones first."""
    found = {name for row in rows for name in row.metrics if name not in ("mse", "identical")}
    return [*(name for name in METRICS if name in found), *sorted(found - METRICS.keys())]


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of a table for a terminal: methods, budgets, bytes kept, means, prompts followed.

    The interval of the PSNR is told by half its width.
    """
    names = [name for name in metrics_of(rows) if name in TERMINAL]
    heads = ["method", "budget", "kept", *(METRICS[name][0] for name in names)]
    body = [[row.label, row.budget, _kept(row), *(_mean(row, name) for name in names)] for row in rows]
    if any(row.following_overall for row in rows):
        heads.append("followed")
        for row, line in zip(rows, body, strict=True):
            line.append(f"{100 * row.following_overall.mean:.1f}%" if row.following_overall else _NOTHING)
    if any(row.fid is not None for row in rows):
        heads.append("FID")
        for row, line in zip(rows, body, strict=True):
            line.append(_NOTHING if row.fid is None else f"{row.fid:.2f}")
    return heads, body


def markdown(rows: Sequence[Row]) -> str:
    """All metrics of all rows with their intervals, and the prompts followed by category, as Markdown tables."""
    names = metrics_of(rows)
    has_fid = any(row.fid is not None for row in rows)
    heads = ["method", "budget", "kept", *(METRICS.get(name, (name, OTHER))[0] for name in names)]
    body = []
    for row in rows:
        fid = [_NOTHING if row.fid is None else f"{row.fid:.2f}"] if has_fid else []
        metrics = [_range(row.metrics.get(name), METRICS.get(name, ("", OTHER))[1]) for name in names]
        if row.identical:
            metrics[names.index("psnr")] = "identical"
        body.append([row.label, row.budget, _kept(row), *metrics, *fid])
    parts = [_markdown([*heads, *(["FID"] if has_fid else [])], body), _followed(rows)]
    notes = [f"- {row.label} at {row.budget}: {row.infeasible}\n" for row in rows if row.infeasible]
    return "\n".join(part for part in (*parts, "".join(notes)) if part)


def _kept(row: Row) -> str:
    return _NOTHING if row.infeasible else format_bytes(round(row.figures["kept_bytes"]))


def _mean(row: Row, name: str) -> str:
    interval, decimals = row.metrics.get(name), METRICS[name][1]
    if name == "psnr" and (row.infeasible or row.identical):
        return "does not fit" if row.infeasible else "identical"
    if interval is None:
        return _NOTHING
    half = (interval.high - interval.low) / 2
    return f"{interval.mean:.{decimals}f}" + (f" ±{half:.{decimals}f}" if name == "psnr" else "")


def _range(interval: Interval | None, decimals: int) -> str:
    if interval is None:
        return _NOTHING
    return f"{interval.mean:.{decimals}f} ({interval.low:.{decimals}f}-{interval.high:.{decimals}f})"


def _followed(rows: Sequence[Row]) -> str:
    judged = [row for row in rows if row.following_overall]
    categories = list(dict.fromkeys(name for row in judged for name in row.following))
    if not judged:
        return ""
    lines = []
    for row in judged:
        intervals = [*(row.following.get(name) for name in categories), row.following_overall]
        lines.append([row.label, row.budget, *(_range(interval, 2) for interval in intervals)])
    heads = ["method", "budget", *categories, "overall"]
    return f"Share of prompts that pictures follow:\n\n{_markdown(heads, lines)}"


def _markdown(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
