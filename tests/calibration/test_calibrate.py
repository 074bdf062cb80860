"""From prompts to a profile with a whole pipeline."""

from __future__ import annotations

import pytest

from scalekv import ScaleKV, calibrate
from scalekv.errors import InvalidInput, ProfileError
from scalekv.pipelines.tiny import tiny_pipeline
from scalekv.pipelines.tiny_var import tiny_var_pipeline
from scalekv.planning import Profile

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


def test_a_saved_profile_is_the_measured_one(pipe, tmp_path):
    profile = calibrate(pipe, PROMPTS[:1], name="tiny")
    assert all(getattr(profile, kind) for kind in ("statistics", "head_statistics", "source_statistics", "curves"))
    profile.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == profile


def near(one, other):
    if isinstance(one, tuple):
        return all(near(*pair) for pair in zip(one, other, strict=True))
    return one == pytest.approx(other, rel=2e-5, abs=1e-12)


def test_adding_prompts_is_like_measuring_all_at_once(pipe):
    settings = {"name": "tiny", "guidance_scale": 1.0}
    whole = calibrate(pipe, PROMPTS, seed=5, **settings)
    first = calibrate(pipe, PROMPTS[:1], seed=5, **settings)
    both = calibrate(pipe, PROMPTS[1:], seed=6, earlier=first, **settings)
    for kind in ("statistics", "head_statistics", "source_statistics", "curves"):
        for name, table in getattr(whole, kind).items():
            assert near(getattr(both, kind)[name], table), name
    assert both.details["prompts"] == 2
    assert [run["seed"] for run in both.details["runs"]] == [5, 6]


@pytest.fixture(scope="module")
def first(pipe):
    return calibrate(pipe, ["a"], name="tiny")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "other"}, "earlier profile is for tiny"),
        ({"prompts": ["b", "a"], "seed": -1}, "'a' was drawn with seed 0"),
        ({"top": 9}, "top: 64 and 9"),
        ({"guidance_scale": 2.0}, "guidance_scale: None and 2.0"),
        ({"size": "0.25M"}, "size: None and 0.25M"),
    ],
)
def test_what_cannot_be_added_is_refused_before_anything_is_drawn(pipe, first, changes, message, monkeypatch):
    monkeypatch.setattr(type(pipe), "__call__", lambda *_, **__: pytest.fail("drawn"))
    with pytest.raises(ProfileError, match=message):
        calibrate(pipe, **{"prompts": ["b"], "name": "tiny", "earlier": first, **changes})


def test_classes_by_number_and_name():
    pipeline = tiny_var_pipeline(sides=(1, 2, 3))
    pipeline.set_progress_bar_config(disable=True)
    profile = calibrate(pipeline, [207, "tabby cat"], name="var")
    assert profile.details["runs"] == [{"seed": 0, "prompts": ["207", "tabby cat"]}]
    assert [len(cell) for cell in profile.source_table("mass")] == [1, 2, 3]
    assert calibrate(pipeline, [207, 281], name="var").statistics == profile.statistics
    assert calibrate(pipeline, [207, 1], name="var").statistics != profile.statistics


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
