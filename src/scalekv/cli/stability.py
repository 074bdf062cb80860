"""``scalekv stability``: how far profiles of one model agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Annotated, Any

import typer

from scalekv.cli.options import DEFAULT_BUDGET, Json, option
from scalekv.cli.output import Output
from scalekv.errors import InvalidInput
from scalekv.planning import Budget, Profile, read_profile

_WORDS = {
    "drafters": "ScaleKV's drafters at {budget}",
    "contextual_heads": "contextual heads (a quarter, HACK)",
    "heatkv_heads": "most attended heads at {budget} (HeatKV)",
}


def stability(
    profiles: Annotated[
        list[str], typer.Argument(metavar="PROFILE...", help="Two or more files of 'scalekv calibrate'.")
    ],
    budget: Annotated[
        str, option("--budget", metavar="SHARE", help="Budget that drafters are chosen for: 10%, or '650 tokens'.")
    ] = DEFAULT_BUDGET,
    json: Json = False,
) -> None:
    """Compare profiles of one model, measured with other prompts or with more of them.

    Prints the mean rank correlation of every table, and how much of what methods decide by it is the same.
    """
    output = Output(json=json)
    if len(profiles) < 2:
        raise InvalidInput(f"There is one profile, {profiles[0]}; give two or more to compare.")
    known = {name: read_profile(name) for name in profiles}
    if len(known) < len(profiles):
        raise InvalidInput("One profile is named twice; give different ones.")
    limit = str(Budget.parse(budget))
    with output.guarded():
        pairs = [_compared(known, pair, limit) for pair in combinations(known, 2)]
    _report(output, known, pairs, limit)
    described = [{"profile": name, **_runs(profile)} for name, profile in known.items()]
    output.result({"profiles": described, "budget": limit, "pairs": pairs})


def _compared(known: Mapping[str, Profile], pair: tuple[str, str], budget: str) -> dict[str, Any]:
    from scalekv.calibration.stability import overlaps, rank_correlations, shared_pictures

    one, other = (known[name] for name in pair)
    return {
        "profiles": list(pair),
        "shared_pictures": shared_pictures(one, other),
        "rank_correlations": rank_correlations(one, other),
        "overlaps": overlaps(one, other, budget),
    }


def _runs(profile: Profile) -> dict[str, Any]:
    return {"model": profile.model, "prompts": profile.details.get("prompts"), "schedule": profile.schedule.key}


def _report(output: Output, known: Mapping[str, Profile], pairs: Sequence[Mapping[str, Any]], budget: str) -> None:
    counts = [str(profile.details.get("prompts", "?")) for profile in known.values()]
    output.table(("profile", "prompts"), list(zip(known, counts, strict=True)))
    shared = sum(1 for pair in pairs if pair["shared_pictures"])
    if shared:
        output.warn(f"{shared} of {len(pairs)} pairs share prompts drawn with the same seed, and agree more for it.")
    output.say()
    for key, title in (("rank_correlations", "rank correlation"), ("overlaps", "in common")):
        rows = _rows([pair[key] for pair in pairs], budget)
        if not rows:
            continue
        if len(pairs) == 1:
            output.table((title, ""), [row[:2] for row in rows])
        else:
            output.table((title, "mean", "least"), rows)
        output.say()


def _rows(found: Sequence[Mapping[str, float]], budget: str) -> list[tuple[str, str, str]]:
    """Name, mean and least over the pairs that have it."""
    rows = []
    for name in dict.fromkeys(name for one in found for name in one):
        values = [one[name] for one in found if name in one]
        words = _WORDS.get(name, name).format(budget=budget)
        rows.append((words, f"{fmean(values):.3f}", f"{min(values):.3f}"))
    return rows
