"""Short ways to draw with a tiny pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from scalekv.pipelines import InfinityPipeline, InfinityPipelineOutput, tiny_pipeline


def quiet_pipeline(**options: Any) -> InfinityPipeline:
    pipeline = tiny_pipeline(**options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(pipeline: InfinityPipeline, *args: Any, **options: Any) -> InfinityPipelineOutput:
    """One picture of 'a fox' as an array from seed 0, unless told otherwise."""
    defaults = {"output_type": "np"}
    if not args and "prompt_embeds" not in options and "prompt" not in options:
        args = ("a fox",)
    if "generator" not in options:
        options["generator"] = seeded()
    return pipeline(*args, **{**defaults, **options})


def equal(left: InfinityPipelineOutput, right: InfinityPipelineOutput) -> bool:
    return bool(np.array_equal(left.images, right.images))
