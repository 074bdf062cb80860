"""A cache in another type than the weights: bytes, exactness, and where the setting goes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from scalekv import Full, Policy, ScaleKV, SlidingWindow, calibrate
from scalekv.errors import InvalidInput
from scalekv.evaluation import Grid, RunFolder, parse_budgets, parse_specs
from scalekv.evaluation.request import Request
from scalekv.evaluation.runner import evaluate
from scalekv.evaluation.subjects import Subject
from scalekv.models.infinity import InfinityScheduler
from scalekv.pipelines import InfinityPipeline, VARPipeline, load_pipeline, tiny_pipeline, tiny_var_pipeline
from scalekv.policies import Hack

SIDES = (1, 2, 3, 4)
FAMILIES = ("infinity", "var")
POLICIES: list[Policy] = [
    SlidingWindow(),
    ScaleKV(scorer="projection", pooling="max"),
    Hack(budget="30%"),
    SlidingWindow(codec="int8"),
]


@pytest.fixture(scope="module")
def tiny() -> dict[str, Any]:
    made = tiny_pipeline()
    scheduler = InfinityScheduler(schedule=[[side, side] for side in SIDES], extent=[64, 64], temperature=0.5)
    infinity = InfinityPipeline(**{**made.components, "scheduler": scheduler})
    pipelines = {"infinity": infinity, "var": tiny_var_pipeline(sides=SIDES)}
    for pipeline in pipelines.values():
        pipeline.set_progress_bar_config(disable=True)
    return pipelines


def held_in(pipeline: Any, dtype: Any) -> Any:
    """The same networks with a cache in ``dtype``."""
    other = type(pipeline).from_pipe(pipeline)
    other.set_progress_bar_config(disable=True)
    other.cache_dtype = dtype
    return other


def draw(pipeline: Any, policy: Policy | None = None, **options: Any) -> Any:
    generator = [torch.Generator().manual_seed(3)]
    return pipeline(["207"], generator=generator, kv_cache=policy, output_type="latent", **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_the_bytes(family: str, dtype: torch.dtype, tiny: dict[str, Any]) -> None:
    wide, narrow = tiny[family], held_in(tiny[family], dtype)
    assert (narrow.attention_dtype, narrow.weights_dtype) == (dtype, torch.float32)
    schedule = narrow.scheduler.segments if family == "var" else narrow.scheduler.resolve().schedule
    plans = [Full().plan(pipeline.cache_geometry(schedule)) for pipeline in (wide, narrow)]
    reports = [draw(pipeline).cache for pipeline in (wide, narrow)]
    for name in ("nominal_bytes", "peak_bytes", "limit_bytes"):
        assert 2 * getattr(plans[1], name) == getattr(plans[0], name), name
    for name in ("lossless_bytes", "nominal_bytes", "peak_bytes", "kept_bytes", "measured_peak_bytes"):
        assert 2 * getattr(reports[1], name) == getattr(reports[0], name), name
    assert reports[1].peak_bytes == plans[1].peak_bytes


@pytest.mark.parametrize("policy", [Full(), *POLICIES], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_allocated_is_planned(family: str, policy: Policy, tiny: dict[str, Any]) -> None:
    report = draw(held_in(tiny[family], torch.bfloat16), policy).cache
    assert (report.kept_bytes, report.measured_peak_bytes) == (report.nominal_bytes, report.peak_bytes)
    assert report.kept_bytes <= report.limit_bytes


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_at_100_percent_every_policy_is_the_full_cache(family: str, policy: Policy, tiny: dict[str, Any]) -> None:
    narrow = held_in(tiny[family], torch.bfloat16)
    assert torch.equal(draw(narrow).images, draw(narrow, replace(policy, budget="100%")).images)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_type_of_the_weights_changes_nothing(family: str, tiny: dict[str, Any]) -> None:
    assert torch.equal(draw(tiny[family]).images, draw(held_in(tiny[family], torch.float32)).images)


def test_a_wider_cache_under_narrow_weights() -> None:
    narrow = tiny_var_pipeline(sides=SIDES).to(torch.bfloat16)
    narrow.set_progress_bar_config(disable=True)
    wide = held_in(narrow, "float32")
    assert (wide.attention_dtype, wide.weights_dtype) == (torch.float32, torch.bfloat16)
    assert draw(wide).cache.kept_bytes == 2 * draw(narrow).cache.kept_bytes


def test_the_setting_is_carried_but_not_saved(tmp_path: Path, tiny: dict[str, Any]) -> None:
    pipeline = held_in(tiny["var"], "torch.bfloat16")
    assert VARPipeline.from_pipe(pipeline).cache_dtype == torch.bfloat16
    assert InfinityPipeline.from_pipe(held_in(tiny["infinity"], torch.float16)).cache_dtype == torch.float16
    pipeline.save_pretrained(tmp_path / "saved")
    assert "cache_dtype" not in (tmp_path / "saved" / "model_index.json").read_text()
    assert load_pipeline(tmp_path / "saved").cache_dtype is None
    again = load_pipeline(tmp_path / "saved", cache_dtype=torch.bfloat16)
    again.set_progress_bar_config(disable=True)
    assert (again.cache_dtype, again.transformer.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(draw(again).images, draw(pipeline).images)
    again.cache_dtype = None
    assert torch.equal(draw(again).images, draw(tiny["var"]).images)


@pytest.mark.parametrize("wrong", [torch.float64, torch.int8, torch.float8_e4m3fn, "int8", "bf", "", 16, float])
def test_other_types_are_refused(wrong: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    pipeline = held_in(tiny["var"], torch.bfloat16)
    with pytest.raises(InvalidInput, match=r"^cache_dtype is .*float32, bfloat16 or float16; choose one of these, or"):
        pipeline.cache_dtype = wrong
    assert pipeline.cache_dtype == torch.bfloat16
    with pytest.raises(InvalidInput, match="^cache_dtype is "):
        load_pipeline(tmp_path / "nowhere", cache_dtype=wrong)


def test_calibration_says_what_it_measured(tiny: dict[str, Any]) -> None:
    wide, narrow, again = (
        calibrate(pipeline, [207], name="tiny", queries=4)
        for pipeline in (tiny["var"], held_in(tiny["var"], "bfloat16"), held_in(tiny["var"], "float32"))
    )
    assert (narrow.details["dtype"], narrow.details["cache_dtype"]) == ("float32", "bfloat16")
    assert narrow.statistics != wide.statistics
    assert (again.details, again.statistics) == (wide.details, wide.statistics)


def test_a_run_tells_both_types_and_goes_on_with_them_only(tiny: dict[str, Any], tmp_path: Path) -> None:
    grid = Grid(parse_specs(["random"]), parse_budgets(["50%"]), (0,))
    request = Request(grid, [Subject("207")])
    run = evaluate(held_in(tiny["var"], torch.bfloat16), request, tmp_path / "run")
    told = json.loads((run.path / "run.json").read_text())
    assert (told["settings"]["dtype"], told["settings"]["cache_dtype"]) == ("float32", "bfloat16")
    assert told["geometry"]["element_bytes"] == 2
    (full,) = (record for record in RunFolder.open(run.path).records() if record["policy"] == "full")
    assert full["kept_bytes"] == draw(held_in(tiny["var"], torch.bfloat16)).cache.kept_bytes
    with pytest.raises(InvalidInput, match="cache_dtype = bfloat16, not float32"):
        evaluate(tiny["var"], request, tmp_path / "run")
