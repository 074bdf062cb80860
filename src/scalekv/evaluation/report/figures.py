"""The figures of a report, in the order of the page, each with a picture file of its own."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scalekv.evaluation.jobs import FULL, Cell
from scalekv.evaluation.report import maps, plots
from scalekv.evaluation.report.contents import Contents
from scalekv.evaluation.report.sheet import Row as SheetRow
from scalekv.evaluation.report.sheet import Sheet, Tile
from scalekv.evaluation.report.style import as_png, as_svg, house_style
from scalekv.planning import format_bytes
from scalekv.policies.specs import PolicySpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHEETS = 4
"""Prompts whose pictures are on the page."""

_TILE = 224
_JPEG_QUALITY = 90


@dataclass(frozen=True)
class Illustration:
    """One figure, ready for the page and as a file.

    Args:
        name: of its file, without the stem of the page.
        heading: of the section it belongs to.
        caption: under it.
        source: data URI for the page.
        png: content of its file.
        kind: class of the picture on the page: ``""``, ``"small"`` or ``"sheet"``.
    """

    name: str
    heading: str
    caption: str
    source: str
    png: bytes
    kind: str = ""


def illustrations(contents: Contents) -> Iterator[Illustration]:
    """Every figure that the results allow."""
    with house_style():
        yield from _results(contents)
        yield from _sheets(contents)
        yield from _maps(contents)


def _results(contents: Contents) -> Iterator[Illustration]:
    points = [point for point in plots.points_of(contents.rows) if not point.row.identical]
    if points:
        yield _plot(
            "fidelity",
            "Fidelity against bytes",
            f"PSNR against the full cache, mean over prompts with 95 % intervals, at the bytes of history kept for "
            f"{contents.batch_words}. Rings and the pale steps mark the Pareto front: no method is better for fewer "
            f"bytes. Methods whose every picture is the full cache's bit for bit are left out: their PSNR is infinite.",
            plots.fidelity(points, contents.look),
        )
    names = [str(segment) for segment in contents.schedule]
    panels = [
        plots.Panel(f"budget {budget}", list(lines), names, list(lines.values()))
        for budget in contents.budgets
        if (lines := {label: found for label in contents.labels if (found := contents.agreement(label, budget))})
    ]
    if panels:
        yield _plot(
            "agreement",
            f"Equal {contents.word} per segment",
            f"Percent of the {contents.word} of each segment that equal those of the full cache, mean over pictures."
            + (" Two runs that agree on nothing still share about half of their bits." * (contents.word == "bits")),
            plots.share_tables(panels, f"{contents.word} equal to the full cache's, %"),
        )
    yield from _following(contents)


def _following(contents: Contents) -> Iterator[Illustration]:
    rows = [row for row in (contents.full, *contents.rows) if row is not None and row.following_overall]
    categories = list(dict.fromkeys(name for row in rows for name in row.following))
    panels = []
    for budget in contents.budgets:
        lines = {
            row.label: [
                *(row.following[name].mean if name in row.following else None for name in categories),
                row.following_overall.mean if row.following_overall else None,
            ]
            for row in rows
            if row.budget == budget or row.label == FULL.spec.label
        }
        if len(lines) > 1:
            titles = [name.replace(" ", "\n") for name in (*categories, "overall")]
            panels.append(plots.Panel(f"budget {budget}", list(lines), titles, list(lines.values())))
    if panels:
        yield _plot(
            "following",
            "Prompts followed",
            "Percent of pictures that show what was asked, as the reader of the built-in world sees them, by category; "
            "overall is the mean of the categories.",
            plots.share_tables(panels, "pictures that follow their prompt, %"),
        )


def _sheets(contents: Contents) -> Iterator[Illustration]:
    seed = min(record["seed"] for record in contents.records)
    indices = sorted({record["prompt_index"] for record in contents.records})
    shown = 0
    for index in indices:
        reference = contents.run.picture(FULL, index, seed)
        rows = tuple(_sheet_row(contents, label, index, seed) for label in contents.labels)
        if reference is None or not any(tile.picture for row in rows for tile in row.tiles):
            continue
        prompt = contents.run.info.subjects[index].text
        title = (prompt, f"{contents.name}, seed {seed + index}", "Under each picture: PSNR and the bytes kept.")
        columns = tuple(f"budget {budget}" for budget in contents.budgets)
        sheet = Sheet(rows, columns, Tile(reference, ("full cache",)), title, most_pixels=_TILE).draw()
        png, jpeg = io.BytesIO(), io.BytesIO()
        sheet.save(png, format="PNG")
        sheet.save(jpeg, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)
        source = _data_uri("image/jpeg", jpeg.getvalue())
        yield Illustration(f"pictures-{index}", "Pictures", prompt, source, png.getvalue(), "sheet")
        shown += 1
        if shown == SHEETS:
            return


def _sheet_row(contents: Contents, label: str, index: int, seed: int) -> SheetRow:
    tiles = []
    for budget in contents.budgets:
        cell = Cell(PolicySpec.parse(label), budget)
        record = contents.by_key.get(cell.key(index, seed))
        if record is None or "infeasible" in record:
            tiles.append(Tile(None, reason="not measured yet" if record is None else record["infeasible"]))
            continue
        picture = contents.run.picture(cell, index, seed)
        quality = "identical" if record["identical"] else f"{record['psnr']:.1f} dB"
        kept = format_bytes(round(record["kept_bytes"]))
        tiles.append(Tile(picture, (quality, kept), "" if picture else "picture not kept"))
    return SheetRow(tuple(tiles), label)


def _maps(contents: Contents) -> Iterator[Illustration]:
    if contents.plans:
        at = f"at a budget of {contents.mapped_budget}, as planned"
        left_out = [label for label in contents.labels if label not in contents.plans]
        unmet = f" Left out, because they cannot meet that budget: {', '.join(left_out)}." if left_out else ""
        squares = " Squares mark drafter layers." if any(contents.drafters.values()) else ""
        yield _plot(
            "held",
            "What is held where",
            f"Share of the history so far that each layer (upwards) holds when a segment (named by its side) begins, "
            f"mean over heads, {at}.{squares}{unmet}",
            maps.held_maps(contents.plans, contents.drafters),
            "" if len(contents.plans) > 1 else "small",
        )
        unequal = {label: plan for label, plan in contents.plans.items() if maps.has_unequal_heads(plan)}
        if unequal:
            yield _plot(
                "heads",
                "What is held where",
                f"Share of the history that each head finds at the last segment, {at}, for methods whose heads differ; "
                f"dots mark the role named under the map.",
                maps.head_maps(unequal),
                "" if len(unequal) > 1 else "small",
            )
    if contents.profile is not None and maps.attention_tables(contents.profile):
        yield _plot(
            "attention",
            "What attention looks at",
            f"Share of attention per layer and segment, mean over heads, queries and prompts, and other tables of the "
            f"profile that methods were planned with ({contents.profile.model}).",
            maps.attention_maps(contents.profile),
        )
    if contents.plans:
        yield _plot(
            "memory",
            "Memory over time",
            f"Bytes of the cache of {contents.batch_words} at a budget of {contents.mapped_budget}, layer by layer: "
            f"planned with all scratch, planned history, and what was measured (the history when each segment began, "
            f"and the peak).",
            maps.memory_over_time(contents.plans, contents.measured, contents.look),
            "" if len(contents.plans) > 1 else "small",
        )


def _plot(name: str, heading: str, caption: str, figure: Figure, kind: str = "") -> Illustration:
    return Illustration(
        name, heading, caption, _data_uri("image/svg+xml", as_svg(figure).encode()), as_png(figure), kind
    )


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
