"""Saving and loading the Infinity components in diffusers' folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

import scalekv.models.infinity as family
from models.infinity_tiny import FLAGS, tiny_autoencoder, tiny_transformer
from scalekv.models.infinity import BSQAutoencoder, InfinityScheduler, InfinityTransformer


def same_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    left, right = ours.state_dict(), theirs.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_transformer_returns_from_its_folder(flags: dict, tmp_path: Path) -> None:
    model = tiny_transformer(**flags)
    model.save_pretrained(tmp_path)
    again = InfinityTransformer.from_pretrained(tmp_path)
    same_weights(model, again)
    assert {name: again.config[name] for name in flags} == flags


def test_delicate_parts_stay_float32_when_loaded_in_bfloat16(tmp_path: Path) -> None:
    tiny_transformer().save_pretrained(tmp_path)
    model = InfinityTransformer.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert model.attention_dtype == torch.bfloat16
    assert model.head.weight.dtype == model.shared_ada_lin[1].weight.dtype == torch.float32


def test_autoencoder_returns_from_its_folder(tmp_path: Path) -> None:
    model = tiny_autoencoder()
    model.save_pretrained(tmp_path)
    again = BSQAutoencoder.from_pretrained(tmp_path)
    same_weights(model, again)
    latent = torch.randn(1, 6, 4, 4)
    with torch.no_grad():
        assert torch.equal(model.eval().decode(latent), again.eval().decode(latent))


@pytest.mark.parametrize("schedule", ["infinity", [[1, 1], [2, 3]]])
def test_scheduler_returns_from_its_folder(schedule: Any, tmp_path: Path) -> None:
    scheduler = InfinityScheduler(schedule, size="0.25M", guidance_scale=4.0, temperature=0.5)
    scheduler.save_pretrained(tmp_path)
    again = InfinityScheduler.from_pretrained(tmp_path)
    assert again.resolve() == scheduler.resolve()
    assert (again.config.guidance_scale, again.config.temperature, again.config.top_k) == (4.0, 0.5, 900)


class Holder(DiffusionPipeline):
    def __init__(self, transformer: Any, vae: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)


def test_a_pipeline_stores_the_promised_module(tmp_path: Path) -> None:
    Holder(tiny_transformer(), tiny_autoencoder(), InfinityScheduler()).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert {index[part][0] for part in ("transformer", "vae", "scheduler")} == {"scalekv.models.infinity"}
    again = Holder.from_pretrained(tmp_path)
    assert isinstance(again.transformer, InfinityTransformer)
    assert isinstance(again.vae, BSQAutoencoder)
    assert isinstance(again.scheduler, InfinityScheduler)


def test_lazy_names() -> None:
    assert family.InfinityTransformer is InfinityTransformer
    assert "BSQAutoencoder" in dir(family)
    with pytest.raises(AttributeError, match="nothing_here"):
        _ = family.nothing_here
