"""Arguments that cannot be used: each is refused with a sentence that names it, before anything is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.helpers import draw, quiet_pipeline, seeded
from scalekv.cache import KVCache
from scalekv.errors import BudgetError, InvalidInput, ProfileError
from scalekv.pipelines import InfinityPipeline
from scalekv.pipelines.arguments import aspect_of
from scalekv.planning import Profile, Schedule
from scalekv.policies import ScaleKV, SlidingWindow

NAN = float("nan")
ROW = torch.zeros(3, 128)

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"prompt": None}, "Give prompt or prompt_embeds, got neither"),
    "two prompts": ({"prompt_embeds": [ROW]}, "Give prompt or prompt_embeds, got both"),
    "no prompts": ({"prompt": []}, "prompt is an empty list; give at least one text"),
    "number": ({"prompt": 3}, r"prompt must be a text or a list of texts, got 3 \(int\)"),
    "list of numbers": ({"prompt": ["a", 3]}, "prompt must be a text or a list of texts"),
    "bytes": ({"prompt": b"fox"}, "prompt must be a text"),
    "narrow features": (
        {"prompt": None, "prompt_embeds": [torch.zeros(3, 64)]},
        r"shape \(3, 64\), expected \(tokens, 128\)",
    ),
    "flat features": ({"prompt": None, "prompt_embeds": torch.zeros(3, 128)}, r"shape \(128,\), expected"),
    "no tokens": ({"prompt": None, "prompt_embeds": [torch.zeros(0, 128)]}, r"shape \(0, 128\)"),
    "integer features": ({"prompt": None, "prompt_embeds": [ROW.long()]}, "one floating-point tensor per prompt"),
    "no features": ({"prompt": None, "prompt_embeds": []}, "prompt_embeds must be a list with one"),
    "endless features": (
        {"prompt": None, "prompt_embeds": [torch.zeros(129, 128)]},
        "129 tokens is longer than the 128",
    ),
    "two negatives": ({"negative_prompt": "a", "negative_prompt_embeds": [ROW]}, "negative_prompt_embeds, got both"),
    "too many negatives": ({"negative_prompt": ["a", "b"]}, "negative_prompt has 2 entries for 1 prompts"),
    "wrong negative": ({"negative_prompt": 1.5}, "negative_prompt must be a text"),
    "height alone": ({"height": 256}, "Give height and width together"),
    "negative height": ({"height": -256, "width": 256}, "height must be a whole number of at least 1, got -256"),
    "zero width": ({"height": 256, "width": 0}, "width must be a whole number of at least 1"),
    "half a pixel": ({"height": 256.5, "width": 256}, "height must be a whole number"),
    "text height": ({"height": "256", "width": 256}, "height must be a whole number"),
    "true height": ({"height": True, "width": 256}, "height must be a whole number"),
    "unknown size": ({"size": "2M"}, "has no size '2M'"),
    "ratio and sides": ({"aspect_ratio": 1, "height": 256, "width": 256}, "either height and width or an aspect"),
    "ratio of nothing": ({"aspect_ratio": "16:0"}, r"aspect_ratio says width to height, such as '16:9'"),
    "negative ratio": ({"aspect_ratio": -1.5}, "aspect_ratio says width to height"),
    "no ratio": ({"aspect_ratio": "wide"}, "aspect_ratio says width to height.*got 'wide'"),
    "guidance nan": ({"guidance_scale": NAN}, "guidance_scale must be a number, or one per segment, got nan"),
    "guidance inf": ({"guidance_scale": float("inf")}, "guidance_scale must be a number"),
    "guidance text": ({"guidance_scale": "3"}, "guidance_scale must be a number"),
    "guidance too short": ({"guidance_scale": [3.0] * 9}, "guidance_scale has 9 numbers for 10 segments; give one"),
    "guidance with a hole": ({"guidance_scale": [3.0] * 9 + [None]}, "guidance_scale must be a number"),
    "temperature 0": ({"temperature": 0}, "temperature must be a number above 0"),
    "temperature below": ({"temperature": [0.5] * 9 + [-1]}, "temperature must be a number above 0"),
    "temperature nan": ({"temperature": NAN}, "temperature must be a number above 0"),
    "top_k below": ({"top_k": -1}, "top_k must be a whole number of at least 0, got -1"),
    "top_k half": ({"top_k": 1.5}, "top_k must be a whole number"),
    "top_p above": ({"top_p": 1.1}, r"top_p must lie between 0 \(off\) and 1, got 1.1"),
    "top_p nan": ({"top_p": NAN}, "top_p must lie between"),
    "insertion nowhere": (
        {"cfg_insertion_layer": [-6]},
        "cfg_insertion_layer -6 names no place in a network of 6 layers",
    ),
    "insertion text": ({"cfg_insertion_layer": "0"}, "cfg_insertion_layer must be a whole number or a list"),
    "no images": ({"num_images_per_prompt": 0}, "num_images_per_prompt must be a whole number of at least 1"),
    "seed": ({"generator": 7}, r"generator must be a torch.Generator or a list of them, got 7 \(int\)"),
    "too many generators": ({"generator": [seeded(), seeded()]}, "Got 2 generators for 1 images"),
    "too few generators": ({"generator": [seeded()], "num_images_per_prompt": 2}, "Got 1 generators for 2 images"),
    "list of seeds": ({"generator": [7]}, "generator must be a torch.Generator"),
    "output": ({"output_type": "jpeg"}, "output_type must be one of pil, np, pt, latent, got 'jpeg'"),
    "callback tensor": (
        {"callback_on_step_end_tensor_inputs": ["noise"]},
        "callback_on_step_end_tensor_inputs must be one of latents, logits, got 'noise'",
    ),
    "callback": ({"callback_on_step_end": "stop"}, "callback_on_step_end must be a function, got 'stop'"),
    "no callback tensors": ({"callback_on_step_end_tensor_inputs": None}, "must be a list of names, got None"),
    "one callback tensor": ({"callback_on_step_end_tensor_inputs": "latents"}, "must be a list of names"),
    "features of nothing": (
        {"prompt": None, "prompt_embeds": [torch.full((3, 128), NAN)]},
        "prompt_embeds holds numbers that are not finite",
    ),
    "endless negative": (
        {"negative_prompt_embeds": [torch.full((3, 128), float("inf"))]},
        "negative_prompt_embeds holds numbers that are not finite",
    ),
    "half a character": ({"prompt": "a \ud83e fox"}, r"prompt is no valid text: character 3 is half of a surrogate"),
    "half a negative": ({"negative_prompt": "\ud83e"}, "negative_prompt is no valid text"),
    "half an addition": ({"positive_prompt": "\ud83e"}, "positive_prompt is no valid text"),
    "number to add": ({"positive_prompt": 3}, "positive_prompt must be a text"),
    "tiny temperature": ({"temperature": 1e-40}, "temperature must lie between 1e-06 and 1e.06, or logits overflow"),
    "huge temperature": ({"temperature": [1e30] * 10}, "temperature must lie between"),
    "huge guidance": ({"guidance_scale": 1e308}, "guidance_scale must lie between -1e.06 and 1e.06, or logits"),
    "endless guidance": ({"guidance_scale": 10**400}, "guidance_scale must be a number"),
    "endless top_p": ({"top_p": 10**400}, "top_p must lie between"),
    "policy class": ({"kv_cache": SlidingWindow}, r"kv_cache must be a policy such as ScaleKV\(budget='10%'\)"),
    "policy name": ({"kv_cache": "scalekv"}, "kv_cache must be a policy such as"),
    "bits of another shape": ({"forced_bits": [torch.zeros(1, 2, 2, 16)]}, "Forced bits of segment 0 are"),
    "bits without a batch": ({"forced_bits": [torch.zeros(1, 16)]}, r"are \(1, 16\), expected \(1, 1, 1, 16\)"),
    "bits of nothing": ({"forced_bits": [torch.full((1, 1, 1, 16), NAN)]}, "must be whole numbers from 0 to 1"),
    "too many bits": ({"forced_bits": [torch.zeros(1, 1, 1, 16)] * 11}, "Got forced bits for 11 segments"),
    "bits that are no tensors": ({"forced_bits": [[1]]}, "forced_bits must be a list of tensors"),
    "profile of another type": ({"profile": 3}, "profile must be a Profile, its file or a known name, got int"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_argument_is_refused(case: str, pipeline: InfinityPipeline) -> None:
    options, message = BAD[case]
    with pytest.raises(InvalidInput, match=message) as refusal:
        pipeline(**{"prompt": "a fox", "output_type": "latent", **options})
    assert "\n" not in str(refusal.value)


def test_budgets_that_cannot_be_met(pipeline: InfinityPipeline) -> None:
    with pytest.raises(BudgetError, match="the smallest feasible one"):
        draw(pipeline, kv_cache=SlidingWindow(budget="10 B"))


def test_profiles_of_other_models(pipeline: InfinityPipeline, tmp_path: Path) -> None:
    other = Profile("other", 5, 4, pipeline.scheduler.resolve().schedule)
    with pytest.raises(ProfileError, match=r"is for other \(5 layers, 4 heads\), the model has 6 layers and 4 heads"):
        draw(pipeline, kv_cache=SlidingWindow(budget="50%"), profile=other)
    with pytest.raises(ProfileError, match="Cannot read the profile"):
        draw(pipeline, profile=tmp_path / "gone.json")
    with pytest.raises(ProfileError, match="infinity-2b"):
        draw(pipeline, kv_cache=ScaleKV(budget="50%"), profile="infinity-2b")


def test_profiles_are_moved_to_the_schedule(pipeline: InfinityPipeline, tmp_path: Path) -> None:
    short = Schedule.from_sides((1, 2, 4, 8, 16))
    statistics = {"asi": tuple(tuple(float(layer) for layer in range(6)) for _ in short)}
    profile = Profile("tiny", 6, 4, short, statistics=statistics)
    profile.save(tmp_path / "p.json")
    policy = ScaleKV(budget="30%")
    from_file = draw(pipeline, kv_cache=policy, profile=tmp_path / "p.json")
    assert (from_file.images == draw(pipeline, kv_cache=policy, profile=profile).images).all()


def test_used_caches_are_not_taken(pipeline: InfinityPipeline) -> None:
    policy = SlidingWindow(budget="100%")
    geometry = pipeline.cache_geometry(pipeline.scheduler.resolve().schedule)
    with (
        KVCache(policy.plan(geometry), policy, dtype=torch.float32) as cache,
        pytest.raises(InvalidInput, match="policy"),
    ):
        draw(pipeline, kv_cache=cache)


@pytest.mark.parametrize(
    ("said", "ratio"), [("16:9", 9 / 16), ("16/9", 9 / 16), ("1.6", 1 / 1.6), (2, 0.5), (None, None)]
)
def test_aspect_ratios_are_width_to_height(said: Any, ratio: float | None) -> None:
    assert aspect_of(said) == pytest.approx(ratio)


def test_weights_that_overflow_are_said() -> None:
    pipeline = quiet_pipeline()
    with torch.no_grad():
        pipeline.transformer.word_embed.weight.fill_(NAN)
    with pytest.raises(InvalidInput, match="The network's numbers are not finite; use bfloat16 or float32 weights"):
        draw(pipeline)
