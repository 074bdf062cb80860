"""The page of a run: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from importlib import resources
from pathlib import Path
from string import Template

from scalekv.errors import InvalidInput
from scalekv.evaluation.report.contents import Contents
from scalekv.evaluation.report.figures import Illustration, illustrations
from scalekv.evaluation.report.markup import Markup, joined, tag
from scalekv.evaluation.report.plots import points_of
from scalekv.evaluation.report.style import check_plotting, marker_path
from scalekv.evaluation.report.table import results_table
from scalekv.evaluation.store import RunFolder
from scalekv.files import replacing
from scalekv.planning import format_bytes

TABLE = "All results"
_FIRST = "Fidelity against bytes"


def write_report(run: RunFolder, path: Path) -> tuple[Contents, list[Path]]:
    """Write the page of a run, finished or not, and its figures as PNG files beside it.

    Args:
        run: the run.
        path: of the page; the figures are called ``STEM-fidelity.png`` and so on.

    Returns:
        What the page shows, and the files beside it.

    Raises:
        InvalidInput: matplotlib is not installed, the run has no results or damaged ones, a figure would replace
            another file, or the place cannot be written.
    """
    check_plotting()
    contents = Contents.of(run)
    figures = list(illustrations(contents))
    text = page(contents, figures).encode()
    pictures = {path.with_name(f"{path.stem}-{figure.name}.png"): figure.png for figure in figures}
    _check_free(path, list(pictures))
    with ExitStack() as stack:  # all are whole before the first takes its name
        for target, content in {path: text, **pictures}.items():
            stack.enter_context(replacing(target)).write_bytes(content)
    return contents, list(pictures)


def _check_free(page: Path, pictures: Sequence[Path]) -> None:
    """Figures replace those of an older page, and nothing else."""
    for file in pictures:
        if file.is_dir() or (file.exists() and not page.exists()):
            raise InvalidInput(f"{file} exists, and a figure would replace it; move it away, or choose another --out.")


def page(contents: Contents, figures: Sequence[Illustration]) -> str:
    """The HTML text."""
    sections: dict[str, list[Markup]] = {_FIRST: [], TABLE: []}
    for figure in figures:
        sections.setdefault(figure.heading, []).append(_figure(figure))
    sections[_FIRST].insert(0, _winners(contents))
    sections[TABLE].append(_table(contents))
    title = f"{contents.name}: methods at equal bytes"
    names = list(sections)
    links = (tag("a", name, href=f"#{_anchor(name)}") for name in names)
    body = joined(
        tag("h1", title),
        _facts(contents),
        _notices(contents),
        tag("nav", *links),
        *(tag("section", tag("h2", name, id=_anchor(name)), *sections[name]) for name in names),
    )
    template = (resources.files("scalekv.evaluation.report") / "page.html").read_text(encoding="utf-8")
    return Template(template).substitute(title=joined(title), body=body)


def _facts(contents: Contents) -> Markup:
    details, settings = contents.run.info.details, contents.run.info.settings
    machine, versions = details.get("machine", {}), details.get("versions", {})
    lossless = next(iter(contents.first_results.values()))["lossless_bytes"]
    seeds = sorted({record["seed"] for record in contents.records})
    facts = {
        "measured": f"{len(contents.labels)} methods at {', '.join(contents.budgets)}, {len(contents.prompts)} prompts"
        + (f" at {len(seeds)} seeds" if len(seeds) > 1 else f", seed {seeds[0]}"),
        "against": f"the full cache, same seeds; {format_bytes(lossless)} for {contents.batch_words} "
        f"({settings.get('cache_dtype', settings.get('dtype'))}) is 100 %",
        "schedule": str(contents.schedule),
        "sampling": ", ".join(f"{name} {value}" for name, value in settings.get("generation", {}).items()),
        "machine": ", ".join(str(machine[name]) for name in ("processor", "device", "platform") if machine.get(name)),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "begun": str(details.get("created", "")),
        "command": "; ".join(details.get("commands", [])),
    }
    return tag("dl", *(joined(tag("dt", name), tag("dd", text)) for name, text in facts.items() if text))


def _notices(contents: Contents) -> Markup:
    said = list(contents.missing)
    if contents.geometry is None:
        said.append(
            "Maps of what is held, and memory over time, are left out: run.json does not tell the model's shape."
        )
    if contents.profile is None:
        said.append("Maps of attention are left out: the run had no profile.")
    return tag("aside", *(tag("p", sentence) for sentence in said)) if said else Markup("")


def _winners(contents: Contents) -> Markup:
    """Per budget the best method, and how far the next is behind."""
    lines = []
    for first, second, difference in contents.winners():
        best = first.metrics["psnr"]
        text = f"{first.budget}: {first.label}, {best.mean:.2f} dB ({best.low:.2f}–{best.high:.2f})"
        if second is not None and difference is not None:
            surely = "" if difference.excludes(0) else ", which may be chance"
            text += f"; {difference.mean:.2f} dB ({difference.low:.2f}–{difference.high:.2f}) ahead of {second.label}"
            text += surely
        lines.append(tag("li", text))
    return joined(tag("p", "Highest PSNR at each budget:"), tag("ul", *lines)) if lines else Markup("")


def _table(contents: Contents) -> Markup:
    marks = {label: _mark(contents, label) for label in contents.labels}
    front = {(point.row.label, point.row.budget) for point in points_of(contents.rows) if point.best}
    explained = (
        "Means over prompts; the small figures are 95 % intervals (bootstrap over prompts). The best of each column "
        "at each budget is shaded; ◆ is on the Pareto front of PSNR and bytes kept. Equal is the share of equal "
        f"{contents.word}; kept is the history that later segments can read, peak the most allocated at any moment, "
        f"both measured, for {contents.batch_words}; tokens are held per head and layer."
    )
    return joined(tag("p", explained), results_table(contents.rows, front, marks))


def _mark(contents: Contents, label: str) -> Markup:
    look = contents.look[label]
    path = tag("path", d=marker_path(look), fill=look.colour)
    return tag("svg", path, class_="mark", viewBox="-0.55 -0.55 1.1 1.1", aria_hidden="true")


def _figure(figure: Illustration) -> Markup:
    image = tag("img", src=figure.source, alt=figure.caption, class_=figure.kind or False)
    return tag("figure", tag("div", image, class_="wide", tabindex="0"), tag("figcaption", figure.caption))


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")
