"""Known models: their figures follow from their shapes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from scalekv.errors import InvalidInput
from scalekv.models.catalog import matching_models, model_names, model_spec, register_model
from scalekv.models.infinity.schedules import schedule_for
from scalekv.planning import Profile


def test_the_catalog_loads_neither_torch_nor_diffusers() -> None:
    code = "import sys, scalekv.models.catalog; print([m for m in ('torch', 'diffusers') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_published_names() -> None:
    infinity = ("infinity-125m", "infinity-2b", "infinity-8b", "infinity-8b-512")
    assert model_names() == (*infinity, "var-d16", "var-d20", "var-d24", "var-d30", "var-d36")
    assert model_spec("Infinity_2B") is model_spec("infinity-2b")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match=r"'infinity-3b'.*infinity-125m, infinity-2b, infinity-8b, infinity-8b-512"):
        model_spec("infinity-3b")


@pytest.mark.parametrize("name", ["infinity-125m", "infinity-2b", "infinity-8b", "infinity-8b-512"])
def test_parameters_are_those_of_the_network(name: str) -> None:
    import torch

    from scalekv.models.infinity import BSQAutoencoder, InfinityTransformer

    spec = model_spec(name)
    with torch.device("meta"):
        network = InfinityTransformer(
            depth=spec.layers,
            width=spec.width,
            num_heads=spec.heads,
            codebook_bits=spec.autoencoder.codebook_dim,
            patchify=spec.patchify,
            block_chunks=4 if name == "infinity-125m" else 8,
        )
        multipliers = (1, 2, 4, 4) if spec.patchify else (1, 2, 4, 4, 4)
        vae = BSQAutoencoder(
            codebook_bits=spec.autoencoder.codebook_dim,
            patch_size=spec.autoencoder.patch_size,
            encoder_multipliers=multipliers,
            decoder_multipliers=multipliers,
        )
    assert sum(parameter.numel() for parameter in network.parameters()) == spec.parameters
    assert sum(parameter.numel() for parameter in vae.parameters()) == spec.autoencoder.parameters
    assert network.token_bits == spec.bits
    assert spec.head_dim == network.head_dim


def test_cache_of_a_known_model_is_the_published_figure() -> None:
    geometry = model_spec("infinity-8b").geometry(schedule_for("1.000", "1M"))
    assert geometry.lossless_bytes / 1e9 == pytest.approx(7.37, abs=0.005)
    assert geometry.stock_bytes / 1e9 == pytest.approx(18.10, abs=0.005)


@pytest.mark.parametrize("name", ["infinity-2b", "infinity-8b"])
def test_the_built_in_profile_fits_the_model(name: str) -> None:
    spec = model_spec(name)
    profile = Profile.builtin(spec.profile)
    assert profile is not None
    assert (profile.layers, profile.heads) == (spec.layers, spec.heads)


def test_equal_shapes_are_told_apart_by_name_only() -> None:
    assert [spec.name for spec in matching_models("infinity", 40, 28, 3584, 56)] == ["infinity-8b", "infinity-8b-512"]
    assert matching_models("infinity", 39, 28, 3584, 56) == ()


def test_a_taken_name_is_refused() -> None:
    spec = model_spec("infinity-2b")
    assert register_model(spec) is spec
    with pytest.raises(ValueError, match="infinity-2b"):
        register_model(replace(spec, layers=31))
