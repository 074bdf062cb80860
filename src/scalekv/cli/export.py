"""``scalekv export``: prompts and pictures of a run in the layouts that other evaluators read."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from scalekv.cli.files import check_folder, expanded
from scalekv.cli.options import Json, Quiet, option
from scalekv.cli.output import Output
from scalekv.cli.prompts import prompts_from
from scalekv.errors import InvalidInput


def export(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A run of 'scalekv evaluate', or prompts as its --prompts takes them."),
    ],
    out: Annotated[str, typer.Argument(metavar="FOLDER", help="A new folder.")],
    layout: Annotated[
        str,
        option(
            "--layout",
            metavar="NAME",
            help="geneval, dpg (DPG-Bench), hpsv2, fid (a flat folder of PNGs for every method), or npz (ImageNet).",
        ),
    ],
    policy: Annotated[
        str | None, option("--policy", metavar="NAME", help="Only this method, as it was evaluated. Default all.")
    ] = None,
    budget: Annotated[
        str | None, option("--budget", metavar="SHARE", help="Only this budget. Default all; the full cache always.")
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Write a run for other evaluators.

    The prompts, and under pictures/METHOD/BUDGET the pictures, named and sorted as GenEval, DPG-Bench, HPSv2, FID tools
    or the ImageNet evaluator expect. A run needs --save-pictures for it.
    """
    output, place, run_folder = Output(json=json, quiet=quiet), expanded(out), expanded(source)
    check_folder(place.absolute().parent, str(place))
    with output.guarded():
        from scalekv.evaluation.export import export as write
        from scalekv.evaluation.gallery import galleries
        from scalekv.evaluation.store import RunFolder

        if (run_folder / "run.json").exists():
            run = RunFolder.open(run_folder)
            subjects: Any = run.info.subjects
            chosen = [one for one in galleries(run) if _fits(one.cell, policy, budget)]
            if not any(one.cell.spec.name != "full" for one in chosen) and (policy or budget):
                raise InvalidInput(f"{source} has no results of {policy or 'any method'} at {budget or 'any budget'}.")
        else:
            subjects, chosen = prompts_from(source), []
        notes = write(subjects, chosen, layout, place)
    for note in notes:
        output.note(note)
    folders = [str(place / "pictures" / one.cell.folder) for one in chosen]
    pictures = sum(len(subjects) * len(one.seeds) for one in chosen)
    output.say(f"{place}: {len(subjects)} prompts, {pictures} pictures of {len(chosen)} methods and budgets")
    told = {"folder": str(place), "layout": layout, "prompts": len(subjects), "pictures": folders, "notes": notes}
    output.result(told)


def _fits(cell: Any, policy: str | None, budget: str | None) -> bool:
    from scalekv.evaluation.jobs import FULL
    from scalekv.planning import Budget
    from scalekv.policies.specs import PolicySpec

    if cell == FULL:
        return True
    same_policy = policy is None or PolicySpec.parse(policy) == cell.spec
    return same_policy and (budget is None or str(Budget.parse(budget)) == cell.budget)
