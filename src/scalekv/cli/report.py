"""``scalekv report``: the results of an evaluation as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scalekv.cli.files import check_report_file, expanded
from scalekv.cli.options import OUTPUT, Json, Quiet, option
from scalekv.cli.output import Output

PAGE = "report.html"


def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of 'scalekv evaluate', finished or not.")],
    out: Annotated[
        Path | None,
        option("--out", "-o", panel=OUTPUT, metavar="FILE", help=f"The page, a .html name. Default {PAGE} in RUN."),
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Show the results of an evaluation.

    Writes one page that needs nothing else, and its figures as PNGs beside it. What an unfinished run lacks is said.
    """
    output = Output(json=json, quiet=quiet)
    from scalekv.evaluation.report.style import check_plotting
    from scalekv.evaluation.store import RunFolder

    folder = expanded(run)
    found = RunFolder.open(folder)
    path = folder / PAGE if out is None else expanded(out)
    check_report_file(path)
    check_plotting()
    with output.guarded():
        from scalekv.evaluation.report.page import write_report

        contents, files = write_report(found, path)
        for sentence in contents.missing:
            output.note(sentence)
        methods, prompts = len(contents.labels), len(contents.prompts)
        output.say(f"{path}  {methods} methods, {prompts} prompts; {len(files)} figures as PNG beside it")
        output.result(
            {
                "page": str(path),
                "figures": [str(file) for file in files],
                "methods": contents.labels,
                "budgets": contents.budgets,
                "prompts": prompts,
                "missing": contents.missing,
            }
        )
