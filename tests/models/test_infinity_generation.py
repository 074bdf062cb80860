"""The next-scale loop and the sampler of Infinity."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.infinity_tiny import EXTENT, FLAGS, SCHEDULE, texts, tiny_autoencoder, tiny_transformer
from parity.golden import ConcatCache
from scalekv.errors import InvalidInput
from scalekv.models.infinity import InfinityTransformer
from scalekv.models.infinity.autoencoder import accumulate
from scalekv.models.infinity.generation import Generation, generate
from scalekv.models.infinity.sampling import filter_logits, patchify, resize, sample_bits, unpatchify


def draw(model: InfinityTransformer, features: list, guided: bool = True, **options: Any) -> Generation:
    options = {"guidance": 3.0 if guided else 1.0, "temperature": 0.8, "top_p": 0.97, **options}
    condition = model.prepare_text(features, options.pop("negative", None), guided=guided)
    return generate(model, condition, SCHEDULE, model.build_rope(SCHEDULE, EXTENT), ConcatCache(), **options)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same_bits(ours: list, theirs: list) -> bool:
    return all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_one_generator_per_image_gives_each_what_it_gets_alone(flags: dict) -> None:
    model, features = tiny_transformer(**flags), texts(4, 9, 4)
    together = draw(model, features, generator=[seeded(seed) for seed in (5, 6, 7)])
    patch = model.patch_size
    assert [tuple(bits.shape) for bits in together.bits] == [
        (3, segment.height * patch, segment.width * patch, 6) for segment in SCHEDULE
    ]
    for image, text in enumerate(features):
        alone = draw(model, [text], generator=seeded(5 + image))
        assert same_bits([bits[image : image + 1] for bits in together.bits], alone.bits)
        torch.testing.assert_close(together.codes[image : image + 1], alone.codes)


def test_codes_are_the_sum_of_all_segments() -> None:
    drawn = draw(tiny_transformer(patchify=True), texts(4), generator=seeded(0))
    *_, total = accumulate(drawn.bits)
    torch.testing.assert_close(drawn.codes, total)


def test_same_seed_same_bits() -> None:
    model = tiny_transformer()
    first, again, other = (draw(model, texts(4), generator=seeded(seed)) for seed in (1, 1, 2))
    assert same_bits(first.bits, again.bits)
    assert not same_bits(first.bits, other.bits)


def test_global_generator_is_used_without_one() -> None:
    model = tiny_transformer()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        assert same_bits(draw(model, texts(4)).bits, draw(model, texts(4), generator=seeded(3)).bits)


def test_forced_bits_replace_after_the_draw() -> None:
    model, generator = tiny_transformer(), seeded(1)
    free = draw(model, texts(4), generator=generator)
    after = generator.get_state()
    forced = [1 - bits for bits in free.bits[:2]]
    generator = seeded(1)
    partly = draw(model, texts(4), generator=generator, forced_bits=[forced[0], forced[1][:, None]])
    assert torch.equal(generator.get_state(), after)
    assert same_bits(partly.bits[:2], forced)
    assert not same_bits(partly.bits[2:], free.bits[2:])
    assert same_bits(draw(model, texts(4), generator=seeded(1), forced_bits=free.bits).bits, free.bits)


def test_a_run_can_be_watched_and_stopped() -> None:
    model, decoder, seen = tiny_transformer(), tiny_autoencoder(), []
    full = draw(model, texts(4), generator=seeded(1), on_segment=lambda *step: seen.append(step))
    assert [segment for segment, _, _ in seen] == list(SCHEDULE)
    assert all(decoder.decode(codes).shape == (1, 3, 16, 24) for _, codes, _ in seen)
    assert [tuple(logits.shape) for _, _, logits in seen] == [(1, segment.tokens, 12) for segment in SCHEDULE]
    stopped = draw(model, texts(4), generator=seeded(1), on_segment=lambda segment, *_: segment.index == 1)
    assert same_bits(stopped.bits, full.bits[:2])
    assert torch.equal(stopped.codes, seen[1][1])


def test_codes_can_be_replaced_on_the_way() -> None:
    model = tiny_transformer()
    cleared = draw(model, texts(4), generator=seeded(1), on_segment=lambda _s, codes, _l: torch.zeros_like(codes))
    assert not cleared.codes.any()


def test_likeliest_bits_need_no_luck() -> None:
    model = tiny_transformer()
    assert same_bits(
        draw(model, texts(4), top_k=1, generator=seeded(1)).bits,
        draw(model, texts(4), top_k=1, generator=seeded(2)).bits,
    )


def test_values_per_segment() -> None:
    model = tiny_transformer()
    lists = {"guidance": [3.0] * 5, "temperature": [0.8] * 4, "top_k": [0] * 4, "top_p": (0.97,) * 9}
    assert same_bits(
        draw(model, texts(4), generator=seeded(1), **lists).bits, draw(model, texts(4), generator=seeded(1)).bits
    )


def test_guidance_one_at_some_segments_is_conditional_there() -> None:
    model, rows = tiny_transformer(), []
    hook = model.register_forward_hook(lambda _m, _i, logits: rows.append(len(logits)))
    draw(model, texts(4, 5), generator=seeded(1), guidance=[3.0, 1.0, 2.0, 1.0])
    hook.remove()
    assert rows == [4, 2, 4, 2]


def test_without_guidance_only_prompts_are_run() -> None:
    model = tiny_transformer()
    drawn = draw(model, texts(4), guided=False, generator=seeded(1))
    guided = draw(model, texts(4), guidance=1.0, generator=seeded(1))
    assert same_bits(drawn.bits, guided.bits)


@pytest.mark.parametrize("layers", [[0], [-1], [1], [-2, -1], [0, -1]])
def test_guidance_places(layers: list[int]) -> None:
    model = tiny_transformer()
    drawn = draw(model, texts(4), generator=seeded(1), cfg_insertion_layer=layers, top_k=1)
    plain = draw(model, texts(4), guided=False, generator=seeded(1), top_k=1)
    assert same_bits(drawn.bits, plain.bits) == (layers == [1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": [3.0, 3.0]}, "2 values of guidance for 4 segments"),
        ({"temperature": 0}, "Temperatures"),
        ({"temperature": [1, 1, -1, 1]}, "Temperatures"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 1.5}, "top_p"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1"),
        ({"cfg_insertion_layer": [3]}, "cfg_insertion_layer"),
        ({"forced_bits": [torch.zeros(1, 2, 2, 6)]}, "segment 0"),
        ({"forced_bits": [torch.zeros(1, 1, 1, 6)] * 5}, "5 segments"),
        ({"guided": False, "guidance": 2.0}, "guided=True"),
    ],
)
def test_unusable_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        draw(tiny_transformer(), texts(4), **options)


def test_schedules_end_at_the_level_embedding() -> None:
    from scalekv.planning import Schedule

    model, schedule = tiny_transformer(), Schedule.from_sides([1] * 16)
    with pytest.raises(InvalidInput, match="at most 15"):
        generate(model, model.prepare_text(texts(3)), schedule, model.build_rope(schedule, (1, 1)), ConcatCache())


def test_top_p_removes_what_is_at_most_the_rest() -> None:
    chances = torch.tensor([[0.03, 0.97], [0.96, 0.04], [0.5, 0.5], [0.2, 0.8]])
    kept = filter_logits(chances.log(), top_p=0.97).isfinite()
    assert kept.tolist() == [[False, True], [True, True], [True, True], [True, True]]
    assert filter_logits(chances.log(), top_p=0.4).isfinite().sum(-1).tolist() == [1, 1, 1, 1]
    assert filter_logits(chances.log(), top_k=1).isfinite().sum(-1).tolist() == [1, 1, 2, 1]
    assert filter_logits(chances.log(), top_k=900).isfinite().all()


def test_sampling_consumes_by_shape_only() -> None:
    logits, ends = torch.randn(2, 5, 12, generator=seeded(0)), []
    for top_k, top_p in ((0, 0.0), (1, 0.0), (900, 0.97)):
        generator = seeded(4)
        sample_bits(logits, top_k, top_p, generator)
        ends.append(generator.get_state())
    expected = seeded(4)
    torch.empty(2 * 5 * 6, 2).exponential_(generator=expected)
    assert all(torch.equal(end, expected.get_state()) for end in ends)


def test_sampling_follows_the_probabilities() -> None:
    logits = torch.tensor([0.0, 1.5]).repeat(1, 4000, 3)
    share = sample_bits(logits, generator=seeded(0)).float().mean().item()
    assert share == pytest.approx(torch.sigmoid(torch.tensor(1.5)).item(), abs=0.01)


def test_patches_return() -> None:
    latent = torch.randn(2, 3, 4, 6)
    tokens = patchify(latent, 2).unflatten(1, (2, 3))
    assert torch.equal(unpatchify(tokens, 2).permute(0, 3, 1, 2), latent)
    assert torch.equal(tokens[0, 1, 2], latent[0, :, 2:4, 4:6].flatten())
    assert resize(latent, (4, 6)) is latent
