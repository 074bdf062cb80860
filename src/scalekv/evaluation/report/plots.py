"""Plots of results: fidelity against bytes, and tables of shares as heat maps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scalekv.evaluation.report.fronts import pareto_front
from scalekv.evaluation.report.style import GRID, INK, MAP, SOFT, Look, new_figure
from scalekv.evaluation.summary import Row
from scalekv.planning import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.4
"""Inches of a plot as wide as the page."""

_LABEL_WIDTH, _LINE_HEIGHT = 24, 0.17
_TICK_SHARE = 0.11  # of the axis, that the label of a budget takes


@dataclass(frozen=True)
class Point:
    """A method at one budget.

    Args:
        row: its results.
        best: whether it is on the Pareto front of all results: nothing is better for fewer bytes.
    """

    row: Row
    best: bool

    @property
    def kept(self) -> float:
        """Bytes of history."""
        return self.row.figures["kept_bytes"]


def points_of(rows: Sequence[Row]) -> list[Point]:
    """Every result that has a picture; those that are the full cache's bit for bit count `PSNR_CAP` on the front."""
    measured = [row for row in rows if "psnr" in row.metrics]
    front = set(pareto_front([(row.figures["kept_bytes"], row.metrics["psnr"].mean) for row in measured]))
    return [Point(row, index in front) for index, row in enumerate(measured)]


def fidelity(points: Sequence[Point], look: Mapping[str, Look]) -> Figure:
    """PSNR with 95 % intervals against bytes, a line per method, the Pareto front marked.

    Args:
        points: at least one, none of them identical to the full cache: an infinite PSNR has no place in a plot.
        look: of every method.
    """
    labels = [label for label in look if any(point.row.label == label for point in points)]
    lines = sum(len(broken(label)) for label in labels)
    figure = new_figure(WIDTH, max(4.6, 1.2 + _LINE_HEIGHT * lines))
    axes = figure.add_subplot()
    _draw_front(axes, [point for point in points if point.best])
    for label in labels:
        own = sorted((point for point in points if point.row.label == label), key=lambda point: point.kept)
        _draw_method(axes, own, look[label])
    axes.set_xscale("log")
    _mark_budgets(axes, points)
    axes.set_xlabel("budget, as a share of the lossless cache and in bytes; points stand at the bytes kept")
    axes.set_ylabel("PSNR against the full cache, dB")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.set_ylim(*axes.get_ylim())
    _label_lines(axes, points, labels, look, _LINE_HEIGHT / (figure.get_figheight() - 0.9))
    return figure


def _draw_front(axes: Axes, front: Sequence[Point]) -> None:
    ordered = sorted(front, key=lambda point: point.kept)
    across = [point.kept for point in ordered]
    up = [point.row.metrics["psnr"].mean for point in ordered]
    if not ordered:
        return
    axes.step(across, up, where="post", color=GRID, linewidth=3, zorder=1)
    axes.scatter(across, up, s=110, facecolors="none", edgecolors=INK, linewidths=1.1, zorder=4, label="Pareto front")
    axes.legend(loc="upper left", fontsize=8, handletextpad=0.3)


def _draw_method(axes: Axes, points: Sequence[Point], look: Look) -> None:
    across = [point.kept for point in points]
    intervals = [point.row.metrics["psnr"] for point in points]
    axes.plot(across, [one.mean for one in intervals], **look.plot, markersize=5, linewidth=1.3, zorder=3)
    low, high = [one.low for one in intervals], [one.high for one in intervals]
    axes.vlines(across, low, high, color=look.colour, linewidth=1, zorder=2)


def _mark_budgets(axes: Axes, points: Sequence[Point]) -> None:
    """Ticks at the budgets, labelled where there is room."""
    places: dict[float, str] = {}
    for point in points:
        limit, lossless = point.row.figures["limit_bytes"], point.row.figures["lossless_bytes"]
        places[limit] = f"{100 * limit / lossless:.3g}%\n{format_bytes(round(limit))}"
    reach = [*places, *(point.kept for point in points)]
    low, high = min(reach) / 1.25, max(reach) * 1.12
    room, last = (high / low) ** _TICK_SHARE, 0.0
    ticks = sorted(places)
    for tick in ticks:
        if tick < last * room:
            places[tick] = ""  # a label here would run into the one before
        else:
            last = tick
    axes.set_xticks(ticks, [places[tick] for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(low, high)


def _label_lines(
    axes: Axes, points: Sequence[Point], labels: Sequence[str], look: Mapping[str, Look], line: float
) -> None:
    """Names to the right of the plot, lines of text ``line`` high, each joined to the end of its curve."""
    ends = {label: max((p for p in points if p.row.label == label), key=lambda p: p.kept) for label in labels}
    low, high = axes.get_ylim()
    heights = [(ends[label].row.metrics["psnr"].mean - low) / (high - low) for label in labels]
    places = spread(heights, [line * len(broken(label)) for label in labels])
    for label, place in zip(labels, places, strict=True):
        end = (ends[label].kept, ends[label].row.metrics["psnr"].mean)
        arrow = {"arrowstyle": "-", "color": GRID, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 4}
        anchor: dict[str, Any] = {"xycoords": "data", "textcoords": axes.transAxes, "annotation_clip": False}
        axes.annotate("", end, (1.03, place), arrowprops=arrow, **anchor)
        own = look[label]
        axes.plot(1.045, place, own.marker, color=own.colour, transform=axes.transAxes, clip_on=False, markersize=5)
        text = "\n".join(broken(label))
        axes.text(1.065, place, text, transform=axes.transAxes, va="center", fontsize=8, linespacing=1.05)


def spread(heights: Sequence[float], sizes: Sequence[float], top: float = 1.0) -> list[float]:
    """Centres as near to ``heights`` as may be, from 0 to ``top``, so that things of these sizes do not overlap.

    Args:
        heights: wanted centres.
        sizes: of the things, in all at most ``top``; beyond that they share the room evenly.
        top: the end of the room.
    """
    shrink = min(1.0, top / sum(sizes)) if sizes else 1.0
    sizes = [size * shrink for size in sizes]
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    places, floor = [0.0] * len(heights), 0.0
    for index in order:
        places[index] = max(heights[index], floor + sizes[index] / 2)
        floor = places[index] + sizes[index] / 2
    ceiling = top
    for index in reversed(order):
        places[index] = min(places[index], ceiling - sizes[index] / 2)
        ceiling = places[index] - sizes[index] / 2
    return places


def broken(label: str) -> list[str]:
    """A method's name in lines of about ``_LABEL_WIDTH`` characters, broken after its separators."""
    lines = [""]
    for piece in re.findall(r"[^:,]+[:,]?", label):
        if lines[-1] and len(lines[-1]) + len(piece) > _LABEL_WIDTH:
            lines.append("")
        lines[-1] += piece
    return lines


@dataclass(frozen=True)
class Panel:
    """One table of shares.

    Args:
        title: over it.
        rows: names of its lines.
        columns: names of its columns.
        values: ``values[row][column]``, 0 to 1; ``None`` where there is none.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]


def share_tables(panels: Sequence[Panel], label: str) -> Figure:
    """Heat maps below each other, of one scale of colours, every cell with its percentage.

    Args:
        panels: at least one.
        label: what the numbers are.
    """
    lines = [max(len(broken(row)) for row in panel.rows) for panel in panels]
    heights = [0.45 + len(panel.rows) * max(0.2, 0.14 * most) for panel, most in zip(panels, lines, strict=True)]
    figure = new_figure(WIDTH, sum(heights) + 0.3)
    known = [value for panel in panels for row in panel.values for value in row if value is not None]
    low = min(known, default=0.0)
    all_axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, panel in zip(all_axes, panels, strict=True):
        numbers = [[float("nan") if value is None else value for value in row] for row in panel.values]
        heat_map(axes, numbers, low, 1)
        axes.invert_yaxis()
        axes.set_title(panel.title)
        axes.set_xticks(range(len(panel.columns)), panel.columns)
        axes.set_yticks(range(len(panel.rows)), ["\n".join(broken(row)) for row in panel.rows], fontsize=7.5)
        for place, row in enumerate(panel.values):
            for column, value in enumerate(row):
                _write_share(axes, column, place, value, low)
    figure.supxlabel(label, fontsize=8.5)
    return figure


def _write_share(axes: Axes, column: int, row: int, value: float | None, low: float) -> None:
    if value is None:
        axes.text(column, row, "–", ha="center", va="center", fontsize=7, color=SOFT)
        return
    shade = "black" if value - low > 0.55 * (1 - low) else "white"
    axes.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=shade)


def heat_map(axes: Axes, values: Sequence[Sequence[float]], low: float | None, high: float | None) -> Any:
    """A heat map without frame and tick marks, the first row at the bottom.

    Returns:
        What a colour bar wants.
    """
    from matplotlib.ticker import MaxNLocator

    image = axes.imshow(values, cmap=MAP, vmin=low, vmax=high, aspect="auto", origin="lower", interpolation="nearest")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))  # layers and heads are whole
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return image
