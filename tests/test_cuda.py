"""What must hold on a GPU as it does on a CPU; without one these tests are skipped."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "cache"))
from driving import run, steps

from scalekv import Full, Policy, ScaleKV
from scalekv.cache import KVCache
from scalekv.pipelines.tiny import tiny_pipeline
from scalekv.planning import CacheGeometry, Profile, Schedule
from scalekv.policies import POLICIES, Bytewise, HeatKV, make_policy
from strategies import MEASURED, MEASURED_FOR_MERGING, measured

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    pytest.mark.filterwarnings("ignore:.*runs without a profile"),
]

SCHEDULE = Schedule.from_sides([1, 2, 3, 4, 6, 8, 10, 13, 16])
GEOMETRY = CacheGeometry(3, 4, 64, SCHEDULE, batch=2, guidance=2, element_bytes=4)
TABLES = {
    kind: (*MEASURED.get(kind, ()), *MEASURED_FOR_MERGING.get(kind, ())) for kind in {*MEASURED, *MEASURED_FOR_MERGING}
}
PROFILE = Profile("drawn", 3, 4, SCHEDULE, **measured(GEOMETRY, 0, TABLES))
SLACK = 5 * GEOMETRY.rows * GEOMETRY.heads * 256 * 64 * 4
"""The inputs and the output of a step, which the driver lets go of one step later."""
METHODS: list[Policy] = [
    *(make_policy(name, budget="100%" if name == "full" else "40%") for name in POLICIES),
    ScaleKV("10%", codec="int8"),
    ScaleKV("10%", timing="before"),
    HeatKV("40%", codec="int6/int4"),
    Bytewise("4%"),
    Bytewise("10%", rounds=1, codec="none"),
    Bytewise("10%", reduction="damage"),
]
TOLERANCES = {Bytewise("10%", reduction="damage"): 0.2}
"""Where sums in another order change which of two nearly equal tokens is dropped: 0.09 at one moment on an H100."""


@pytest.mark.parametrize("policy", METHODS, ids=str)
def test_outputs_are_those_of_the_cpu(policy):
    here, _ = run(policy, GEOMETRY, PROFILE)
    there, _ = run(policy, GEOMETRY, PROFILE, device="cuda")
    for moment, output in here.items():
        assert (there[moment].cpu() - output).norm() < TOLERANCES.get(policy, 0.02) * output.norm(), moment
    assert sum(torch.allclose(there[one].cpu(), output, atol=1e-3) for one, output in here.items()) > len(here) * 0.8


@pytest.mark.parametrize("policy", METHODS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_run_twice_gives_the_same_bits(policy, dtype):
    geometry = replace(GEOMETRY, element_bytes=dtype.itemsize)
    once, _ = run(policy, geometry, PROFILE, dtype, "cuda")
    again, _ = run(policy, geometry, PROFILE, dtype, "cuda")
    assert all(torch.equal(output, again[moment]) for moment, output in once.items())


@pytest.mark.parametrize("policy", METHODS, ids=str)
def test_everything_fits_is_the_full_cache_bit_for_bit(policy):
    full, _ = run(Full(), GEOMETRY, device="cuda")
    other, _ = run(replace(policy, budget="100%"), GEOMETRY, PROFILE, device="cuda")
    assert all(torch.equal(output, other[moment]) for moment, output in full.items())


@pytest.mark.parametrize("policy", METHODS, ids=str)
def test_the_device_holds_what_the_ledger_says(policy, request):
    """Up to the 512 bytes to which the allocator rounds every tensor."""
    if policy.name == "cake":
        request.applymarker(pytest.mark.xfail(reason="an H100 held 0.5 MB more than the ledger; cause unknown"))
    torch.cuda.synchronize()
    plan = policy.plan(GEOMETRY, PROFILE)
    with KVCache(plan, policy, dtype=torch.float32, device="cuda") as cache:
        before = torch.cuda.memory_allocated()
        for _, _, output in steps(cache, GEOMETRY):
            del output
            stores = sum(len(groups) for groups in plan.layers)
            held = torch.cuda.memory_allocated() - before
            assert cache.live_bytes <= held + 512 * 5 * stores
            assert held <= cache.live_bytes + 512 * 5 * stores + SLACK
    assert cache.live_bytes == 0


@pytest.mark.parametrize("policy", [Full(), ScaleKV(), Bytewise("10%")], ids=str)
def test_pipelines_draw_on_the_gpu(policy):
    pipe = tiny_pipeline().to("cuda")
    pipe.set_progress_bar_config(disable=True)
    pictures = [
        pipe("a red cube", generator=torch.Generator().manual_seed(0), kv_cache=policy, output_type="pt").images
        for _ in range(2)
    ]
    assert pictures[0].is_cuda
    assert torch.equal(*pictures)


def test_noise_is_the_same_on_both_devices():
    """A generator of the CPU draws the same bits for a picture on either device."""
    pictures = {}
    for device in ("cpu", "cuda"):
        pipe = tiny_pipeline().to(device)
        pipe.set_progress_bar_config(disable=True)
        drawn = pipe("a red cube", generator=torch.Generator().manual_seed(0), output_type="pt").images
        pictures[device] = drawn.cpu()
    assert (pictures["cpu"] - pictures["cuda"]).abs().mean() < 0.02


def test_a_failed_run_leaves_nothing_on_the_device():
    pipe = tiny_pipeline().to("cuda")
    pipe.set_progress_bar_config(disable=True)
    pipe("a red cube", generator=torch.Generator().manual_seed(0), output_type="latent")
    before = torch.cuda.memory_allocated()

    def fail(*_):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        pipe("a red cube", kv_cache=ScaleKV(), callback_on_step_end=fail, output_type="latent")
    assert torch.cuda.memory_allocated() <= before + 4096
