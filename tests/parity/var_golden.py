"""Recorded runs of the reference VAR, and how to repeat them with our networks.

A case folder holds config.json and outputs.safetensors, and weights.safetensors and vae.safetensors unless it borrows
them (``weights_from``) or makes them from a formula (``recipe_seed``). Everything is decided by its config.json.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from parity import golden
from scalekv.models.var import VARTransformer, VQAutoencoder
from scalekv.models.var.codebook import Codebook
from scalekv.models.var.generation import Generation, generate
from scalekv.models.var.sampling import draw_classes
from scalekv.planning import Segment

KEY_LISTS = "official_keys"
MODEL_FLAGS = {
    "num_classes": "num_classes",
    "depth": "depth",
    "embed_dim": "width",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "norm_eps": "norm_eps",
    "shared_aln": "shared_aln",
    "attn_l2_norm": "attn_l2_norm",
    "vocab_size": "vocab_size",
    "z_channels": "latent_channels",
}
VAE_FLAGS = {
    "vocab_size": "vocab_size",
    "z_channels": "latent_channels",
    "ch": "base_channels",
    "ch_mult": "channel_multipliers",
    "num_res_blocks": "num_res_blocks",
    "share_quant_resi": "shared_phis",
    "quant_resi": "quant_resi",
    "quant_conv_ks": "quant_conv_kernel",
    "using_znorm": "using_znorm",
}
WITHOUT_EFFECT = {
    "cond_drop_rate_during_run",
    "in_channels",
    "downsample",
    "phi_index_per_scale",
    "drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
    "flash_if_available",
    "fused_if_available",
    "dropout",
    "beta",
}
"""Flags without effect at inference, or checked by a test of their own."""


def case_folders() -> list[Path]:
    return [folder for folder in golden.case_folders("var") if folder.name != KEY_LISTS]


def key_lists() -> list[Path]:
    """Lists of the tensors of official files: the bundled ones, and those beside the cases."""
    folders = dict.fromkeys([golden.BUNDLED / "var", golden.golden_folder("var")])
    return [path for folder in folders for path in sorted((folder / KEY_LISTS).glob("*.json"))]


def arguments_from(flags: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    assert not flags.get("cond_drop_rate_during_run", 0), "labels were dropped at random"
    return {ours: flags[theirs] for theirs, ours in names.items() if theirs in flags}


def labels_of(sample: dict[str, Any]) -> list[int] | None:
    """The classes of a run: given one by one, one for all, or ``None`` for random ones."""
    labels = sample.get("labels")
    return [labels] * sample["batch"] if isinstance(labels, int) else labels


@dataclass
class Run:
    """What one run of our loop showed, per segment."""

    raw: list[Tensor] = field(default_factory=list)
    guided: list[Tensor] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    maps: list[Tensor] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    first: list[Tensor] = field(default_factory=list)
    last: list[Tensor] = field(default_factory=list)
    result: Generation | None = None


class Case:
    """One recorded case and our networks with its weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.outputs = load_file(folder / "outputs.safetensors")
        self.sides: list[int] = self._sides()
        self.recipe: dict[str, Tensor] = {}
        if "recipe_seed" in self.config:
            shapes = {**self.config["keys"], **self.config["inputs"]}
            seed = self.config["recipe_seed"]
            self.recipe = {name: recipe_tensor(name, shape, seed) for name, shape in shapes.items()}

    def _sides(self) -> list[int]:
        if "patch_nums" in self.config or "weights_from" not in self.config:
            return list(self.config.get("patch_nums", []))
        lender = golden.lender(self.folder, "weights.safetensors")
        return list(json.loads((lender / "config.json").read_text())["patch_nums"])

    @property
    def unknown_flags(self) -> set[str]:
        """Flags that are neither handed to our networks nor known to have no effect."""
        known = {"var": MODEL_FLAGS, "vae": VAE_FLAGS}
        return {
            f"{part}.{name}"
            for part, names in known.items()
            for name in self.config.get(part, {})
            if name not in names and name not in WITHOUT_EFFECT
        }

    def settings(self, part: str, file: str) -> dict[str, Any]:
        if part in self.config:
            return dict(self.config[part])
        return dict(json.loads((golden.lender(self.folder, file) / "config.json").read_text())[part])

    def weights(self, file: str) -> dict[str, Tensor]:
        loaded = load_file(golden.lender(self.folder, file) / file)
        return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in loaded.items()}

    @cached_property
    def transformer(self) -> VARTransformer:
        arguments = arguments_from(self.settings("var", "weights.safetensors"), MODEL_FLAGS)
        model = VARTransformer(patch_nums=self.sides, **arguments).eval()
        model.load_state_dict(self.weights("weights.safetensors"), strict=True)
        return model

    @cached_property
    def autoencoder(self) -> VQAutoencoder:
        arguments = arguments_from(self.settings("vae", "vae.safetensors"), VAE_FLAGS)
        model = VQAutoencoder(num_scales=len(self.sides), **arguments).eval()
        if self.recipe:
            state = {name: tensor for name, tensor in self.recipe.items() if not name.startswith("input.")}
        else:
            state = self.weights("vae.safetensors")
        model.load_state_dict(state, strict=True)
        return model

    @cached_property
    def codebook(self) -> Codebook:
        return self.autoencoder.codebook()

    @property
    def grids(self) -> list[tuple[int, int]]:
        return [(side, side) for side in self.sides]

    def tokens(self, prefix: str) -> list[Tensor]:
        """Recorded tokens of every scale."""
        if prefix == "tf":
            return list(self.outputs["tf.idx"].split([side * side for side in self.sides], dim=1))
        return [self.outputs[f"{prefix}.idx.{scale}"] for scale in range(len(self.sides))]

    def joined(self, prefix: str) -> Tensor:
        """Arrays of all scales along tokens."""
        return torch.cat([self.outputs[f"{prefix}.{scale}"] for scale in range(len(self.sides))], dim=1)

    def run(
        self,
        cache: Any,
        forced: list[Tensor] | None = None,
        labels: list[int] | None = None,
        guided: bool = True,
        latents: list[Tensor] | None = None,
    ) -> Run:
        """Run our loop with this case's settings, freely from its seed or with ``forced`` tokens or ``latents``."""
        model, run, sample = self.transformer, Run(), self.config["sample"]
        generator = torch.Generator().manual_seed(sample["seed"])
        if labels is None:
            labels = labels_of(sample) or draw_classes(sample["batch"], model.config.num_classes, generator)
        blocks = model.ordered_blocks
        hooks = [
            model.register_forward_hook(lambda _m, _i, raw: run.raw.append(raw)),
            model.word_embed.register_forward_hook(lambda _m, inputs, _o: run.maps.append(inputs[0])),
            blocks[0].register_forward_pre_hook(lambda _m, inputs: run.inputs.append(inputs[0])),
            blocks[0].register_forward_hook(lambda _m, _i, out: run.first.append(out)),
            blocks[-1].register_forward_hook(lambda _m, _i, out: run.last.append(out)),
        ]

        def on_segment(segment: Segment, latent: Tensor, logits: Tensor) -> Tensor | None:
            run.latents.append(latent)
            run.guided.append(logits)
            return None if latents is None else latents[segment.index]

        try:
            run.result = generate(
                model,
                model.prepare_classes(labels, guided),
                self.codebook,
                cache,
                guidance=sample["cfg"] if guided else 0.0,
                top_k=sample.get("top_k", 0),
                top_p=sample.get("top_p", 0.0),
                smooth=sample.get("more_smooth", False),
                generator=generator,
                forced_tokens=forced or (),
                on_segment=on_segment,
            )
        finally:
            for hook in hooks:
                hook.remove()
        return run


def recipe_tensor(name: str, shape: list[int], seed: int) -> Tensor:
    """The numbers that ``vae_full_recipe`` gives a tensor of this name (its README states the formula)."""
    start = (zlib.crc32(name.encode()) + (seed << 32)) * 0xD1B54A32D192ED03 % 2**64
    state = np.arange(1, prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    state ^= state >> np.uint64(30)
    state *= np.uint64(0xBF58476D1CE4E5B9)
    state ^= state >> np.uint64(27)
    state *= np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    unit = (state >> np.uint64(40)).astype(np.float64) / 2**24
    amplitude, offset = _recipe_range(name, shape)
    return torch.from_numpy((amplitude * (2 * unit - 1) + offset).astype(np.float32)).view(*shape)


def _recipe_range(name: str, shape: list[int]) -> tuple[float, float]:
    if name.endswith("ema_vocab_hit_SV"):
        return 8, 8
    if "embedding" in name:
        return 1.25, 0
    if ".norm" in name:
        return (0.25, 1) if name.endswith("weight") else (0.125, 0)
    if name.endswith(".bias"):
        return 0.0625, 0
    if name.startswith("input."):
        return {"input.f_hat": 1.5, "input.image": 1.0}[name], 0
    gain = 0.625 if ".conv2." in name or ".proj_out." in name else 1.0
    return gain * (3 / prod(shape[1:])) ** 0.5, 0


@lru_cache(maxsize=3)
def load_case(folder: Path) -> Case:
    return Case(folder)


published_stream = pytest.mark.skipif(
    not torch.backends.mkl.is_available(), reason="the recorded random stream is that of torch with MKL"
)


def cases(prefix: str = "", key: str = "") -> pytest.MarkDecorator:
    """Run a test on every case with arrays starting with ``prefix`` and ``key`` in its config.json."""
    chosen = [
        folder for folder in case_folders() if (not prefix or golden.recorded(folder, prefix)) and _has(folder, key)
    ]
    return pytest.mark.parametrize("folder", chosen, ids=lambda folder: folder.name)


def _has(folder: Path, key: str) -> bool:
    try:
        return not key or key in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return True


def picture(case: Case, latent: Tensor) -> Tensor:
    with torch.no_grad():
        return (case.autoencoder.decode(latent) + 1) / 2
