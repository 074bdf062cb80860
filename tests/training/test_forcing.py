"""Teacher forcing says what the cached generation says, on any prefix of the scales."""

import pytest
import torch
from training.forcing import BlockCausal, PaddedText, bit_loss, corrected, forced_logits

from scalekv.cache import KVCache
from scalekv.models.infinity import InfinityTransformer
from scalekv.models.infinity.generation import generate
from scalekv.models.infinity.sampling import bits_to_codes, patchify, resize
from scalekv.planning import CacheGeometry, Schedule
from scalekv.policies import Full

SIDES = (1, 2, 3, 4)
BITS = 8
LENGTHS = (3, 5)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return InfinityTransformer(
        depth=2, width=32, num_heads=2, codebook_bits=BITS, text_channels=128, text_maxlen=8, block_chunks=2
    ).eval()


@pytest.fixture(scope="module")
def features():
    torch.manual_seed(1)
    return [torch.randn(length, 128) for length in LENGTHS]


def drawn_bits(sides=SIDES):
    torch.manual_seed(2)
    return [torch.randint(0, 2, (len(LENGTHS), side, side, BITS), dtype=torch.uint8) for side in sides]


def inputs_of(bits, sides):
    final, total, inputs = (SIDES[-1],) * 2, 0, []
    for scale, side in zip(bits, sides[1:], strict=False):
        total = total + resize(bits_to_codes(scale), final)
        inputs.append(patchify(resize(total, (side, side)), 1))
    return inputs


def padded(features):
    words = torch.nn.utils.rnn.pad_sequence(features, batch_first=True, padding_value=7.0)
    return PaddedText(words, torch.arange(words.shape[1]) < torch.tensor(LENGTHS)[:, None])


@torch.no_grad()
def forced(network, features, sides, fused=False, together=100):
    schedule = Schedule.from_sides(sides)
    rope = network.build_rope(Schedule.from_sides(SIDES), (SIDES[-1],) * 2)
    cache = BlockCausal(schedule, torch.device("cpu"), together)
    cache.fused = fused
    return forced_logits(network, inputs_of(drawn_bits(), sides), padded(features), schedule, rope, cache)


@torch.no_grad()
def generated(network, features):
    schedule = Schedule.from_sides(SIDES)
    geometry = CacheGeometry(2, 2, 16, schedule, batch=len(features), guidance=1, element_bytes=4)
    logits = []
    with KVCache(Full().plan(geometry), Full(), dtype=torch.float32, device="cpu") as cache:
        generate(
            network,
            network.prepare_text(features, guided=False),
            schedule,
            network.build_rope(schedule, (SIDES[-1],) * 2),
            cache,
            guidance=1.0,
            forced_bits=drawn_bits(),
            on_segment=lambda segment, codes, found: logits.append(found),
        )
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize(("fused", "together"), [(True, 100), (False, 100), (False, 14), (False, 0)])
def test_forced_logits_are_those_of_the_cached_generation(network, features, fused, together):
    difference = forced(network, features, SIDES, fused, together) - generated(network, features)
    assert difference.abs().max() < 1e-5


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_prefix_of_the_scales_says_the_same(network, features, count):
    part = forced(network, features, SIDES[:count])
    whole = forced(network, features, SIDES)
    assert (part - whole[:, : part.shape[1]]).abs().max() < 1e-5


def test_without_flips_targets_are_the_bits_of_the_tokenizer():
    from scalekv.models.infinity import BSQAutoencoder

    vae = BSQAutoencoder(
        codebook_bits=BITS,
        patch_size=2,
        base_channels=24,
        encoder_multipliers=(1, 1),
        decoder_multipliers=(1, 1),
        num_res_blocks=1,
    )
    latent = torch.randn(2, BITS, 4, 4)
    grids = [(side, side) for side in SIDES]
    forcing = corrected(latent, grids, grids[-1], torch.zeros(2))
    encoded = vae.encode_latent(latent, grids)
    assert torch.equal(forcing.targets, torch.cat([bits.flatten(1, 2) for bits in encoded.bits], dim=1))
    for mine, theirs in zip(forcing.inputs, inputs_of(encoded.bits, SIDES), strict=True):
        assert torch.equal(mine, theirs)


def test_flipped_bits_change_later_targets_but_not_their_own():
    torch.manual_seed(3)
    latent = torch.randn(2, BITS, 4, 4)
    grids = [(side, side) for side in SIDES]
    true = corrected(latent, grids, grids[-1], torch.zeros(2))
    flipped = corrected(latent, grids, grids[-1], torch.tensor([0.0, 0.5]))
    assert torch.equal(true.targets[0], flipped.targets[0])
    assert torch.equal(true.targets[1, 0], flipped.targets[1, 0])
    assert not torch.equal(true.targets[1, 1:], flipped.targets[1, 1:])


def test_loss_weighs_segments_as_promised():
    schedule = Schedule.from_sides((1, 2))
    logits = torch.zeros(1, 5, 4)
    logits[:, 0, 1::2] = 3.0
    targets = torch.zeros(1, 5, 2, dtype=torch.uint8)
    total, plain = bit_loss(logits, targets, schedule, 1.0)
    high, low = torch.log1p(torch.tensor(3.0).exp()), torch.tensor(2.0).log()
    assert torch.allclose(plain, torch.stack([high, low]))
    assert torch.allclose(total, (high + low) / 2)
