"""The table of results as HTML: a block per budget, the best of each column marked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from scalekv.evaluation.intervals import Interval
from scalekv.evaluation.report.markup import Markup, joined, tag
from scalekv.evaluation.summary import PSNR_CAP, Row
from scalekv.evaluation.tables import METRICS, OTHER, metrics_of
from scalekv.planning import format_bytes

LOWER_IS_BETTER = ("lpips",)
"""Metrics of which less is better; of scorers of one's own nobody knows, and nothing is marked."""

_Value = Callable[[Row], "float | None"]


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        title: its head.
        value: what is compared; ``None`` where there is none.
        text: what is shown.
        better: 1 if more is better, -1 if less is, 0 if that is not known.
    """

    title: str
    value: _Value
    text: Callable[[Row], Markup | str]
    better: int = 1


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """All columns that any row has values for."""
    columns = [_metric(name) for name in metrics_of(rows)]
    columns.append(Column("followed", _followed, lambda row: _share(row.following_overall)))
    columns.append(Column("FID", lambda row: row.fid, lambda row: "" if row.fid is None else f"{row.fid:.2f}", -1))
    columns += [
        Column("kept", _figure("kept_bytes"), _bytes("kept_bytes"), -1),
        Column("peak", _figure("measured_peak_bytes"), _bytes("measured_peak_bytes"), -1),
        Column("tokens", _figure("tokens"), lambda row: f"{row.figures['tokens']:.0f}", -1),
        Column("attention", _figure("attention_flops"), _flops, -1),
        Column("seconds", _figure("seconds"), lambda row: f"{row.figures['seconds']:.1f}", -1),
    ]
    return [column for column in columns if any(column.value(row) is not None for row in rows)]


def results_table(rows: Sequence[Row], front: Collection[tuple[str, str]], marks: Mapping[str, Markup]) -> Markup:
    """All results, a block per budget, methods in the order of ``marks``.

    Args:
        rows: without the full cache.
        front: (method, budget) of the results on the Pareto front.
        marks: by method, its marker as in the plots.
    """
    columns = columns_of(rows)
    heads = tag("tr", tag("th", "method", scope="col"), *(tag("th", one.title, scope="col") for one in columns))
    budgets = list(dict.fromkeys(row.budget for row in rows))
    blocks = []
    for budget in budgets:
        block = [row for label in marks for row in rows if (row.label, row.budget) == (label, budget)]
        title = tag("th", f"budget {budget}", colspan=str(len(columns) + 1), scope="rowgroup", class_="budget")
        best = [_best(column, block) for column in columns]
        lines = [_line(row, columns, best, (row.label, row.budget) in front, marks[row.label]) for row in block]
        blocks.append(tag("tbody", tag("tr", title), *lines))
    return tag("div", tag("table", tag("thead", heads), *blocks), class_="wide", tabindex="0")


def _line(row: Row, columns: Sequence[Column], best: Sequence[float | None], is_front: bool, mark: Markup) -> Markup:
    front = tag("abbr", "◆", title="on the Pareto front") if is_front else Markup("")
    head = tag("th", mark, " ", breakable(row.label), " ", front, scope="row")
    if row.infeasible is not None:
        return tag("tr", head, tag("td", row.infeasible, colspan=str(len(columns)), class_="reason"))
    cells = []
    for column, most in zip(columns, best, strict=True):
        value = column.value(row)
        is_best = value is not None and value == most
        text = "–" if value is None else column.text(row)
        cells.append(tag("td", text, class_="best" if is_best else False))
    return tag("tr", head, *cells)


def _best(column: Column, rows: Sequence[Row]) -> float | None:
    """The best value of a column; ``None`` if all are equal, or nobody knows which way is better."""
    values = [value for row in rows if not row.infeasible and (value := column.value(row)) is not None]
    if not column.better or len(set(values)) < 2:
        return None
    return max(values, key=lambda value: column.better * value)


def breakable(label: str) -> Markup:
    """A method's name that may break after its separators."""
    pieces = label.replace(",", ",\0").replace(":", ":\0").split("\0")
    return joined(*(piece for part in pieces for piece in (part, tag("wbr"))))


def _metric(name: str) -> Column:
    title, decimals = METRICS.get(name, (name, OTHER))
    better = 0 if name not in METRICS else -1 if name in LOWER_IS_BETTER else 1

    def value(row: Row) -> float | None:
        return row.metrics[name].mean if name in row.metrics else None

    def text(row: Row) -> Markup | str:
        interval = row.metrics[name]
        if name == "psnr" and interval.mean >= PSNR_CAP:
            return "identical"
        return _interval(interval, decimals)

    return Column(title, value, text, better)


def _interval(interval: Interval, decimals: int, unit: str = "") -> Markup:
    low, high = f"{interval.low:.{decimals}f}", f"{interval.high:.{decimals}f}"
    return joined(f"{interval.mean:.{decimals}f}{unit} ", tag("small", f"{low}–{high}"))


def _followed(row: Row) -> float | None:
    return None if row.following_overall is None else row.following_overall.mean


def _share(interval: Interval | None) -> Markup | str:
    if interval is None:
        return ""
    percent = Interval(100 * interval.mean, 100 * interval.low, 100 * interval.high, interval.prompts)
    return _interval(percent, 1, "%")


def _figure(name: str) -> _Value:
    return lambda row: row.figures.get(name)


def _bytes(name: str) -> Callable[[Row], str]:
    return lambda row: format_bytes(round(row.figures[name]))


def _flops(row: Row) -> str:
    value = row.figures["attention_flops"]
    unit, size = next((one for one in (("T", 1e12), ("G", 1e9)) if value >= one[1]), ("M", 1e6))
    return f"{value / size:.3g} {unit}FLOP"
