"""Runs for reports, written without drawing: real plans, made-up distances."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scalekv.errors import BudgetError
from scalekv.evaluation import Cell, Grid, RunFolder, Subject, parse_budgets, parse_specs
from scalekv.evaluation.info import RunInfo
from scalekv.evaluation.jobs import FULL
from scalekv.planning import CacheGeometry, CachePlan, Profile, Schedule
from strategies import measured

SCHEDULE = Schedule.from_sides((1, 2, 3, 4, 6))
GEOMETRY = CacheGeometry(6, 4, 8, SCHEDULE, batch=2, guidance=2, element_bytes=4)
MASSES = ("current", "previous", "first", "others")
HOSTILE = "<script>alert(1)</script> & \"quotes\" $body 'a' ünï 猫"


def profile(geometry: CacheGeometry = GEOMETRY) -> Profile:
    random = np.random.default_rng(0)
    shape = (len(geometry.schedule), geometry.layers)
    mass = {name: tuple(map(tuple, random.uniform(0, 1, shape).tolist())) for name in MASSES}
    tables = measured(geometry, 0)
    tables["statistics"] = {**tables["statistics"], **mass}
    return Profile("made up", geometry.layers, geometry.heads, geometry.schedule, **tables)


def made_up_run(
    path: Path,
    policies: str = "scalekv,random,sliding_window",
    budgets: str = "60%,30%",
    prompts: tuple[str, ...] = ("a red cube", HOSTILE, "a bird"),
    *,
    geometry: CacheGeometry = GEOMETRY,
    profile: Profile | None = None,
    change: Callable[[dict[str, Any]], dict[str, Any] | None] = lambda record: record,
) -> RunFolder:
    """A run in ``path``; ``change`` may alter a result or leave it out."""
    grid = Grid(parse_specs([policies]), parse_budgets([budgets]))
    asked = [[cell.spec.label, cell.budget, 0] for cell in grid.cells]
    details = {
        "model": "made-up",
        "commands": ["scalekv evaluate --out run"],
        "asked": asked,
        "geometry": {name: getattr(geometry, name) for name in ("layers", "heads", "head_dim", "element_bytes")},
    }
    settings = {"batch": geometry.batch, "pipeline": "InfinityPipeline", "dtype": "float32", "generation": {}}
    run = RunFolder(path, RunInfo.begin(settings, [Subject(text) for text in prompts], details))
    run.save()
    run.save_profile(profile)
    plans = {cell: _plan(cell, geometry, profile) for cell in grid.cells}
    random = np.random.default_rng(1)
    lines = []
    for index, prompt in enumerate(prompts):
        for cell, plan in plans.items():
            head = {"key": cell.key(index, 0), "policy": cell.spec.name, "label": cell.spec.label}
            place = {"budget": cell.budget, "prompt_index": index, "prompt": prompt, "seed": 0, "picture_seed": index}
            record = change({**head, **place, **_result(cell, plan, random)})
            if record is not None:
                lines.append(json.dumps(record, ensure_ascii=False))
            if index < 2 and record is not None and "infeasible" not in record:
                colour = tuple(random.integers(0, 256, 3).tolist())
                run.save_picture(cell, index, 0, Image.new("RGB", (48, 48), colour))
    (path / "results-0.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return run


def _plan(cell: Cell, geometry: CacheGeometry, profile: Profile | None) -> CachePlan | str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return cell.policy.plan(geometry, profile)
        except BudgetError as error:
            return str(error)


def _result(cell: Cell, plan: CachePlan | str, random: np.random.Generator) -> dict[str, Any]:
    if isinstance(plan, str):
        return {"infeasible": plan}
    later = range(1, len(plan.geometry.schedule))
    share = plan.nominal_bytes / plan.geometry.lossless_bytes
    psnr = None if cell == FULL else 12 + 25 * share + float(random.normal(0, 1))
    bytes_held = [0, *(plan.held_bytes(segment) for segment in later)]
    return {
        **{"identical": psnr is None, "mse": 0.0 if psnr is None else 10 ** (-psnr / 10), "psnr": psnr, "ssim": share},
        "agreement": [1.0, *(float(random.uniform(0.5, 1)) for _ in later)],
        **{"batch": plan.geometry.batch, "schedule": plan.geometry.schedule.key},
        **{"lossless_bytes": plan.geometry.lossless_bytes, "limit_bytes": plan.limit_bytes},
        **{"nominal_bytes": plan.nominal_bytes, "kept_bytes": plan.nominal_bytes},
        **{"peak_bytes": plan.peak_bytes, "measured_peak_bytes": plan.peak_bytes},
        **{"tokens": plan.mean_tokens, "attention_flops": plan.attention_flops},
        **{"segment_bytes": bytes_held, "seconds": 1.5},
    }


def only(*labels: str) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
    """Leaves out what is not of the first prompt, but for these methods."""
    return lambda record: record if record["prompt_index"] == 0 or record["label"] in labels else None


def sources(html: str) -> Iterator[str]:
    """Everything that a page refers to."""
    import re

    yield from re.findall(r"""(?:src|href|action|poster|data)\s*=\s*["']?([^"'\s>]*)""", html)
    yield from re.findall(r"url\(([^)]*)\)", html)
    yield from re.findall(r"@import[^;]*", html)
