"""The bitwise tokenizer: published sizes and keys, bits and back, slicing."""

from __future__ import annotations

import pytest
import torch

from models.infinity_tiny import tiny_autoencoder
from scalekv.errors import InvalidInput
from scalekv.models.convolutions import group_norm
from scalekv.models.infinity import BSQAutoencoder

STRIDE_16 = {"patch_size": 16, "encoder_multipliers": (1, 2, 4, 4, 4), "decoder_multipliers": (1, 2, 4, 4, 4)}
STRIDE_8 = {"patch_size": 8, "encoder_multipliers": (1, 2, 4, 4), "decoder_multipliers": (1, 2, 4, 4)}


@pytest.mark.parametrize(
    ("bits", "sizes", "encoder", "decoder", "keys"),
    [
        *((bits, STRIDE_16, 45.0e6, 65.1e6, 268) for bits in (16, 18, 20, 24, 32, 64)),
        (14, STRIDE_8, 33.1e6, 48.5e6, 224),
    ],
)
def test_published_sizes(bits: int, sizes: dict, encoder: float, decoder: float, keys: int) -> None:
    with torch.device("meta"):
        model = BSQAutoencoder(codebook_bits=bits, **sizes)
    counts = [sum(weight.numel() for weight in part.parameters()) for part in (model.encoder, model.decoder)]
    assert counts == pytest.approx([encoder, decoder], rel=5e-3)
    assert len(model.state_dict()) == keys
    assert model.state_dict()["encoder.conv_out.conv.weight"].shape == (bits, 512, 3, 3)
    assert model.state_dict()["decoder.conv_in.conv.weight"].shape == (512, bits, 3, 3)


def test_unused_tables_of_published_files_are_accepted() -> None:
    model = tiny_autoencoder()
    state = model.state_dict()
    tables = {f"{name}.lfq.mask": 2 ** torch.arange(6) for name in ("quantizer", "quantize")}
    model.load_state_dict({**state, **tables}, strict=True)
    with pytest.raises(RuntimeError, match="other"):
        model.load_state_dict({**state, "other": torch.zeros(1)}, strict=True)


def test_group_norm_rule() -> None:
    assert [group_norm(channels).num_groups for channels in (128, 96, 24, 48)] == [32, 32, 24, 24]
    with pytest.raises(InvalidInput, match="100 channels"):
        group_norm(100)


@torch.no_grad()
def test_bits_describe_the_latent() -> None:
    model, image = tiny_autoencoder(), torch.rand(2, 3, 32, 48) * 2 - 1
    grids = [(1, 1), (2, 3), (4, 6), (8, 12)]
    encoded = model.encode_to_bits(image, grids)
    assert [tuple(bits.shape) for bits in encoded.bits] == [(2, *grid, 6) for grid in grids]
    torch.testing.assert_close(model.decode_bits(encoded.bits), model.decode(encoded.latent))
    coarse = model.encode_to_bits(image, grids[-1:])
    rest = [(model.encode(image) - found.latent).norm() for found in (encoded, coarse)]
    assert all(remaining < model.encode(image).norm() * 3 for remaining in rest)
    assert model(image).shape == image.shape


@torch.no_grad()
def test_slicing_gives_the_same_images() -> None:
    model, latent = tiny_autoencoder(), torch.randn(3, 6, 4, 4)
    image = model.decode(latent)
    model.enable_slicing()
    torch.testing.assert_close(model.decode(latent), image)
    torch.testing.assert_close(model.encode(image), torch.cat([model.encode(one[None]) for one in image]))
    model.disable_slicing()
    assert not model.use_slicing
    assert image.abs().max() <= 1


@torch.no_grad()
def test_bfloat16_decoding_is_close() -> None:
    latent = torch.randn(1, 6, 4, 4)
    exact = tiny_autoencoder().decode(latent)
    rough = tiny_autoencoder().to(torch.bfloat16).decode(latent)
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.decode(torch.zeros(1, 5, 4, 4)), "expected .batch, 6"),
        (lambda model: model.encode(torch.zeros(1, 3, 33, 32)), "multiples of 4"),
        (lambda model: model.encode_to_bits(torch.zeros(1, 3, 16, 16), [(2, 2)]), "latent grid"),
        (lambda _: tiny_autoencoder(patch_size=12), "power of 2"),
        (lambda _: tiny_autoencoder(patch_size=8), "out of reach"),
        (lambda _: tiny_autoencoder(base_channels=20), "20 channels"),
    ],
)
def test_unusable_input_is_refused(call, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        call(tiny_autoencoder())
