"""VAR under every method of the registry, with a measured profile: the invariants that methods promise to any model."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from scalekv import calibrate
from scalekv.errors import BudgetError
from scalekv.pipelines import VARPipeline, tiny_var_pipeline
from scalekv.planning import Profile
from scalekv.policies import POLICIES, Full

SIDES = (1, 2, 3, 4, 6)
METHODS = sorted(name for name in POLICIES if name != "full")


@pytest.fixture(scope="module")
def pipeline() -> VARPipeline:
    made = tiny_var_pipeline(depth=3, sides=SIDES)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def profile(pipeline: VARPipeline) -> Profile:
    return calibrate(pipeline, ["207", "tabby cat", "3"], name="tiny-var", queries=16, top=8)


def draw(pipeline: VARPipeline, *classes: int, **options: Any) -> Any:
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(classes))]
    return pipeline(list(classes), generator=generators, output_type="np", **options)


@pytest.mark.parametrize("name", METHODS)
def test_all_of_the_cache_is_the_full_cache_bit_for_bit(pipeline: VARPipeline, profile: Profile, name: str) -> None:
    full, whole = (
        draw(pipeline, 207, 3, kv_cache=policy, profile=profile) for policy in (Full(), POLICIES[name](budget="100%"))
    )
    assert np.array_equal(full.images, whole.images)
    assert all(map(torch.equal, full.drawn, whole.drawn))


@pytest.mark.parametrize(("budget", "guidance"), [("70%", 1.5), ("40%", 0.0), ("20%", 1.5)])
@pytest.mark.parametrize("name", METHODS)
def test_allocated_is_planned(pipeline: VARPipeline, profile: Profile, name: str, budget: str, guidance: float) -> None:
    options = {"guidance_scale": guidance, "profile": profile}
    try:
        report = draw(pipeline, 207, 3, kv_cache=POLICIES[name](budget=budget), **options).cache
    except BudgetError as error:  # whole segments need some room; the refusal names a budget that has it
        named = re.search(r"here (\d+) B; the smallest feasible .* is (\d+) B", str(error))
        assert named is not None
        assert int(named[1]) < int(named[2])
        report = draw(pipeline, 207, 3, kv_cache=POLICIES[name](budget=int(named[2])), **options).cache
    assert report.kept_bytes == report.nominal_bytes <= report.limit_bytes
    assert report.measured_peak_bytes == report.peak_bytes


@pytest.mark.parametrize("name", METHODS)
def test_same_seed_same_picture(pipeline: VARPipeline, profile: Profile, name: str) -> None:
    policy = POLICIES[name](budget="50%")
    first, second = (draw(pipeline, 207, kv_cache=policy, profile=profile) for _ in range(2))
    assert np.array_equal(first.images, second.images)
