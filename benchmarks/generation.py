"""Whole generations of a small random Infinity at 0.25M and 1M pixels: full cache against two methods at 10 %.

Seconds are taken in turn within one process; peak resident memory, above that of the loaded model, comes from a fresh
process per run (Linux). The decoder is left out (latents only), so that memory is the transformer's and the cache's.

    python benchmarks/generation.py
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import torch
from common import arguments, interleaved, random_profile, show, spread, write

from scalekv import Bytewise, CacheReport, Full, InfinityPipeline, Policy, Profile, ScaleKV
from scalekv.models.infinity import BSQAutoencoder, InfinityScheduler, InfinityTransformer
from scalekv.planning import format_bytes

CLEAR = Path("/proc/self/clear_refs")
DEPTH, WIDTH, HEADS = 16, 512, 8
SIZES = ("0.25M", "1M")
POLICIES: dict[str, Policy] = {
    "full": Full(),
    "scalekv 10%": ScaleKV(budget="10%"),
    "bytewise 10%": Bytewise(budget="10%"),
}


def pipeline(device: str, cache_dtype: str) -> InfinityPipeline:
    """16 layers of width 512 with random weights in float32; drafters are the first layer, as in Infinity-2B."""
    torch.manual_seed(0)
    transformer = InfinityTransformer(
        depth=DEPTH, width=WIDTH, num_heads=HEADS, codebook_bits=16, text_channels=128, text_maxlen=64, block_chunks=2
    )
    vae = BSQAutoencoder(
        codebook_bits=16,
        patch_size=16,
        base_channels=24,
        encoder_multipliers=(1,) * 5,
        decoder_multipliers=(1,) * 5,
        num_res_blocks=1,
    )
    made = InfinityPipeline(transformer=transformer.eval(), vae=vae.eval(), scheduler=InfinityScheduler())
    made.set_progress_bar_config(disable=True)
    made.cache_dtype = cache_dtype
    return made.to(device)


def drawn_profile(pipe: InfinityPipeline, size: str) -> Profile:
    """Random tables, so that heads differ as they do in a model; the first layer is the drafter."""
    schedule = pipe.scheduler.resolve(size=size).schedule
    return random_profile(pipe.cache_geometry(schedule), roles=dict.fromkeys(range(1, len(schedule)), (0,)))


def draw(pipe: InfinityPipeline, size: str, policy: Policy, profile: Profile, device: str) -> CacheReport:
    """One picture's latents; returns the cache report."""
    features = [torch.randn(12, 128, generator=torch.Generator().manual_seed(1)).to(device)]
    generator = torch.Generator().manual_seed(0)
    return pipe(
        prompt_embeds=features, size=size, kv_cache=policy, profile=profile, generator=generator, output_type="latent"
    ).cache


def peak_of_fresh_process(size: str, name: str, options: Namespace) -> tuple[int, dict]:
    """Peak resident bytes that drawing one picture adds to a fresh process, and the cache report."""
    command = [sys.executable, __file__, "--alone", size, name, "--threads", str(options.threads)]
    command += ["--cache-dtype", options.cache_dtype]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    found = json.loads(answer)
    return found["peak"], found["cache"]


def alone(size: str, name: str, cache_dtype: str) -> None:
    """Draw once on the CPU and print by how much the resident memory of this process rose at most."""
    pipe = pipeline("cpu", cache_dtype)
    profile = drawn_profile(pipe, size)
    gc.collect()
    before = resident("VmRSS")
    CLEAR.write_text("5")  # resets the kernel's high-water mark
    report = draw(pipe, size, POLICIES[name], profile, "cpu")
    print(json.dumps({"peak": resident("VmHWM") - before, "cache": report.to_dict()}))


def resident(name: str) -> int:
    """Bytes of this process that are in memory now (``VmRSS``) or were at most (``VmHWM``); Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--cache-dtype", default="float32", help="what attention computes in and the cache holds")
    parser.add_argument("--alone", nargs=2, metavar=("SIZE", "POLICY"), help="internal: one run in this process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.alone:
        alone(*options.alone, options.cache_dtype)
        return
    pipe, rows, figures = pipeline(options.device, options.cache_dtype), [], {}
    for size in options.sizes:
        profile = drawn_profile(pipe, size)
        works = {
            name: lambda size=size, policy=policy, profile=profile: draw(pipe, size, policy, profile, options.device)
            for name, policy in POLICIES.items()
        }
        times = interleaved(works, options.repeats, options.device)
        peaks = {name: peak_of_fresh_process(size, name, options) for name in POLICIES}
        figures[size] = {"seconds": times, "peaks": peaks}
        rows += table_rows(size, times, peaks)
    columns = ["run", "seconds", "over full", "cache peak, planned", "memory rise", "saved", "saving planned"]
    title = f"Random Infinity, {DEPTH} layers of width {WIDTH}, one picture with guidance, cache {options.cache_dtype}"
    show(title, columns, rows, options.device)
    write(options.json, figures, options.device)


def table_rows(size: str, times: dict, peaks: dict) -> list[list[str]]:
    """One row per policy; savings are against the full cache."""
    rows = []
    full_peak, full_cache = peaks["full"]
    for name, taken in times.items():
        ratios = [mine / theirs for mine, theirs in zip(taken, times["full"], strict=True)]
        peak, cache = peaks[name]
        saving = ["", ""]
        if name != "full":
            saving = [format_bytes(full_peak - peak), format_bytes(full_cache["peak_bytes"] - cache["peak_bytes"])]
        figures = [format_bytes(cache["peak_bytes"]), format_bytes(peak), *saving]
        rows.append([f"{size} {name}", spread(taken), spread(ratios), *figures])
    return rows


if __name__ == "__main__":
    main()
