"""Official VAR files to networks: strict about names and shapes, with one copy of the weights in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from scalekv.errors import CheckpointError
from scalekv.models.assembly import block_dtypes, build, check_known, choose_table, fill, named_model
from scalekv.models.catalog import ModelSpec, matching_models, model_spec
from scalekv.models.kinds import VAR_AUTOENCODER, VAR_TRANSFORMER
from scalekv.models.var.autoencoder import VQAutoencoder
from scalekv.models.var.layout import TRAINING_KEYS, autoencoder_config, patch_nums_of, transformer_config
from scalekv.models.var.transformer import VARTransformer
from scalekv.models.weights import WeightFile, WeightTable

FAMILY = "var"
TRAINER_WEIGHTS = "trainer.var_wo_ddp"
TRAINER_VAE = "trainer.vae_local"


def load_transformer(
    path: str | Path,
    *,
    model: str | None = None,
    patch_nums: Sequence[int] | None = None,
    num_heads: int | None = None,
    dtype: torch.dtype | None = None,
) -> VARTransformer:
    """Read an official transformer; everything that weights tell is inferred from them.

    Args:
        path: ``.pth`` or ``.safetensors``; checkpoints of the training script are unwrapped.
        model: known name it must be, such as ``var-d30``.
        patch_nums: tokens per side of every segment; default what the file says, or the published ones.
        num_heads: for networks without l2-norm attention; default 64 channels per head.
        dtype: of the blocks; all else becomes float32. Default all as stored.

    Raises:
        CheckpointError: missing, damaged, of another kind or shape.
    """
    with WeightFile(path) as file:
        table = transformer_table(file)
        shapes = {name: shape for name, shape in table.shapes.items() if name not in TRAINING_KEYS}
        config = transformer_config(shapes, table.origin, patch_nums_of(table, patch_nums), num_heads)
        _check_tables(table)
        spec = model_spec(model) if model else named_model(FAMILY, file.path)
        check_known(file.path, known_shape(config), spec)
        network: VARTransformer = build(VARTransformer, config, table.origin)
        fill(network, table, {name: name for name in shapes}, block_dtypes(shapes, dtype))
        return network


def load_autoencoder(path: str | Path, *, dtype: torch.dtype | None = None) -> VQAutoencoder:
    """Read the official tokenizer.

    Args:
        path: ``.pth`` or ``.safetensors``; checkpoints of the training script are unwrapped.
        dtype: of all weights; default as stored.

    Raises:
        CheckpointError: missing, damaged, or of another kind or shape.
    """
    with WeightFile(path) as file:
        table = autoencoder_table(file)
        config = autoencoder_config(table.shapes, table.origin)
        network: VQAutoencoder = build(VQAutoencoder, config, table.origin)
        fill(network, table, {name: name for name in table.shapes}, {"": dtype})
        return network


def transformer_table(file: WeightFile) -> WeightTable:
    """The table of ``file`` that holds a transformer.

    Raises:
        CheckpointError: it holds none.
    """
    swap = "load it as the VAE, and the transformer's own file here"
    return choose_table(file, ("", TRAINER_WEIGHTS), VAR_TRANSFORMER, swap)


def autoencoder_table(file: WeightFile) -> WeightTable:
    """The table of ``file`` that holds a tokenizer.

    Raises:
        CheckpointError: it holds none.
    """
    swap = "load it as the transformer, and the VAE's own file here"
    return choose_table(file, ("", TRAINER_VAE), VAR_AUTOENCODER, swap)


def known_shape(config: Mapping[str, Any]) -> dict[str, Any]:
    """What ``config`` says of the fields of a `ModelSpec`."""
    return {
        "layers": config["depth"],
        "heads": config["num_heads"],
        "width": config["width"],
        "bits": (config["vocab_size"] - 1).bit_length(),
        "sides": tuple(config["patch_nums"]),
    }


def guess_model(config: Mapping[str, Any]) -> ModelSpec | None:
    """The known model that ``config`` describes."""
    found = known_shape(config)
    sides = found.pop("sides")
    return next((spec for spec in matching_models(FAMILY, **found) if spec.sides == sides), None)


def _check_tables(table: WeightTable) -> None:
    """The tables of training are not read, but those of another schedule are a sign of another model."""
    tokens = table.shapes["pos_1LC"][1]
    for name, expected in (("lvl_1L", (1, tokens)), ("attn_bias_for_masking", (1, 1, tokens, tokens))):
        if table.shapes.get(name, expected) != expected:
            raise CheckpointError(
                f"{name} of {table.origin} has shape {table.shapes[name]}, expected {expected}; the file is damaged or "
                f"of another model."
            )
