"""Drawing pictures: the habits of a diffusers pipeline."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.helpers import draw, equal, quiet_pipeline, seeded
from scalekv.errors import InvalidInput
from scalekv.models.infinity import BSQAutoencoder, InfinityScheduler, InfinityTransformer
from scalekv.pipelines import InfinityPipeline, InfinityPipelineOutput
from scalekv.planning import Profile
from scalekv.policies import Full, ScaleKV, SlidingWindow


def test_a_prompt_becomes_a_colourful_picture(pipeline: InfinityPipeline) -> None:
    result = pipeline("a fox", generator=seeded(7))
    assert isinstance(result, InfinityPipelineOutput)
    (image,) = result.images
    assert isinstance(image, Image.Image)
    assert (image.size, image.mode) == ((256, 256), "RGB")
    pixels = np.asarray(image).astype(float)
    assert pixels.std() > 30
    assert np.abs(pixels[..., 0] - pixels[..., 1]).mean() > 15
    assert result.seeds == [7]
    assert result.truncated == []
    assert not result.interrupted
    assert result.cache.policy == "full"
    assert result.cache.seconds is not None
    assert result.cache.seconds > 0
    assert result.cache.measured_peak_bytes == result.cache.peak_bytes


def test_seed_and_prompt_decide(pipeline: InfinityPipeline) -> None:
    first = draw(pipeline)
    assert equal(first, draw(pipeline))
    assert not equal(first, draw(pipeline, generator=seeded(1)))
    assert not equal(first, draw(pipeline, "a house"))


def test_output_types_agree(pipeline: InfinityPipeline) -> None:
    array = draw(pipeline).images
    assert array.shape == (1, 256, 256, 3)
    assert array.dtype == np.float32
    assert 0 <= array.min() < array.max() <= 1
    tensor = draw(pipeline, output_type="pt").images
    assert np.array_equal(tensor.permute(0, 2, 3, 1).numpy(), array)
    picture = np.asarray(draw(pipeline, output_type="pil").images[0])
    assert np.array_equal(picture, np.floor(array[0] * np.float32(255)).astype(np.uint8))
    latent = draw(pipeline, output_type="latent").images
    assert latent.shape == (1, 16, 16, 16)
    with torch.no_grad():
        assert torch.equal((pipeline.vae.decode(latent) + 1) / 2, tensor)


def test_a_tuple_on_request(pipeline: InfinityPipeline) -> None:
    images, report = draw(pipeline, return_dict=False)
    assert np.array_equal(images, draw(pipeline).images)
    assert report.policy == "full"


def test_full_budget_is_the_full_cache(pipeline: InfinityPipeline) -> None:
    assert equal(draw(pipeline), draw(pipeline, kv_cache=SlidingWindow(budget="100%")))
    assert equal(draw(pipeline), draw(pipeline, kv_cache=Full()))


@pytest.mark.parametrize("policy", [SlidingWindow(budget="30%"), ScaleKV(budget="30%")], ids=lambda one: one.name)
def test_a_small_cache_keeps_its_budget(policy: Any, pipeline: InfinityPipeline) -> None:
    schedule = pipeline.scheduler.resolve().schedule
    statistics = {"asi": tuple(tuple(float(layer) for layer in range(6)) for _ in schedule)}
    profile = Profile("tiny", 6, 4, schedule, statistics=statistics)
    result = draw(pipeline, kv_cache=policy, profile=profile)
    assert result.cache.kept_bytes <= 0.3 * result.cache.lossless_bytes
    assert not equal(result, draw(pipeline))


def test_several_images_of_several_prompts(pipeline: InfinityPipeline) -> None:
    generators = [seeded(seed) for seed in range(4)]
    batch = draw(pipeline, ["a fox", "a much longer house"], num_images_per_prompt=2, generator=generators)
    assert batch.seeds == [0, 1, 2, 3]
    for place, (prompt, seed) in enumerate(
        [("a fox", 0), ("a fox", 1), ("a much longer house", 2), ("a much longer house", 3)]
    ):
        alone = draw(pipeline, prompt, generator=seeded(seed)).images[0]
        np.testing.assert_allclose(batch.images[place], alone, atol=2e-5)


def test_one_generator_draws_in_the_published_order(pipeline: InfinityPipeline) -> None:
    batch = draw(pipeline, ["a fox", "a house"], generator=seeded(3))
    assert batch.seeds == [3, 3]
    assert batch.images.shape == (2, 256, 256, 3)
    assert not np.array_equal(batch.images[0], draw(pipeline, "a fox", generator=seeded(3)).images[0])


def test_without_a_generator_the_global_state_decides(pipeline: InfinityPipeline) -> None:
    torch.manual_seed(5)
    first = draw(pipeline, generator=None)
    torch.manual_seed(5)
    assert equal(first, draw(pipeline, generator=None))
    assert first.seeds == [None]


def test_negative_prompts(pipeline: InfinityPipeline) -> None:
    plain, steered = draw(pipeline), draw(pipeline, negative_prompt="blue")
    assert not equal(plain, steered)
    assert equal(plain, draw(pipeline, negative_prompt=""))
    pair = draw(pipeline, ["a fox", "a fox"], negative_prompt=["blue", ""], generator=[seeded(), seeded()])
    np.testing.assert_allclose(pair.images[0], steered.images[0], atol=2e-5)
    np.testing.assert_allclose(pair.images[1], plain.images[0], atol=2e-5)
    one_for_all = draw(pipeline, ["a fox", "a fox"], negative_prompt="blue", generator=[seeded(), seeded()])
    np.testing.assert_allclose(one_for_all.images[1], steered.images[0], atol=2e-5)


def test_guidance_of_one_runs_half_the_rows(pipeline: InfinityPipeline) -> None:
    plain = draw(pipeline, guidance_scale=1)
    assert 2 * plain.cache.lossless_bytes == draw(pipeline).cache.lossless_bytes
    assert equal(plain, draw(pipeline, guidance_scale=1.0, negative_prompt="blue"))


def test_settings_per_segment(pipeline: InfinityPipeline) -> None:
    assert equal(draw(pipeline), draw(pipeline, guidance_scale=[3.0] * 10, temperature=[0.5] * 12))
    assert not equal(draw(pipeline), draw(pipeline, guidance_scale=[3.0] * 9 + [1.0]))


def test_the_likeliest_bits_need_no_seed(pipeline: InfinityPipeline) -> None:
    assert equal(draw(pipeline, top_k=1), draw(pipeline, top_k=1, generator=seeded(9)))


def test_features_instead_of_a_prompt(pipeline: InfinityPipeline) -> None:
    from scalekv.models.infinity.text import encode_prompts

    with torch.no_grad():
        fox, blue = encode_prompts(["a fox", "blue"], pipeline.tokenizer, pipeline.text_encoder, 128).features
    assert equal(draw(pipeline), draw(pipeline, prompt_embeds=[fox]))
    steered = draw(pipeline, prompt_embeds=[fox], negative_prompt_embeds=[blue])
    assert equal(steered, draw(pipeline, negative_prompt="blue"))


def test_encoded_prompts_are_features(pipeline: InfinityPipeline) -> None:
    (fox,) = pipeline.encode_prompt("a fox")
    assert (fox.ndim, fox.shape[1], fox.requires_grad) == (2, 128, False)
    blue = pipeline.encode_prompt(["blue"])
    assert equal(draw(pipeline), draw(pipeline, prompt_embeds=[fox]))
    steered = draw(pipeline, prompt_embeds=[fox], negative_prompt_embeds=blue)
    assert equal(steered, draw(pipeline, negative_prompt="blue"))
    assert torch.equal(pipeline.encode_prompt("a man", "nice")[0], pipeline.encode_prompt("a man nice")[0])
    with pytest.raises(InvalidInput, match="prompt must be a text"):
        pipeline.encode_prompt(3)
    bare = InfinityPipeline.from_pipe(pipeline, text_encoder=None)
    with pytest.raises(InvalidInput, match="has no text encoder"):
        bare.encode_prompt("a fox")


def test_a_negative_prompt_is_encoded_once(pipeline: InfinityPipeline, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []
    hook = pipeline.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    endless = "blue " * 100
    try:
        with caplog.at_level(logging.WARNING, logger="scalekv"):
            draw(pipeline, ["a fox", "a house", "a cat"], negative_prompt=["", endless, endless])
    finally:
        hook.remove()
    assert len(calls) == 4
    assert [one.message[:31] for one in caplog.records] == ["Negative prompt 1 is longer tha"]


def test_a_pipeline_without_text_encoder(pipeline: InfinityPipeline) -> None:
    parts = {**pipeline.components, "text_encoder": None, "tokenizer": None}
    bare = InfinityPipeline(**parts)
    bare.set_progress_bar_config(disable=True)
    assert draw(bare, prompt_embeds=[torch.randn(3, 128)]).images.shape == (1, 256, 256, 3)
    with pytest.raises(ValueError, match="This pipeline has no text encoder; pass prompt_embeds"):
        draw(bare)


def test_the_positive_prompt_is_off_by_default(pipeline: InfinityPipeline) -> None:
    person = draw(pipeline, "a man", positive_prompt="nice")
    assert equal(person, draw(pipeline, "a man nice"))
    assert equal(draw(pipeline, positive_prompt="nice"), draw(pipeline))


def test_forced_bits_are_drawn_as_they_are(pipeline: InfinityPipeline) -> None:
    schedule = pipeline.scheduler.resolve().schedule
    bits = [torch.ones(1, one.height, one.width, 16, dtype=torch.uint8) for one in schedule]
    latent = draw(pipeline, forced_bits=bits, output_type="latent").images
    torch.testing.assert_close(latent, torch.full_like(latent, 10 / 4))


@pytest.mark.parametrize("patchify", [False, True])
def test_repainting_keeps_what_the_mask_holds(patchify: bool) -> None:
    pipeline = quiet_pipeline(patchify=patchify)
    side = pipeline.transformer.patch_size
    grids = [(one.height * side, one.width * side) for one in pipeline.scheduler.resolve().schedule]
    with torch.no_grad():
        given = pipeline.vae.encode_to_bits(torch.rand(1, 3, 256, 256, generator=seeded(3)) * 2 - 1, grids).bits
    mask = torch.ones(256, 256)
    mask[:, 128:] = 0
    drawn = draw(pipeline, forced_bits=given, forced_mask=mask).drawn
    for ours, theirs in zip(drawn, given, strict=True):
        kept = -(-ours.shape[2] // 2)  # half of a pixel inside the mask is enough
        assert torch.equal(ours[:, :, :kept], theirs[:, :, :kept])
    assert not torch.equal(ours[:, :, kept:], theirs[:, :, kept:])


def test_what_was_drawn_can_be_drawn_again(pipeline: InfinityPipeline) -> None:
    first = draw(pipeline)
    assert [bits.shape[1:3] for bits in first.drawn] == [(one.height, one.width) for one in first.schedule]
    again = draw(pipeline, "a bear", forced_bits=first.drawn, generator=seeded(9))
    assert equal(again, first)


def test_an_empty_and_an_endless_prompt(pipeline: InfinityPipeline, caplog: pytest.LogCaptureFixture) -> None:
    assert draw(pipeline, "").images.shape == (1, 256, 256, 3)
    with caplog.at_level(logging.WARNING, logger="scalekv"):
        result = draw(pipeline, ["short", "x" * 10_000], generator=None)
    assert result.truncated == [1]
    assert "Prompt 1 is longer than the 128 tokens" in caplog.text


@pytest.fixture(scope="module")
def sized() -> InfinityPipeline:
    pipeline = quiet_pipeline()
    pipeline.register_modules(scheduler=InfinityScheduler(size="0.06M"))
    return pipeline


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (256, 256)),
        ({"aspect_ratio": "16:9"}, (336, 192)),
        ({"aspect_ratio": 9 / 16}, (192, 336)),
        ({"height": 256, "width": 320}, (320, 256)),
        ({"height": 250, "width": 250}, (256, 256)),
        ({"size": "0.06m", "aspect_ratio": "1:3"}, (144, 432)),
    ],
    ids=str,
)
def test_sizes(options: dict[str, Any], size: tuple[int, int], sized: InfinityPipeline) -> None:
    result = draw(sized, output_type="pil", guidance_scale=1, **options)
    assert result.images[0].size == size
    assert result.schedule[-1].width * 16 == size[0]


def test_another_size_than_asked_for_is_said(sized: InfinityPipeline, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="scalekv"):
        draw(sized, height=250, width=250, guidance_scale=1)
    assert "does not draw 250 x 250 (width x height); drawing the nearest, 256 x 256" in caplog.text


@pytest.mark.parametrize(("ratio", "said"), [("16:9", True), (1.01, True), (16 / 9, True), ("1:3", False), (1, False)])
def test_another_ratio_than_asked_for_is_said(
    ratio: Any, said: bool, sized: InfinityPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="scalekv"):
        result = draw(sized, aspect_ratio=ratio, guidance_scale=1)
    height, width = result.images.shape[1:3]
    shown = f"{ratio:.4g}" if isinstance(ratio, float) else ratio
    expected = f"does not draw the aspect ratio {shown}; drawing the nearest, {width} x {height}."
    assert (expected in caplog.text) == said == bool(caplog.records)


def test_patchified_tokens() -> None:
    result = draw(quiet_pipeline(patchify=True))
    assert result.images.shape == (1, 256, 256, 3)
    assert result.images.std() > 0.1


def test_bfloat16() -> None:
    pipeline = quiet_pipeline().to(torch.bfloat16)
    assert pipeline.attention_dtype == torch.bfloat16
    result = draw(pipeline, kv_cache=SlidingWindow(budget="50%"))
    assert result.images.dtype == np.float32
    assert result.cache.measured_peak_bytes == result.cache.peak_bytes


def test_offload_hooks_change_nothing(pipeline: InfinityPipeline) -> None:
    offloaded = quiet_pipeline()
    offloaded.enable_model_cpu_offload(device="cpu")
    assert equal(draw(pipeline), draw(offloaded))
    assert equal(draw(pipeline), draw(offloaded))


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offload_changes_nothing(kind: str, pipeline: InfinityPipeline) -> None:
    offloaded = quiet_pipeline()
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    offloaded.transformer.enable_group_offload(onload_device=torch.device("cpu"), offload_type=kind, **blocks)
    policy = SlidingWindow(budget="40%")
    assert equal(draw(pipeline, kv_cache=policy), draw(offloaded, kv_cache=policy))


def test_weights_can_be_stored_in_eight_bits() -> None:
    pipeline = quiet_pipeline().to(torch.bfloat16)
    pipeline.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)
    assert pipeline.attention_dtype == torch.bfloat16
    assert draw(pipeline).images.std() > 0.1


def test_the_progress_bar_counts_segments(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = quiet_pipeline()
    pipeline.set_progress_bar_config(disable=False)
    draw(pipeline)
    shown = capsys.readouterr().err
    assert "10/10" in shown
    assert "kv " in shown


def test_components_are_the_promised_ones(pipeline: InfinityPipeline) -> None:
    assert set(pipeline.components) == {"transformer", "vae", "scheduler", "text_encoder", "tokenizer"}
    again = InfinityPipeline(**pipeline.components)
    again.set_progress_bar_config(disable=True)
    assert equal(draw(pipeline), draw(again))


def test_a_pipeline_from_a_pipeline(pipeline: InfinityPipeline) -> None:
    first = InfinityPipeline(**pipeline.components, model_name="infinity-2b")
    first.profile = Profile("tiny", 6, 4, pipeline.scheduler.resolve().schedule, roles={2: (0, 1)})
    first.transformer.head.to(torch.float64)
    again = InfinityPipeline.from_pipe(first)
    assert first.transformer.head.weight.dtype == torch.float64
    first.transformer.head.to(torch.float32)
    again.set_progress_bar_config(disable=True)
    assert again.transformer is first.transformer
    assert (again.profile, again.config.model_name) == (first.profile, "infinity-2b")
    assert equal(draw(pipeline), draw(again))
    assert InfinityPipeline.from_pipe(first, model_name=None, text_encoder=None).text_encoder is None
    with pytest.raises(InvalidInput, match="has no part dtype; it has model_name, scheduler"):
        InfinityPipeline.from_pipe(first, dtype=torch.float32)
    with pytest.raises(InvalidInput, match="takes a InfinityPipeline, got a int"):
        InfinityPipeline.from_pipe(3)


def test_parts_are_annotated_with_their_classes() -> None:
    parts = InfinityPipeline._get_signature_types()
    assert parts["transformer"] == (InfinityTransformer,)
    assert (BSQAutoencoder, InfinityScheduler) == (*parts["vae"], *parts["scheduler"])


def test_one_seed_makes_one_model() -> None:
    torch.manual_seed(1)
    first = quiet_pipeline(seed=3)
    assert torch.initial_seed() == 1
    left, right = (one.transformer.state_dict() for one in (first, quiet_pipeline(seed=3)))
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert not torch.equal(left["head.weight"], quiet_pipeline(seed=4).transformer.state_dict()["head.weight"])
