"""Recorded runs of the reference, repeated through the pipeline: same bits, same picture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from parity.infinity_golden import Case, case_folders, load_case
from scalekv.models.infinity import InfinityScheduler
from scalekv.models.infinity.autoencoder import accumulate
from scalekv.pipelines import InfinityPipeline
from scalekv.policies import SlidingWindow


def pipeline_of(case: Case) -> InfinityPipeline:
    pipeline = InfinityPipeline(case.transformer, case.autoencoder, InfinityScheduler(size="0.06M"))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def arguments_of(case: Case) -> dict:
    lengths = case.inputs["text.lens"].tolist()
    sampling, height_over_width = case.sampling, case.config["h_div_w_template"]
    arguments = {
        "prompt_embeds": list(case.inputs["text.kv_compact"].split(lengths)),
        "aspect_ratio": 1 / height_over_width,
        "guidance_scale": sampling["cfg_list"],
        "temperature": sampling["tau_list"],
        "top_k": sampling["top_k"],
        "top_p": sampling["top_p"],
        "cfg_insertion_layer": sampling["cfg_insertion_layer"],
        "generator": torch.Generator().manual_seed(sampling["seed"]),
    }
    if "neg.kv_compact" in case.inputs:
        negative = case.inputs["neg.kv_compact"].split(case.inputs["neg.lens"].tolist())
        arguments["negative_prompt_embeds"] = list(negative)
    return arguments


@pytest.mark.parametrize("folder", case_folders(), ids=lambda path: path.name)
def test_a_recorded_run_through_the_pipeline(folder) -> None:
    case = load_case(folder)
    pipeline, seen = pipeline_of(case), []

    def keep(_: InfinityPipeline, __: int, ___: int, tensors: dict[str, Tensor]) -> None:
        seen.append(tensors)

    result = pipeline(
        **arguments_of(case),
        output_type="latent",
        callback_on_step_end=keep,
        callback_on_step_end_tensor_inputs=["latents", "logits"],
    )
    assert result.schedule == case.schedule
    # Codes are far larger than the tolerance, so equal sums mean equal bits.
    sums = accumulate([bits.squeeze(1) for bits in case.bits("bits")])
    for scale, (tensors, latents) in enumerate(zip(seen, sums, strict=True)):
        torch.testing.assert_close(tensors["logits"], case.outputs[f"logits_cfg.{scale}"], atol=1e-4, rtol=0)
        torch.testing.assert_close(tensors["latents"], latents, atol=1e-5, rtol=0)
    torch.testing.assert_close(result.images, case.outputs["summed_codes"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("folder", case_folders(), ids=lambda path: path.name)
def test_recorded_bits_through_the_pipeline_with_a_full_budget(folder) -> None:
    case = load_case(folder)
    result = pipeline_of(case)(
        **arguments_of(case),
        forced_bits=case.bits("bits"),
        kv_cache=SlidingWindow(budget="100%"),
        output_type="pt",
    )
    if "image_crop_f32" not in case.outputs:
        return
    top, left = case.config["image_crop_yx"]
    crop = result.images[:, :, top : top + 64, left : left + 64] * 2 - 1
    torch.testing.assert_close(crop, case.outputs["image_crop_f32"], atol=1e-4, rtol=0)
