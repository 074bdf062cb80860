"""Make the folder that ships: ``python -m training.package RUN/pipeline OUT``: the trained pipeline with its profile.

Calibrates twice, on disjoint prompts, and refuses nothing: it prints how far the two profiles agree,
for a person to judge.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from scalekv.calibration import calibrate
from scalekv.calibration.stability import rank_correlations
from scalekv.pipelines import InfinityPipeline
from scalekv.planning import Profile
from training import data

_SECOND = 5000
"""First scene of the second prompt set."""


def profile_of(pipeline: InfinityPipeline, first: int, count: int) -> Profile:
    """The profile of ``count`` training captions from scene ``first`` on."""
    prompts = data.captions(np.arange(first, first + count), "train", 0)
    with tqdm(total=count, desc="calibrating") as bar:
        return calibrate(pipeline, prompts, name="scenes", progress=lambda done, _: bar.update(done - bar.n) and None)


def main() -> None:
    """Calibrate, and save the whole folder."""
    parser = argparse.ArgumentParser(prog="python -m training.package", description="Make the folder that ships.")
    parser.add_argument("pipeline", type=Path, help="RUN/pipeline of training.transformer")
    parser.add_argument("out", type=Path, help="the folder to write")
    parser.add_argument("--prompts", type=int, default=10, help="for calibration")
    chosen = parser.parse_args()
    exact = InfinityPipeline.from_pretrained(chosen.pipeline, dtype=torch.float32)
    exact.set_progress_bar_config(disable=True)
    first, second = (profile_of(exact, start, chosen.prompts) for start in (0, _SECOND))
    for name, correlation in rank_correlations(first, second).items():
        print(f"two prompt sets, mean rank correlation of {name}: {correlation:.3f}")
    pipeline = InfinityPipeline.from_pretrained(chosen.pipeline)
    pipeline.profile = first
    with torch.no_grad():
        pipeline.save_pretrained(chosen.out)
    size = sum(os.path.getsize(file) for file in chosen.out.rglob("*") if file.is_file())
    print(f"{chosen.out}: {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
