"""Official Infinity files to networks: strict about names and shapes, with one copy of the weights in memory.

The published loaders skip what does not fit and draw noise; these refuse it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scalekv.errors import CheckpointError
from scalekv.models.assembly import block_dtypes, build, check_known, choose_table, fill, named_model
from scalekv.models.catalog import ModelSpec, matching_models, model_spec
from scalekv.models.infinity.autoencoder import BSQAutoencoder
from scalekv.models.infinity.layout import (
    QUANTIZER_TABLES,
    TRAINING_KEYS,
    autoencoder_config,
    canonical_vae_name,
    transformer_config,
)
from scalekv.models.infinity.transformer import InfinityTransformer, unconditional_rows
from scalekv.models.kinds import INFINITY_AUTOENCODER, INFINITY_TRANSFORMER
from scalekv.models.weights import WeightFile, WeightTable

logger = logging.getLogger(__name__)

TRAINER_WEIGHTS = "trainer.gpt_fsdp"
TRAINER_EMA = "trainer.gpt_ema_fsdp"
VAE_ENTRY = "vae"

_WRONG_TOKENIZER = "infinity_vae_d32.pth"


def load_transformer(
    path: str | Path,
    *,
    codebook_bits: int | None = None,
    patchify: bool | None = None,
    model: str | None = None,
    ema: bool = False,
    dtype: torch.dtype | None = None,
    text_maxlen: int | None = None,
    rope_mode: int = 2,
    level_embedding_per_chunk: bool = False,
) -> InfinityTransformer:
    """Read an official transformer; everything that weights tell is inferred from them.

    Args:
        path: ``.pth``, ``.safetensors`` or sharded folder; fine-tuning checkpoints are unwrapped.
        codebook_bits: bits per latent pixel of the VAE it goes with, which decides ``patchify``.
        patchify: tokens of 2 x 2 latent pixels; without it and without ``codebook_bits`` the known models decide.
        model: known name it must be, such as ``infinity-2b``.
        ema: take the averaged weights of a fine-tuning checkpoint.
        dtype: of the blocks; all else becomes float32, as in the published runs. Default all as stored.
        text_maxlen: rows of unconditional text; default those of the file. Missing rows are the published initial ones.
        rope_mode: rotary coordinates, not told by weights.
        level_embedding_per_chunk: not told by weights.

    Raises:
        CheckpointError: missing, damaged, of another kind or shape, or not for this VAE.
    """
    with WeightFile(path) as file:
        table = transformer_table(file, ema)
        shapes = {name: shape for name, shape in table.shapes.items() if name not in TRAINING_KEYS}
        spec = model_spec(model) if model else None
        if patchify is None and codebook_bits is None:
            patchify = known_patchify(file.path, shapes, table.origin, spec)
        config = transformer_config(shapes, table.origin, codebook_bits, patchify)
        check_known(file.path, known_shape(config), spec or named_model("infinity", file.path))
        if text_maxlen is not None:
            config["text_maxlen"] = text_maxlen
        config |= {"rope_mode": rope_mode, "level_embedding_per_chunk": level_embedding_per_chunk}
        network: InfinityTransformer = build(InfinityTransformer, config, table.origin)
        sources = {name: name for name in shapes}
        fill(network, table, sources, block_dtypes(shapes, dtype), _acceptable, _fitted)
        return network


def load_autoencoder(path: str | Path, *, dtype: torch.dtype | None = None) -> BSQAutoencoder:
    """Read an official tokenizer: the ``"vae"`` entry of a training checkpoint or a bare table, in either spelling.

    Args:
        path: ``.pth`` or ``.safetensors``.
        dtype: of all weights; default as stored.

    Raises:
        CheckpointError: missing, damaged, or of another kind or shape.
    """
    with WeightFile(path) as file:
        table = autoencoder_table(file)
        sources = {canonical_vae_name(name): name for name in table.shapes if name not in QUANTIZER_TABLES}
        shapes = {name: table.shapes[source] for name, source in sources.items()}
        network: BSQAutoencoder = build(BSQAutoencoder, autoencoder_config(shapes, table.origin), table.origin)
        fill(network, table, sources, {"": dtype})
        return network


def transformer_table(file: WeightFile, ema: bool = False) -> WeightTable:
    """The table of ``file`` that holds a transformer.

    Raises:
        CheckpointError: it holds none.
    """
    places = (TRAINER_EMA,) if ema else ("", TRAINER_WEIGHTS)
    swap = "load it as the VAE, and the transformer's own file here"
    return choose_table(file, places, INFINITY_TRANSFORMER, swap, TRAINER_EMA)


def autoencoder_table(file: WeightFile) -> WeightTable:
    """The table of ``file`` that holds a tokenizer.

    Raises:
        CheckpointError: it holds none.
    """
    swap = "load it as the transformer, and the VAE's own file here"
    return choose_table(file, (VAE_ENTRY, ""), INFINITY_AUTOENCODER, swap)


def known_patchify(path: Path, shapes: Mapping[str, tuple[int, ...]], origin: str, spec: ModelSpec | None) -> bool:
    """Whether the known model of this shape patchifies; models of unknown shape do not.

    Raises:
        CheckpointError: a tensor that decides the shape is missing.
    """
    spec = spec or guess_model(path, transformer_config(shapes, origin, None, False))
    return spec is not None and spec.patchify


def guess_model(path: str | Path, config: Mapping[str, Any]) -> ModelSpec | None:
    """The known model that ``config`` describes, by its shape and, among equals, by the file's name."""
    fits = matching_models("infinity", **known_shape(config))
    named = [spec for spec in fits if Path(path).name in spec.files]
    if not named and len(fits) > 1:
        logger.info("%s fits %s; taken as %s.", path, " and ".join(spec.name for spec in fits), fits[0].name)
    return next(iter(named or fits), None)


def known_shape(config: Mapping[str, Any]) -> dict[str, int]:
    """What ``config`` says of the fields of a `ModelSpec`."""
    return {
        "layers": config["depth"],
        "heads": config["num_heads"],
        "width": config["width"],
        "bits": config["codebook_bits"] * (4 if config["patchify"] else 1),
    }


def check_tokenizer_name(vae: str | Path, spec: ModelSpec | None) -> None:
    """Refuse the published tokenizer that has the right shape and is the wrong one.

    Raises:
        CheckpointError: ``infinity_vae_d32.pth`` with the 2B model.
    """
    if spec is not None and Path(vae).name == _WRONG_TOKENIZER and spec.name == "infinity-2b":
        raise CheckpointError(
            f"{vae} has the right shape but is not the VAE of {spec.name}, and pictures would be noise; use "
            f"{' or '.join(spec.autoencoder.files)}."
        )


def _acceptable(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Published files may hold other rows of unconditional text, and temperatures in another layout (2.5, 2.3)."""
    if name == "cfg_uncond":
        return len(found) == 2 and found[1] == expected[1]
    if name.endswith("sa.scale_mul_1H11"):
        return found in (expected, (1, 1, expected[1], 1))
    return found == expected


def _fitted(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if name == "cfg_uncond" and len(tensor) != shape[0]:
        initial = unconditional_rows(*shape).to(tensor.dtype)
        return torch.cat((tensor[: shape[0]], initial[len(tensor) :]))
    return tensor.reshape(shape)
