"""Maps of layers, segments and heads: what is held where, what attention looks at, and memory over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scalekv.evaluation.report.plots import WIDTH, broken, heat_map
from scalekv.evaluation.report.style import GRID, INK, SOFT, Look, new_figure
from scalekv.planning import CachePlan, HeadGroup, Profile, Schedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3
_BAR: dict[str, Any] = {"location": "bottom", "shrink": 0.4, "aspect": 40, "fraction": 0.06}
_MASSES = {
    "current": "current segment",
    "previous": "previous segment",
    "first": "first segment",
    "others": "other earlier segments",
}
_TITLES = {
    "asi": "Attention Selectivity Index",
    "window_entropy": "entropy of a window (CAKE)",
    "window_variance": "variance of a window (CAKE)",
    "scale_similarity": "scale similarity (AMS-KV)",
}


def held_maps(plans: Mapping[str, CachePlan], drafters: Mapping[str, Mapping[int, tuple[int, ...]]]) -> Figure:
    """Per method a map of layers and segments: the share of the history so far that is held when a segment begins.

    Args:
        plans: by method, all of one geometry.
        drafters: by method, where there are any: drafter layers by segment, marked by squares.
    """
    schedule = next(iter(plans.values())).geometry.schedule
    later = range(1, len(schedule))
    figure, all_axes = _grid(len(plans), 1.1 + 0.07 * next(iter(plans.values())).geometry.layers)
    for axes, (label, plan) in zip(all_axes, plans.items(), strict=True):
        layers = range(plan.geometry.layers)
        image = heat_map(
            axes, [[plan.layer_tokens(layer, k) / schedule.start(k) for k in later] for layer in layers], 0, 1
        )
        marks = [(k - 1, layer) for k, chosen in drafters.get(label, {}).items() for layer in chosen if k]
        axes.scatter(*_columns(marks), marker="s", s=9, facecolors="none", edgecolors="#d55e00", linewidths=0.9)
        axes.set_title("\n".join(broken(label)), fontsize=8.5)
        _segment_ticks(axes, schedule, first=1)
    _name_axes(all_axes, "segment", "layer")
    figure.colorbar(image, ax=all_axes, label="share of the history so far", **_BAR)
    return figure


def head_maps(plans: Mapping[str, CachePlan]) -> Figure:
    """Per method a map of layers and heads: the share of the history that the last segment finds, roles marked.

    Args:
        plans: by method; at least one whose heads differ (see :func:`has_unequal_heads`).
    """
    figure, all_axes = _grid(len(plans), 1.1 + 0.07 * next(iter(plans.values())).geometry.layers)
    shares = {label: _head_shares(plan) for label, plan in plans.items()}
    most = max(share for table in shares.values() for row in table for share in row)
    for axes, (label, plan) in zip(all_axes, plans.items(), strict=True):
        image = heat_map(axes, shares[label], 0, most or 1)
        rows = ["conditional, then unconditional rows"] if plan.geometry.parts > 1 else []
        axes.set_title("\n".join([*broken(label), *rows]), fontsize=8.5)
        _mark_roles(axes, plan)
    _name_axes(all_axes, "head", "layer")
    figure.colorbar(image, ax=all_axes, label="share of the history held", **_BAR)
    return figure


def _head_shares(plan: CachePlan) -> list[list[float]]:
    """``[layer][head]``: the share of the history that the last segment finds."""
    last = len(plan.geometry.schedule) - 1
    whole = max(1, plan.geometry.schedule.start(last))
    return [[_group_of(groups, head).capacity[last] / whole for head in _heads(plan)] for groups in plan.layers]


def has_unequal_heads(plan: CachePlan) -> bool:
    """Whether heads of one layer hold differently, or have different roles."""
    return any(len({(group.capacity, group.role) for group in groups}) > 1 for groups in plan.layers)


def _mark_roles(axes: Axes, plan: CachePlan) -> None:
    """A dot on the heads of the first role by name; a note under the map says which."""
    roles = sorted({group.role for groups in plan.layers for group in groups if group.role})
    if not roles:
        return
    marked = [
        (head, layer)
        for layer, groups in enumerate(plan.layers)
        for group in groups
        if group.role == roles[0]
        for head in group.heads
    ]
    axes.scatter(*_columns(marked), marker="o", s=7, color="#d55e00")
    axes.set_xlabel(f"dots: {roles[0]}" + (f", others: {', '.join(roles[1:])}" if roles[1:] else ""), fontsize=7.5)


def attention_maps(profile: Profile) -> Figure:
    """Where attention goes, per layer and segment: mass on parts of the sequence, and other tables of the profile."""
    names = attention_tables(profile)
    figure, all_axes = _grid(len(names), 1.2 + 0.07 * profile.layers)
    for axes, name in zip(all_axes, names, strict=True):
        table = profile.statistics[name]
        values = [[row[layer] for row in table[1:]] for layer in range(profile.layers)]
        image = heat_map(axes, values, *((0, 1) if name in _MASSES else (None, None)))
        axes.set_title(_MASSES.get(name) or _TITLES[name], fontsize=8.5)
        _segment_ticks(axes, profile.schedule, first=1)
        bar = figure.colorbar(image, ax=axes, aspect=14, pad=0.03)
        bar.ax.tick_params(labelsize=6.5, length=2)
    _name_axes(all_axes, "segment", "layer")
    return figure


def attention_tables(profile: Profile) -> list[str]:
    """The tables of a profile that :func:`attention_maps` shows."""
    return [name for name in (*_MASSES, *_TITLES) if name in profile.statistics]


def memory_over_time(
    plans: Mapping[str, CachePlan], measured: Mapping[str, Mapping[str, object]], look: Mapping[str, Look]
) -> Figure:
    """Per method the bytes of the cache over a run: planned at every layer of every segment, and measured.

    Args:
        plans: by method, all of one geometry and budget.
        measured: by method one result, with ``segment_bytes`` and ``measured_peak_bytes``.
        look: of every method.
    """
    geometry = next(iter(plans.values())).geometry
    unit, size = _unit(max(plan.peak_bytes for plan in plans.values()))
    figure, all_axes = _grid(len(plans), 1.55)
    for axes, (label, plan) in zip(all_axes, plans.items(), strict=True):
        moments = list(plan.moments())
        time = [index / geometry.layers for index in range(len(moments))]
        peaks, held = ([getattr(one, name) / size for one in moments] for name in ("peak", "after"))
        axes.fill_between(time, peaks, color=GRID, step="post", linewidth=0, label="planned, with scratch")
        axes.step(time, held, where="post", color=look[label].colour, linewidth=1.2, label="planned history")
        axes.axhline(plan.limit_bytes / size, color=SOFT, linewidth=0.8, linestyle=":", label="budget")
        _draw_measured(axes, measured.get(label, {}), size)
        axes.set_title("\n".join(broken(label)), fontsize=8.5)
        _segment_ticks(axes, geometry.schedule)
    _name_axes(all_axes, "segment", f"cache, {unit}")
    named = {name: line for axes in all_axes for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=5, fontsize=8)
    return figure


def _draw_measured(axes: Axes, record: Mapping[str, object], size: float) -> None:
    found = record.get("segment_bytes")
    if isinstance(found, Sequence):
        dots: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 2.6, "color": INK, "zorder": 4}
        axes.plot(range(len(found)), [value / size for value in found], **dots, label="measured history")
    peak = record.get("measured_peak_bytes")
    if isinstance(peak, (int, float)):
        axes.axhline(peak / size, color=INK, linewidth=0.8, linestyle="--", label="measured peak")


def _unit(most: float) -> tuple[str, float]:
    return next(((name, size) for name, size in (("GiB", 2.0**30), ("MiB", 2.0**20)) if most >= size), ("KiB", 1024.0))


def _grid(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Axes for ``count`` small plots in columns, row by row; places left over are empty."""
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = new_figure(WIDTH if columns > 1 else WIDTH * 0.6, rows * height + 0.7)
    places = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    flat = [axes for row in places for axes in row]
    for axes in flat[count:]:
        axes.set_visible(False)
    for axes in flat[max(0, count - columns) : count]:
        axes.tick_params(labelbottom=True)
    return figure, flat[:count]


def _name_axes(all_axes: Sequence[Axes], across: str, up: str) -> None:
    columns = min(COLUMNS, len(all_axes))
    for index, axes in enumerate(all_axes):
        if index % columns == 0:
            axes.set_ylabel(up, fontsize=8)
        if index >= len(all_axes) - columns and not axes.get_xlabel():
            axes.set_xlabel(across, fontsize=8)


def _segment_ticks(axes: Axes, schedule: Schedule, first: int = 0) -> None:
    """Segments by their side or, where they are not square, by height and width."""
    square = all(segment.height == segment.width and segment.frames == 1 for segment in schedule)
    names = [str(segment.width if square else segment) for segment in schedule][first:]
    axes.set_xticks(range(len(names)), names, rotation=0 if square else 90, fontsize=6.5)


def _heads(plan: CachePlan) -> range:
    return range(plan.geometry.heads)


def _group_of(groups: Sequence[HeadGroup], head: int) -> HeadGroup:
    return next(group for group in groups if head in group.heads)


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
