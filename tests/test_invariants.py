"""The seven invariants of docs/architecture.md on whole generations. (1) is tests/parity, (4) also tests/cache."""

from __future__ import annotations

import contextlib
import gc
from dataclasses import replace

import numpy as np
import pytest
import torch

from scalekv import Full, Policy, Profile, Random, ScaleKV, SlidingWindow, StreamingLLM
from scalekv.errors import BudgetError, InvalidInput
from scalekv.models.infinity import InfinityScheduler
from scalekv.pipelines.infinity import InfinityPipeline
from scalekv.pipelines.tiny import tiny_pipeline
from scalekv.policies import AMSKV, Hack, HackPP, HeatKV, make_policy
from scalekv.policies import POLICIES as POLICY_NAMES

SMALL = [[1, 1], [2, 2], [3, 3], [4, 4], [6, 6]]
WIDE = [[1, 1], [1, 3], [2, 4], [3, 6], [4, 8]]
POLICIES: list[Policy] = [
    ScaleKV(),
    ScaleKV(scorer="projection", pooling="max"),
    SlidingWindow(),
    StreamingLLM(),
    Random(),
    Hack(budget="30%"),
    HackPP(budget="30%"),
    HeatKV(budget="60%"),
    AMSKV(budget="40%"),
    ScaleKV(codec="int8"),
    SlidingWindow(codec="int4"),
    Hack(budget="30%", codec="int8/int6"),
    HeatKV(budget="60%", codec="fp8"),
]


@pytest.fixture(scope="module")
def pipe() -> InfinityPipeline:
    made = tiny_pipeline()
    made.set_progress_bar_config(disable=True)
    return made


def on(pipe: InfinityPipeline, shapes: list[list[int]]) -> InfinityPipeline:
    """The same networks on another schedule."""
    settings = {**pipe.scheduler.config, "schedule": shapes, "extent": [64, 64]}
    parts = {**pipe.components, "scheduler": InfinityScheduler.from_config(settings)}
    other = InfinityPipeline(**parts)
    other.set_progress_bar_config(disable=True)
    return other


def draw(pipe: InfinityPipeline, prompt="a red cube", seed: int = 0, **options):
    prompts = [prompt] if isinstance(prompt, str) else prompt
    generators = [torch.Generator().manual_seed(seed + index) for index in range(len(prompts))]
    return pipe(prompts, generator=generators, output_type="latent", **options)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_2_at_100_percent_every_policy_is_the_full_cache_bit_for_bit(pipe, policy):
    full = draw(pipe)
    other = draw(pipe, kv_cache=replace(policy, budget="100%"))
    assert torch.equal(full.images, other.images)


@pytest.mark.parametrize("policy", [Full(), *POLICIES], ids=str)
def test_2_same_seed_and_budget_twice_is_the_same_image(pipe, policy):
    assert torch.equal(draw(pipe, kv_cache=policy).images, draw(pipe, kv_cache=policy).images)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_3_noise_depends_on_the_seed_only(pipe, policy):
    """After a run the generator is where the full cache leaves it, so later draws are paired too."""
    ends = []
    for method in (Full(), policy):
        generator = torch.Generator().manual_seed(3)
        pipe("a cube", generator=[generator], kv_cache=method, output_type="latent")
        ends.append(torch.rand(4, generator=generator))
    assert torch.equal(*ends)


@pytest.mark.parametrize("policy", [Full(), *POLICIES], ids=str)
@pytest.mark.parametrize("shapes", [SMALL, WIDE], ids=["square", "wide"])
@pytest.mark.parametrize(("batch", "guidance"), [(1, 1.0), (1, 3.0), (2, 3.0)])
def test_4_bytes_allocated_are_bytes_planned(pipe, policy, shapes, batch, guidance):
    report = draw(on(pipe, shapes), ["a cube", "two balls"][:batch], guidance_scale=guidance, kv_cache=policy).cache
    assert report.kept_bytes == report.nominal_bytes
    assert report.measured_peak_bytes == report.peak_bytes
    assert report.kept_bytes <= report.limit_bytes


@pytest.mark.parametrize("name", [name for name in POLICY_NAMES if name != "full"])
@pytest.mark.parametrize("shapes", [SMALL, WIDE], ids=["square", "wide"])
@pytest.mark.parametrize(("batch", "guidance"), [(1, 3.0), (2, 1.0)])
def test_no_method_allocates_more_history_than_its_budget_and_two_percent(pipe, name, shapes, batch, guidance):
    """Measured between segments, for every budget; some methods refuse the smallest."""
    other, drawn = on(pipe, shapes), 0
    for budget in ("50%", "20%", "10%", "4%", "2%"):
        policy = make_policy(name, budget)
        with contextlib.suppress(BudgetError):
            report = draw(other, ["a cube", "two balls"][:batch], guidance_scale=guidance, kv_cache=policy).cache
            assert report.kept_bytes <= 1.02 * float(budget[:-1]) / 100 * report.lossless_bytes
            drawn += 1
    assert drawn


@pytest.mark.parametrize(
    "policy", [Full(), ScaleKV(budget="20%"), Random(budget="20%"), ScaleKV(budget="20%", codec="int6")], ids=str
)
def test_5_a_batch_gives_each_prompt_what_it_gets_alone(pipe, policy):
    prompts = ["a cube", "two large blue spheres on a table", ""]
    small = on(pipe, SMALL)
    together = draw(small, prompts, seed=10, kv_cache=policy)
    for index, prompt in enumerate(prompts):
        alone = draw(small, prompt, seed=10 + index, kv_cache=policy)
        torch.testing.assert_close(together.images[index], alone.images[0], atol=1e-5, rtol=0)


def living_tensors() -> int:
    """By type: to ask a dead weak proxy of some other library what it is an instance of raises."""
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("codec", ["none", "int8"])
def test_6_an_aborted_generation_leaves_nothing_behind(pipe, error, codec):
    policy = ScaleKV(budget="20%", codec=codec)
    expected = draw(pipe, kv_cache=policy).images
    gc.collect()
    living = living_tensors()

    def fail(_pipe, step, _time, tensors):
        if step == 6:
            raise error
        return tensors

    with pytest.raises(error):
        draw(pipe, seed=5, kv_cache=policy, callback_on_step_end=fail)
    gc.collect()
    assert living_tensors() <= living
    assert torch.equal(draw(pipe, kv_cache=policy).images, expected)


def test_7_a_profile_of_another_model_is_refused(pipe):
    foreign = Profile.builtin("infinity-2b")
    with pytest.raises(InvalidInput, match=r"32 layers.*6 layers"):
        draw(pipe, kv_cache=ScaleKV(), profile=foreign)


def test_budgets_order_fidelity(pipe):
    """No promise of any one picture, but over seeds more budget must not mean a worse picture on average."""
    errors = []
    for budget in ("5%", "60%"):
        policy = SlidingWindow(budget=budget)
        differences = [draw(pipe, seed=s).images - draw(pipe, seed=s, kv_cache=policy).images for s in range(3)]
        errors.append(np.mean([float(difference.square().mean()) for difference in differences]))
    assert errors[0] > errors[1]
