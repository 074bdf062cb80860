"""The VAR loop: guidance, randomness, forced tokens, and its tokenizer's part in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.var_tiny import SIDES, draw, seeded, tiny_autoencoder, tiny_transformer
from parity.golden import ConcatCache
from scalekv.cache import KVCache
from scalekv.errors import InvalidInput
from scalekv.models.catalog import model_spec
from scalekv.models.var.codebook import phi_indices, shrink
from scalekv.models.var.generation import Generation, generate
from scalekv.models.var.sampling import draw_classes, filter_logits, guidance_ramp, smooth_weights
from scalekv.planning import CONVENTIONS, CacheGeometry, Schedule
from scalekv.policies import Full, SlidingWindow

SCHEDULE = Schedule.from_sides(SIDES)


def equal(left: Generation, right: Generation) -> bool:
    return torch.equal(left.latent, right.latent) and all(map(torch.equal, left.tokens, right.tokens))


def test_published_memory_of_var_d30() -> None:
    spec = model_spec("var-d30")
    geometry = spec.geometry(spec.schedule, batch=32)
    assert round(CONVENTIONS["hack"].cache_bytes(geometry) / 2**30, 2) == 14.01
    assert CONVENTIONS["hack"].cache_bytes(geometry) == geometry.stock_bytes
    assert round(geometry.lossless_bytes / 2**30, 2) == 5.82


@pytest.mark.parametrize(
    ("name", "mebibytes"),
    [("var-d16", 85), ("var-d20", 133), ("var-d24", 191), ("var-d30", 299), ("var-d36", 1418)],
)
def test_memory_of_one_image(name: str, mebibytes: int) -> None:
    spec = model_spec(name)
    geometry = spec.geometry(spec.schedule)
    assert round(geometry.token_bytes * spec.schedule.total_tokens / 2**20) == mebibytes
    assert spec.schedule.history_tokens == (1216 if name == "var-d36" else 424)


def test_the_ramp_is_linear_from_nothing() -> None:
    assert guidance_ramp(3.0, SCHEDULE) == [0.0, 1.0, 2.0, 3.0]
    assert guidance_ramp(3.0, Schedule.from_sides([4])) == [0.0]


def test_a_ramp_is_its_weights() -> None:
    network = tiny_transformer()
    assert equal(draw(network, guidance=3.0), draw(network, guidance=[0.0, 1.0, 2.0, 3.0, 9.0]))
    assert not equal(draw(network, guidance=3.0), draw(network, guidance=0.0))


def test_no_guidance_is_the_conditional_half() -> None:
    network = tiny_transformer()
    condition = network.prepare_classes([1])
    both = generate(network, condition, tiny_autoencoder().codebook(), ConcatCache(), guidance=0.0, generator=seeded())
    assert equal(both, draw(network, guidance=0.0))


def test_one_generator_per_image_gives_each_what_it_gets_alone() -> None:
    network = tiny_transformer()
    for smooth in (False, True):
        batch = draw(network, [0, 3, 1], generator=[seeded(7), seeded(8), seeded(9)], smooth=smooth)
        alone = draw(network, [3], generator=seeded(8), smooth=smooth)
        assert all(torch.equal(left[1:2], right) for left, right in zip(batch.tokens, alone.tokens, strict=True))
        torch.testing.assert_close(batch.latent[1:2], alone.latent, atol=1e-4 if smooth else 1e-6, rtol=0)


def test_smooth_draws_keep_the_stream_in_order() -> None:
    network, generators = tiny_transformer(), (seeded(3), seeded(3))
    plain = draw(network, generator=generators[0])
    soft = draw(network, generator=generators[1], smooth=True)
    assert torch.equal(plain.tokens[0], soft.tokens[0])
    assert not torch.equal(plain.latent, soft.latent)
    assert not torch.equal(generators[0].get_state(), generators[1].get_state())


def test_smooth_weights_harden() -> None:
    logits = filter_logits(torch.randn(1, 9, 24, generator=seeded()), top_k=5)
    early, late = (smooth_weights(logits, progress, seeded(1)) for progress in (0.0, 1.0))
    assert ((early > 0).sum(-1) <= 5).all()
    assert late.max(-1).values.mean() > early.max(-1).values.mean()


def test_the_nucleus_counts_its_edge_out() -> None:
    kept = filter_logits(torch.zeros(1, 1, 4), top_p=0.5).isfinite().sum().item()
    assert kept == 2, "0.25 + 0.25 is at most 1 - top_p"
    assert filter_logits(torch.zeros(1, 1, 4), top_p=1e-9).isfinite().sum() == 1


def test_random_classes() -> None:
    assert len(set(draw_classes(50, 1000, seeded(1)))) > 40
    own = draw_classes(2, 1000, [seeded(4), seeded(5)])
    assert own == [draw_classes(1, 1000, seeded(4))[0], draw_classes(1, 1000, seeded(5))[0]]


def test_forced_tokens_replace_after_the_draw() -> None:
    network, generator, other = tiny_transformer(), seeded(1), seeded(1)
    free = draw(network, generator=generator)
    forced = draw(network, generator=other, forced_tokens=[free.tokens[0], (free.tokens[1] + 1) % 24])
    assert torch.equal(generator.get_state(), other.get_state())
    assert torch.equal(forced.tokens[1], (free.tokens[1] + 1) % 24)
    flat = [tokens.flatten(1) for tokens in free.tokens]
    assert equal(draw(network, generator=seeded(2), forced_tokens=flat), free)


def test_tokens_inside_a_mask_stay() -> None:
    network = tiny_transformer()
    given, mask = draw(network, [2], seed=1).tokens, torch.zeros(20, 20)
    mask[:, :8] = 1
    drawn = draw(network, [4], seed=2, forced_tokens=given, forced_mask=mask)
    free = draw(network, [4], seed=2)
    assert torch.equal(drawn.tokens[0], free.tokens[0]), "less than half of the first token is inside"
    for ours, theirs, kept in zip(drawn.tokens[1:], given[1:], (1, 1, 2), strict=True):
        assert torch.equal(ours[:, :, :kept], theirs[:, :, :kept])
    assert not torch.equal(drawn.tokens[-1][:, :, 2:], given[-1][:, :, 2:])
    everywhere = draw(network, [4], seed=2, forced_tokens=given, forced_mask=torch.ones(1, 1, 1))
    assert all(map(torch.equal, everywhere.tokens, given))
    maps = [torch.zeros(side, side, dtype=torch.bool) for side in SIDES]
    assert equal(draw(network, [4], seed=2, forced_tokens=given, forced_mask=maps), free)


def test_a_smooth_run_keeps_forced_codes() -> None:
    network = tiny_transformer()
    given = draw(network, seed=1)
    drawn = draw(network, seed=2, smooth=True, forced_tokens=given.tokens)
    assert torch.equal(drawn.latent, given.latent)


@pytest.mark.parametrize("policy", [Full(), SlidingWindow(budget="100%")], ids=lambda policy: policy.name)
@pytest.mark.parametrize("flags", [{}, {"shared_aln": True, "attn_l2_norm": False}], ids=str)
def test_a_full_budget_changes_no_bit(policy: Any, flags: dict[str, Any]) -> None:
    network = tiny_transformer(**flags)
    geometry = CacheGeometry(3, 4, 16, SCHEDULE, batch=2, guidance=2, element_bytes=4)
    with KVCache(policy.plan(geometry), policy, dtype=torch.float32) as cache:
        assert equal(draw(network, [1, 2], cache), draw(network, [1, 2]))


def test_a_callback_replaces_and_stops() -> None:
    network = tiny_transformer()
    zeroed = draw(network, on_segment=lambda segment, latent, _: torch.zeros_like(latent))
    assert not zeroed.latent.equal(draw(network).latent)
    stopped = draw(network, on_segment=lambda segment, *_: segment.index == 1)
    assert len(stopped.tokens) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": [1.0]}, "Got 1 guidance weights for 4 segments"),
        ({"top_k": 25}, "vocabulary of 24, got 25"),
        ({"top_p": 1.5}, "top_p must lie between 0"),
        ({"forced_tokens": [torch.zeros(1, 2, 2).long()]}, "Forced tokens of segment 0 are"),
        ({"forced_tokens": [torch.zeros(1, 1, 1).long()] * 5}, "forced tokens for 5 segments of a schedule of 4"),
        ({"forced_tokens": [torch.full((1, 1, 1), 24)]}, "whole numbers from 0 to 23"),
        ({"forced_tokens": [torch.full((1, 1, 1), 0.5)]}, "whole numbers from 0 to 23"),
        ({"forced_mask": torch.ones(2, 2)}, "needs tokens to put inside"),
        ({"forced_tokens": [torch.zeros(1, 1).long()], "forced_mask": torch.ones(3)}, r"shape \(3,\), expected"),
        ({"forced_tokens": [torch.zeros(1, 1).long()], "forced_mask": [torch.ones(2, 2)]}, r"expected \(1, 1\) tokens"),
        ({"forced_tokens": [torch.zeros(1, 1).long()], "forced_mask": []}, "0 maps for 1 given segments"),
        ({"generator": [seeded(), seeded()]}, "Got 2 generators for 1 images"),
    ],
)
def test_what_cannot_be_used(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        draw(tiny_transformer(), **options)


def test_guidance_needs_unconditional_rows() -> None:
    network = tiny_transformer()
    with pytest.raises(InvalidInput, match="needs unconditional rows"):
        generate(
            network,
            network.prepare_classes([1], guided=False),
            tiny_autoencoder().codebook(),
            ConcatCache(),
            guidance=1.5,
        )


@pytest.mark.parametrize("shared", [0, 1, 3, 4])
def test_convolutions_by_segment(shared: int) -> None:
    model = tiny_autoencoder(shared_phis=shared)
    codebook, phis = model.codebook(), shared or len(SIDES)
    assert len(codebook.phis) == phis
    codes = torch.randn(1, 6, 2, 2, generator=seeded())
    chosen = [
        min(
            range(phis), key=lambda phi: (codebook.residual(codes, step, 4, (5, 5)) - by_hand(model, codes, phi)).norm()
        )
        for step in range(3)
    ]
    assert chosen == list(phi_indices(phis, 4))[:3]


def by_hand(model: Any, codes: torch.Tensor, phi: int) -> torch.Tensor:
    convolutions = [module for module in model.quantize.quant_resi.modules() if isinstance(module, torch.nn.Conv2d)]
    grown = torch.nn.functional.interpolate(codes, size=(5, 5), mode="bicubic")
    return (grown + convolutions[phi](grown)) / 2


def test_without_smoothing_codes_are_added_as_they_are() -> None:
    codebook = tiny_autoencoder(quant_resi=0.0).codebook()
    codes = torch.randn(1, 6, 5, 5, generator=seeded())
    assert not codebook.phis
    assert torch.equal(codebook.residual(codes, 3, 4, (5, 5)), codes)


@pytest.mark.parametrize("sizes", [{}, {"using_znorm": True}, {"shared_phis": 0}], ids=str)
def test_images_become_tokens_and_back(sizes: dict[str, Any]) -> None:
    model, grids = tiny_autoencoder(**sizes), [(side, side) for side in SIDES]
    image = torch.rand(2, 3, 20, 20, generator=seeded()) * 2 - 1
    with torch.no_grad():
        encoded = model.encode_to_tokens(image, grids)
        assert [tuple(tokens.shape[1:]) for tokens in encoded.tokens] == grids
        assert model.decode_tokens(encoded.tokens).equal(model.decode(encoded.latent))
        assert model(image).shape == image.shape
        model.enable_slicing()
        torch.testing.assert_close(model.decode(encoded.latent), model.decode_tokens(encoded.tokens))
        with pytest.raises(InvalidInput, match="must be the image's latent grid"):
            model.encode_to_tokens(image, grids[:-1])
        with pytest.raises(InvalidInput, match="multiples of 4"):
            model.encode(torch.zeros(1, 3, 21, 20))
        with pytest.raises(InvalidInput, match=r"expected \(batch, 6, height, width\)"):
            model.decode(torch.zeros(1, 7, 5, 5))


def test_nearest_codes_are_the_nearest() -> None:
    codebook = tiny_autoencoder().codebook()
    tokens = torch.randint(0, 24, (2, 3, 3), generator=seeded())
    assert torch.equal(codebook.nearest(codebook.lookup(tokens) + 1e-3), tokens)


def test_statistics_of_another_schedule_do_not_matter() -> None:
    model, state = tiny_autoencoder(), tiny_autoencoder(num_scales=9).state_dict()
    model.load_state_dict(state, strict=True)
    assert len(model.quantize.ema_vocab_hit_SV) == len(SIDES)


def test_averages_over_areas() -> None:
    latent = torch.arange(25.0).view(1, 1, 5, 5)
    assert shrink(latent, (1, 1)).item() == 12
    assert shrink(latent, (2, 2))[0, 0, 0, 0] == latent[0, 0, :3, :3].mean()


def test_an_impossible_tokenizer() -> None:
    with pytest.raises(InvalidInput, match="num_scales=0"):
        tiny_autoencoder(num_scales=0)
