"""VARPipeline: classes to pictures, with any policy, from memory, folders and official files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from PIL import Image
from torch import Tensor

from models.checkpoint_files import write_pth
from parity.golden import gap, recorded
from parity.var_golden import case_folders, labels_of, load_case
from scalekv import Random, ScaleKV, SlidingWindow, StreamingLLM, calibrate
from scalekv.errors import CheckpointError, InvalidInput
from scalekv.models.inspection import inspect_checkpoint
from scalekv.models.var import VARScheduler
from scalekv.pipelines import VARPipeline, convert, load_pipeline, tiny_var_pipeline
from scalekv.policies import Full

SIDES = (1, 2, 3, 4, 6)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quiet(pipeline: VARPipeline) -> VARPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline() -> VARPipeline:
    return quiet(tiny_var_pipeline(sides=SIDES))


def draw(pipeline: VARPipeline, *classes: Any, **options: Any) -> Any:
    """Pictures as an array, class 207 from seed 0 unless told otherwise."""
    settings = {"output_type": "np", "generator": seeded(), **options}
    return pipeline(*(classes or (207,)), **settings)


def test_what_comes_back(pipeline: VARPipeline) -> None:
    result = pipeline(["golden retriever", "-1"], num_images_per_class=2, generator=[seeded(i) for i in range(4)])
    assert [image.size for image in result.images] == [(96, 96)] * 4
    assert all(isinstance(image, Image.Image) for image in result.images)
    assert result.labels == [207, 207, -1, -1]
    assert result.seeds == [0, 1, 2, 3]
    assert result.schedule.key == "1x1-2x2-3x3-4x4-6x6"
    assert result.cache.kept_bytes == 2 * 4 * 64 * 30 * 4 * 8
    assert not result.interrupted
    pictures, report = pipeline(207, return_dict=False, output_type="pt", generator=seeded())
    assert (pictures.shape, report.policy) == ((1, 3, 96, 96), "full")
    assert pipeline(5, output_type="latent").images.shape == (1, 16, 6, 6)


@pytest.mark.parametrize(
    "classes", ["207", "golden retriever", [207], torch.tensor(207), np.int64(207), range(207, 208)]
)
def test_ways_to_say_a_class(pipeline: VARPipeline, classes: Any) -> None:
    assert np.array_equal(draw(pipeline, classes).images, draw(pipeline, 207).images)


def test_random_classes_come_first_from_the_generator(pipeline: VARPipeline) -> None:
    generator = seeded(5)
    drawn = draw(pipeline, None, num_images_per_class=3, generator=generator)
    expected = torch.multinomial(torch.full((1, 1000), 1e-3), 3, replacement=True, generator=seeded(5))[0].tolist()
    assert drawn.labels == expected
    assert len(drawn.images) == 3


def test_a_seed_decides_everything(pipeline: VARPipeline) -> None:
    assert np.array_equal(draw(pipeline).images, draw(pipeline).images)
    for other in (draw(pipeline, generator=seeded(1)), draw(pipeline, 208), draw(pipeline, smooth=True)):
        assert not np.array_equal(draw(pipeline).images, other.images)


def test_what_was_drawn_can_be_drawn_again(pipeline: VARPipeline) -> None:
    first = draw(pipeline)
    again = draw(pipeline, 9, forced_tokens=first.drawn, generator=seeded(9))
    assert np.array_equal(again.images, first.images)


def test_a_batch_gives_each_image_what_it_gets_alone(pipeline: VARPipeline) -> None:
    options = {"kv_cache": SlidingWindow(budget="30%")}
    batch = draw(pipeline, [3, 207, 5], generator=[seeded(i) for i in range(3)], **options)
    alone = draw(pipeline, 207, generator=seeded(1), **options)
    assert np.abs(batch.images[1] - alone.images[0]).max() < 1e-4


@pytest.mark.parametrize("policy", [ScaleKV, SlidingWindow, StreamingLLM, Random], ids=lambda kind: kind.name)
def test_every_policy(pipeline: VARPipeline, policy: Any) -> None:
    full = draw(pipeline, kv_cache=Full())
    assert np.array_equal(draw(pipeline, kv_cache=policy(budget="100%")).images, full.images)
    small = [draw(pipeline, kv_cache=policy(budget="30%")) for _ in range(2)]
    assert np.array_equal(small[0].images, small[1].images)
    assert not np.array_equal(small[0].images, full.images)
    assert small[0].cache.kept_bytes <= 0.3 * full.cache.kept_bytes


def test_the_scorer_that_asks_for_bare_queries() -> None:
    pipeline = quiet(tiny_var_pipeline(sides=(1, 2, 4, 6, 8, 10)))
    projection, attention = (
        draw(pipeline, kv_cache=ScaleKV(budget="30%", scorer=scorer)) for scorer in ("projection", "attention")
    )
    assert projection.cache.kept_bytes == attention.cache.kept_bytes > 0
    assert not np.array_equal(projection.images, attention.images)


def test_calibration(pipeline: VARPipeline) -> None:
    profile = calibrate(pipeline, ["207", "tabby cat"], name="tiny-var", queries=8)
    assert (profile.layers, profile.heads, profile.details["prompts"]) == (4, 4, 2)
    assert draw(pipeline, kv_cache=ScaleKV(budget="30%"), profile=profile).cache.policy == "scalekv"


def test_without_guidance_half_the_rows(pipeline: VARPipeline) -> None:
    report = draw(pipeline, guidance_scale=0).cache
    assert 2 * report.kept_bytes == draw(pipeline).cache.kept_bytes
    weights = [0.0, 0.5, 1.0, 1.5, 2.0]
    ramped, listed = draw(pipeline, guidance_scale=2.0), draw(pipeline, guidance_scale=weights)
    assert np.array_equal(ramped.images, listed.images)


def test_callbacks_and_stopping(pipeline: VARPipeline) -> None:
    seen: list[tuple[int, tuple[int, ...]]] = []

    def watch(running: VARPipeline, step: int, _: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append((step, tuple(tensors["logits"].shape)))
        if step == 2:
            running.stop()
        return {}

    result = draw(pipeline, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=["latents", "logits"])
    assert seen == [(0, (1, 1, 256)), (1, (1, 4, 256)), (2, (1, 9, 256))]
    assert result.interrupted
    assert not draw(pipeline).interrupted


def test_latents_returned_while_stopping_count(pipeline: VARPipeline) -> None:
    def clear(running: VARPipeline, step: int, _: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if step == 2:
            running.stop()
            draw(running)
        return {"latents": torch.zeros_like(tensors["latents"], dtype=torch.bfloat16)}

    result = draw(pipeline, callback_on_step_end=clear, output_type="latent")
    assert result.interrupted
    assert not result.images.any()
    assert result.images.dtype == torch.float32
    with pytest.raises(InvalidInput, match="must return a dict"):
        draw(pipeline, callback_on_step_end=lambda *_: True)


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_are_freed_at_the_end(fails: bool, pipeline: VARPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[bool] = []
    monkeypatch.setattr(pipeline, "maybe_free_model_hooks", lambda: freed.append(True))
    if fails:
        with pytest.raises(InvalidInput, match="must return a dict"):
            draw(pipeline, callback_on_step_end=lambda *_: 1)
    else:
        draw(pipeline)
    assert freed == [True]


def test_a_pipeline_from_a_pipeline(pipeline: VARPipeline) -> None:
    first = VARPipeline(**pipeline.components, model_name="var-d16")
    first.class_names = None
    again = quiet(VARPipeline.from_pipe(first))
    assert (again.class_names, again.config.model_name) == (None, "var-d16")
    assert np.array_equal(draw(again).images, draw(pipeline).images)


def test_repainting_keeps_what_the_mask_holds(pipeline: VARPipeline) -> None:
    grids = [(side, side) for side in SIDES]
    picture = torch.rand(1, 3, 96, 96, generator=seeded(3)) * 2 - 1
    with torch.no_grad():
        given = pipeline.vae.encode_to_tokens(picture, grids)
    mask = torch.ones(96, 96)
    mask[:, 48:] = 0
    options = {"forced_tokens": given.tokens, "output_type": "latent"}
    kept = draw(pipeline, **options).images
    torch.testing.assert_close(kept, given.latent)
    mixed, free = draw(pipeline, forced_mask=mask, **options).images, draw(pipeline, output_type="latent").images
    # Codes of coarse segments reach across the edge, so only the side they agree on is nearer.
    distance = [[(mixed - other)[..., half].norm() for half in (slice(0, 3), slice(3, 6))] for other in (kept, free)]
    assert distance[0][0] < distance[1][0]
    assert distance[0][1] > distance[0][0]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no such class": ({"class_labels": 1000}, "Class 1000 does not exist"),
    "no such name": ({"class_labels": "gldn retriever"}, r"golden retriever \(207\)"),
    "no classes": ({"class_labels": []}, "class_labels is empty"),
    "a float": ({"class_labels": 2.5}, r"A class is a number or a name, got 2\.5"),
    "a bool": ({"class_labels": True}, "A class is a number or a name"),
    "floats": ({"class_labels": torch.zeros(2)}, "whole numbers in a row"),
    "guidance": ({"class_labels": 1, "guidance_scale": "strong"}, "guidance_scale must be a number"),
    "endless guidance": ({"class_labels": 1, "guidance_scale": 1e308}, "guidance_scale must lie between"),
    "no function": ({"class_labels": 1, "callback_on_step_end": 3}, "callback_on_step_end must be a function"),
    "top_k": ({"class_labels": 1, "top_k": 257}, "the vocabulary of 256, got 257"),
    "top_p": ({"class_labels": 1, "top_p": 2}, "top_p must lie between 0"),
    "copies": ({"class_labels": 1, "num_images_per_class": 0}, "num_images_per_class must be"),
    "generators": ({"class_labels": 1, "generator": [seeded()] * 2}, "Got 2 generators for 1 images"),
    "output": ({"class_labels": 1, "output_type": "jpg"}, "output_type must be one of"),
    "tokens": ({"class_labels": 1, "forced_tokens": 3}, "forced_tokens must be a list of tensors"),
    "mask": ({"class_labels": 1, "forced_mask": "left"}, "forced_mask must be a tensor or a list"),
    "callback": ({"class_labels": 1, "callback_on_step_end_tensor_inputs": ["x"]}, "callback_on_step_end_tensor_inp"),
    "policy": ({"class_labels": 1, "kv_cache": "10%"}, "kv_cache must be a policy"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_arguments(pipeline: VARPipeline, kind: str) -> None:
    options, message = BAD[kind]
    with pytest.raises(InvalidInput, match=message):
        pipeline(**options)


def test_a_failed_call_leaves_nothing_behind(pipeline: VARPipeline) -> None:
    def fail(*_: Any) -> dict[str, Tensor]:
        raise RuntimeError("stop")

    before = draw(pipeline).images
    with pytest.raises(RuntimeError, match="stop"):
        draw(pipeline, callback_on_step_end=fail)
    assert np.array_equal(draw(pipeline).images, before)


def test_folders(pipeline: VARPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    again = quiet(load_pipeline(tmp_path / "model"))
    assert isinstance(again, VARPipeline)
    assert np.array_equal(draw(again).images, draw(pipeline).images)
    info = inspect_checkpoint(tmp_path / "model")
    assert (info.kind, info.models) == ("pipeline folder", ())
    assert info.components == {"scheduler": "VARScheduler", "transformer": "VARTransformer", "vae": "VQAutoencoder"}
    (tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="vae"):
        load_pipeline(tmp_path / "model")


def official_files(pipeline: VARPipeline, folder: Path) -> tuple[Path, Path]:
    levels = torch.cat([torch.full((side * side,), step) for step, side in enumerate(SIDES)])[None]
    state = {**pipeline.transformer.state_dict(), "lvl_1L": levels}
    return write_pth(folder / "t.pth", state), write_pth(folder / "v.pth", pipeline.vae.state_dict())


def test_variants_and_formats(pipeline: VARPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model", variant="fp16")
    again = quiet(load_pipeline(tmp_path / "model", variant="fp16"))
    assert np.array_equal(draw(again).images, draw(pipeline).images)
    with pytest.raises(InvalidInput, match="safetensors only"):
        pipeline.save_pretrained(tmp_path / "model", safe_serialization=False)


def test_official_files_to_a_folder(pipeline: VARPipeline, tmp_path: Path) -> None:
    transformer, vae = official_files(pipeline, tmp_path)
    folder = convert(transformer, vae, tmp_path / "model")
    again = quiet(load_pipeline(folder))
    assert again.config.model_name is None
    assert np.array_equal(draw(again, top_k=64).images, draw(pipeline).images)
    narrow = quiet(load_pipeline(convert(transformer, vae, tmp_path / "narrow", dtype="bfloat16")))
    assert narrow.attention_dtype == torch.bfloat16
    assert narrow.transformer.head.weight.dtype == torch.float32
    assert 2 * draw(narrow).cache.kept_bytes == draw(pipeline).cache.kept_bytes
    for options in ({"text_encoder": "x"}, {"patchify": True}, {"ema": True}):
        with pytest.raises(InvalidInput, match="is a VAR model, which has no text encoder"):
            convert(transformer, vae, tmp_path / "other", **options)
    with pytest.raises(CheckpointError, match="is a var vae, expected a var transformer"):
        VARPipeline.from_single_file(vae, vae)
    with pytest.raises(CheckpointError, match="is not var-d16: it has layers 4"):
        convert(transformer, vae, tmp_path / "other", model="var-d16")


def test_all_ways_to_load_in_a_type_agree(pipeline: VARPipeline, tmp_path: Path) -> None:
    transformer, vae = official_files(pipeline, tmp_path)
    wide = convert(transformer, vae, tmp_path / "wide")
    found = [
        VARPipeline.from_single_file(transformer, vae, dtype="bfloat16"),
        load_pipeline(convert(transformer, vae, tmp_path / "half", dtype="bfloat16")),
        load_pipeline(wide, dtype="bfloat16"),
    ]
    for one in found:
        for name, tensor in one.transformer.state_dict().items():
            assert tensor.dtype == (torch.bfloat16 if name.startswith("blocks.") else torch.float32), name


def test_offloaded_weights_draw_the_same(pipeline: VARPipeline) -> None:
    offloaded = quiet(tiny_var_pipeline(sides=SIDES))
    for part in (offloaded.transformer, offloaded.vae):
        cpu_offload(part, execution_device=torch.device("cpu"))
    assert offloaded.vae.quantize.embedding.weight.is_meta
    assert np.array_equal(draw(offloaded).images, draw(pipeline).images)


def test_parts_that_do_not_belong_together(pipeline: VARPipeline) -> None:
    other = tiny_var_pipeline(sides=(1, 2))
    with pytest.raises(CheckpointError, match="scheduler does not fit the transformer: it has the segments 1x1 2x2,"):
        VARPipeline(pipeline.transformer, pipeline.vae, other.scheduler)
    from models.var_tiny import tiny_autoencoder

    with pytest.raises(CheckpointError, match="its vocab_size is 24, expected 256"):
        VARPipeline(pipeline.transformer, tiny_autoencoder(), pipeline.scheduler)


def test_class_names_of_other_models() -> None:
    pipeline = quiet(tiny_var_pipeline(sides=(1, 2), num_classes=3))
    with pytest.raises(InvalidInput, match="has no class names"):
        pipeline("fox")
    pipeline.class_names = ("cat", "fox, red fox", "owl")
    assert draw(pipeline, "Red Fox").labels == [1]


@pytest.mark.parametrize(
    "folder",
    [one for one in case_folders() if recorded(one, "ar.") or recorded(one, "smooth.")],
    ids=lambda one: one.name,
)
def test_recorded_runs(folder: Path) -> None:
    case = load_case(folder)
    scheduler = VARScheduler(schedule=case.grids, pixels_per_token=case.autoencoder.patch_size)
    pipeline = quiet(VARPipeline(case.transformer, case.autoencoder, scheduler))
    sample, kind = case.config["sample"], "ar" if recorded(folder, "ar.") else "smooth"
    classes, labels = case.transformer.config.num_classes, labels_of(sample)
    result = pipeline(
        [-1 if label == classes else label for label in labels] if labels else None,
        num_images_per_class=1 if labels else sample["batch"],
        guidance_scale=sample["cfg"],
        top_k=sample.get("top_k", 0),
        top_p=sample.get("top_p", 0.0),
        smooth=sample.get("more_smooth", False),
        generator=seeded(sample["seed"]),
        output_type="pt",
    )
    gap(result.images, case.outputs[f"{kind}.image"], 1e-5 if kind == "ar" else 5e-3)
