"""From prompts to a profile with a whole pipeline."""

from __future__ import annotations

import pytest

from scalekv import ScaleKV, calibrate
from scalekv.errors import InvalidInput
from scalekv.pipelines.tiny import tiny_pipeline

PROMPTS = ["a red cube", "two spheres"]


@pytest.fixture(scope="module")
def pipe():
    made = tiny_pipeline()
    made.set_progress_bar_config(disable=True)
    return made


def test_a_profile_of_the_drawn_schedule_that_plans(pipe):
    done = []
    profile = calibrate(pipe, PROMPTS, name="tiny", progress=lambda *counts: done.append(counts))
    assert done == [(1, 2), (2, 2)]
    assert profile.schedule == pipe("a", output_type="latent").schedule
    assert profile.details["prompts"] == 2
    plan = ScaleKV(budget="20%").plan(pipe.cache_geometry(profile.schedule), profile)
    ratios = [max(row) / min(row) for row in zip(*(groups[0].capacity[1:] for groups in plan.layers), strict=True)]
    assert max(ratios) > 1.5


def test_calibration_repeats(pipe):
    first, again = (calibrate(pipe, PROMPTS, name="tiny", seed=3) for _ in range(2))
    assert first == again
    assert calibrate(pipe, PROMPTS, name="tiny", seed=4).statistics != first.statistics


@pytest.mark.parametrize(
    ("prompts", "options"),
    [
        ([], {}),
        ("a red cube", {}),
        (PROMPTS, {"queries": 0}),
        (PROMPTS, {"top": 0}),
        (PROMPTS, {"output_type": "pil"}),
        (PROMPTS, {"kv_cache": ScaleKV()}),
        (PROMPTS, {"generator": None}),
    ],
)
def test_nonsense_is_refused_in_one_sentence(pipe, prompts, options):
    with pytest.raises(InvalidInput) as caught:
        calibrate(pipe, prompts, name="tiny", **options)
    assert "\n" not in str(caught.value)
