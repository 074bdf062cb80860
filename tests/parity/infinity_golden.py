"""Recorded runs of the reference Infinity, and how to repeat them with our network.

A case folder holds config.json, weights.safetensors, vae.safetensors, inputs.safetensors and outputs.safetensors.
Everything is decided by its config.json, so that any folder of the same format can be checked.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from parity import golden
from scalekv.models.infinity import BSQAutoencoder, InfinityTransformer, schedules
from scalekv.models.infinity.condition import TextCondition
from scalekv.models.infinity.generation import Generation, generate
from scalekv.planning import Schedule

BUNDLED = golden.BUNDLED / "infinity"
MODEL_FLAGS = {
    "depth": "depth",
    "embed_dim": "width",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "block_chunks": "block_chunks",
    "text_channels": "text_channels",
    "text_maxlen": "text_maxlen",
    "norm_eps": "norm_eps",
    "rope2d_normalized_by_hw": "rope_mode",
    "shared_aln": "shared_aln",
    "head_aln": "head_aln",
    "head_depth": "head_depth",
    "rms_norm": "rms_norm",
    "swiglu": "swiglu",
    "nm0": "input_norm",
    "cos_attn": "cos_attn",
    "tau": "tau",
    "cross_attn_layer_scale": "cross_attn_layer_scale",
    "rand_uncond": "rand_uncond",
    "apply_spatial_patchify": "patchify",
}
SWITCHES = {"shared_aln", "head_aln", "rms_norm", "swiglu", "nm0", "cos_attn", "rand_uncond", "apply_spatial_patchify"}
WITHOUT_EFFECT = {
    "add_lvl_embeding_only_first_block",
    "d_vae",
    "V",
    "top_k",
    "top_p",
    "use_bit_label",
    "rope2d_each_sa_layer",
    "pad_to_multiplier",
    "pn",
    "fused_norm",
    "fused_mlp",
    "customized_flash_attn",
    "use_flex_attn",
    "drop_rate",
    "drop_path_rate",
    "cond_drop_rate",
    "checkpointing",
    "batch_size",
    "video_frames",
    "raw_scale_schedule",
    "always_training_scales",
    "train_h_div_w_list",
    "selecting_idx",
    "inference_mode",
}
"""Flags without effect on our network, or read elsewhere in this file."""


def case_folders() -> list[Path]:
    return golden.case_folders("infinity")


def unit_files() -> list[Path]:
    """Recorded units: the bundled ones, and those beside the cases."""
    files = [BUNDLED / "units.safetensors", golden.golden_folder("infinity") / "units.safetensors"]
    return list(dict.fromkeys(path for path in files if path.is_file()))


@dataclass
class Run:
    """What one run of our loop showed: per segment the raw and mixed logits, its result and its cache."""

    raw: list[Tensor] = field(default_factory=list)
    mixed: list[Tensor] = field(default_factory=list)
    result: Generation | None = None
    condition: TextCondition | None = None


class Case:
    """One recorded case and our networks with its weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.sampling = self.config["sampling"]
        self.inputs = load_file(folder / "inputs.safetensors")
        self.outputs = load_file(folder / "outputs.safetensors")
        self.schedule = Schedule.from_shapes(self.config["scale_schedule"])
        self.grids = [tuple(shape[-2:]) for shape in self.config["vae_scale_schedule"]]

    def settings(self, part: str, file: str) -> dict[str, Any]:
        """Sizes and flags of a network; a case that borrows its weights may leave them to the lender."""
        if part in self.config:
            return dict(self.config[part])
        return dict(json.loads((golden.lender(self.folder, file) / "config.json").read_text())[part])

    @property
    def unknown_flags(self) -> set[str]:
        """Flags that are neither handed to our networks nor known to have no effect."""
        return set(self.config.get("model", {})) - set(MODEL_FLAGS) - WITHOUT_EFFECT

    @cached_property
    def transformer(self) -> InfinityTransformer:
        flags = self.settings("model", "weights.safetensors")
        assert flags.get("use_bit_label", 1), "only bit labels exist"
        assert flags.get("rope2d_each_sa_layer", 1), "rotary positions cannot be switched off"
        arguments = {ours: flags[theirs] for theirs, ours in MODEL_FLAGS.items() if theirs in flags}
        for theirs in SWITCHES & set(flags):
            arguments[MODEL_FLAGS[theirs]] = bool(flags[theirs])
        arguments["level_embedding_per_chunk"] = not flags.get("add_lvl_embeding_only_first_block", 1)
        bits = self.settings("vae", "vae.safetensors")["codebook_dim"]
        model = InfinityTransformer(codebook_bits=bits, **arguments).eval()
        assert model.token_bits == flags.get("d_vae", model.token_bits)
        weights = load_file(golden.lender(self.folder, "weights.safetensors") / "weights.safetensors")
        model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=True)
        return model

    @cached_property
    def autoencoder(self) -> BSQAutoencoder:
        sizes = self.settings("vae", "vae.safetensors")
        model = BSQAutoencoder(
            codebook_bits=sizes["codebook_dim"],
            patch_size=sizes["patch_size"],
            base_channels=sizes["base_ch"],
            encoder_multipliers=sizes["encoder_ch_mult"],
            decoder_multipliers=sizes["decoder_ch_mult"],
            num_res_blocks=sizes["num_res_blocks"],
        ).eval()
        weights = load_file(golden.lender(self.folder, "vae.safetensors") / "vae.safetensors")
        wide = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
        model.load_state_dict(wide, strict=True)
        return model

    def condition(self) -> TextCondition:
        guidance = self.sampling["cfg_list"]
        scales = guidance if isinstance(guidance, list) else [guidance]
        guided = any(scale != 1 for scale in scales)
        negative = self._text("neg") if "neg.kv_compact" in self.inputs else None
        return self.transformer.prepare_text(self._text("text"), negative, guided=guided)

    def _text(self, kind: str) -> list[Tensor]:
        lengths = self.inputs[f"{kind}.lens"].tolist()
        return list(self.inputs[f"{kind}.kv_compact"].float().split(lengths))

    def bits(self, prefix: str) -> list[Tensor]:
        """Recorded bits of every scale, ``prefix`` being 'bits' or 'tf.bits'."""
        source = self.outputs if prefix == "bits" else self.inputs
        return [source[f"{prefix}.{scale}"] for scale in range(len(self.schedule))]

    def run(self, cache: Any, forced: list[Tensor] | None = None) -> Run:
        """Run our loop on this case's text and settings, freely from its seed or with ``forced`` bits."""
        flags, model, run = self.settings("model", "weights.safetensors"), self.transformer, Run()
        hook = model.register_forward_hook(lambda _module, _inputs, raw: run.raw.append(raw))
        run.condition = self.condition()
        try:
            run.result = generate(
                model,
                run.condition,
                self.schedule,
                model.build_rope(self.schedule, schedules.extent(self.config["h_div_w_template"])),
                cache,
                guidance=self.sampling["cfg_list"],
                temperature=self.sampling["tau_list"],
                top_k=self.sampling["top_k"] or flags.get("top_k", 0),
                top_p=self.sampling["top_p"] or flags.get("top_p", 0.0),
                cfg_insertion_layer=self.sampling["cfg_insertion_layer"],
                generator=torch.Generator().manual_seed(self.sampling["seed"]),
                forced_bits=forced or (),
                on_segment=lambda _segment, _codes, logits: run.mixed.append(logits),
            )
        finally:
            hook.remove()
        return run


@lru_cache(maxsize=2)
def load_case(folder: Path) -> Case:
    return Case(folder)
