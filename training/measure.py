"""Measure a trained pipeline: ``python -m training.measure PIPELINE OUT``: prompt following by category, and a sheet.

The sheet is the first 32 held-out prompts at seed 0, whatever they look like.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from scalekv.pipelines import InfinityPipeline
from scalekv.policies import make_policy
from scalekv.scenes.detection import Detector
from scalekv.scenes.prompts import Prompt, benchmark
from scalekv.scenes.scoring import Scores, score_pipeline
from training import data
from training.runs import pick_device, write_json
from training.sheets import save_captioned

SHEET = 32


def follow(pipeline: InfinityPipeline, prompts: tuple[Prompt, ...], detector: Detector, **generation: Any) -> Scores:
    """Scores of a pipeline, with a progress bar."""
    with tqdm(total=len(prompts), desc="pictures") as bar:
        return score_pipeline(
            pipeline,
            prompts,
            detector=detector,
            batch=8,
            progress=lambda done, _: bar.update(done - bar.n) and None,
            **generation,
        )


def draw_sheet(pipeline: InfinityPipeline, path: Path, **generation: Any) -> float:
    """Draw the sheet; returns seconds per picture."""
    prompts = data.captions(np.arange(SHEET), "heldout", 0)
    started, pictures = time.perf_counter(), []
    for prompt in prompts:
        drawn: Any = pipeline(prompt, generator=torch.Generator().manual_seed(0), **generation)
        pictures.append(np.asarray(drawn.images[0]))
    save_captioned(np.stack(pictures), prompts, path)
    return (time.perf_counter() - started) / SHEET


def main() -> None:
    """Write OUT/following.json and OUT/sheet.png, and print the scores."""
    parser = argparse.ArgumentParser(prog="python -m training.measure", description="Measure a trained pipeline.")
    parser.add_argument("pipeline", type=Path, help="folder with model_index.json")
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--detector", type=Path, help="weights; default those of the package")
    parser.add_argument("--prompts", type=int, default=40, help="of each category")
    parser.add_argument("--split", default="heldout", choices=("train", "heldout"))
    parser.add_argument("--policy", default="full", help="cache policy")
    parser.add_argument("--budget", default=None, help="cache budget, such as 10%%")
    parser.add_argument("--guidance", type=float, help="default: the scheduler's")
    parser.add_argument("--temperature", type=float, help="default: the scheduler's")
    parser.add_argument("--device", help="default: a GPU if there is one")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    pipeline = InfinityPipeline.from_pretrained(chosen.pipeline, dtype=torch.float32).to(pick_device(chosen.device))
    pipeline.set_progress_bar_config(disable=True)
    settings: dict[str, Any] = {"guidance_scale": chosen.guidance, "temperature": chosen.temperature}
    if chosen.policy != "full":
        settings["kv_cache"] = make_policy(chosen.policy, budget=chosen.budget)
    seconds = draw_sheet(pipeline, chosen.out / "sheet.png", **settings)
    scores = follow(pipeline, benchmark(chosen.prompts, split=chosen.split), Detector.load(chosen.detector), **settings)
    for category, share in scores.categories.items():
        print(f"{category:20} {100 * share:6.1f} %")
    print(f"{'overall':20} {100 * scores.overall:6.1f} %   {seconds:.2f} s per picture")
    write_json(chosen.out / "following.json", scores.to_dict() | {"seconds_per_picture": round(seconds, 3)})


if __name__ == "__main__":
    main()
