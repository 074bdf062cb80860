"""The parts of a pipeline from official files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from scalekv.errors import InvalidInput
from scalekv.models.catalog import ModelSpec, model_spec
from scalekv.models.infinity import InfinityScheduler
from scalekv.models.infinity.checkpoint import check_tokenizer_name, guess_model, load_autoencoder, load_transformer

logger = logging.getLogger(__name__)


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A floating-point type by itself or by name, such as ``"bfloat16"``; ``None`` stays.

    Raises:
        InvalidInput: no such type.
    """
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if found is None and dtype is None:
        return None
    if not isinstance(found, torch.dtype) or not found.is_floating_point or found.itemsize == 1:
        raise InvalidInput(f"dtype must be float32, bfloat16 or float16, got {dtype!r}.")
    return found


def components_from_files(
    transformer: str | Path,
    vae: str | Path,
    model: str | None,
    text_encoder: str | Path | None,
    dtype: torch.dtype | str | None,
    patchify: bool | None,
    ema: bool,
) -> dict[str, Any]:
    """Constructor arguments of an ``InfinityPipeline``; arguments and errors as in ``scalekv.pipelines.convert``."""
    spec, dtype = model_spec(model) if model else None, as_dtype(dtype)
    check_tokenizer_name(vae, spec)
    decoder = load_autoencoder(vae)
    network = load_transformer(
        transformer,
        codebook_bits=decoder.config.codebook_bits,
        patchify=patchify,
        model=model,
        ema=ema,
        dtype=dtype,
    )
    spec = spec or guess_model(transformer, network.config)
    check_tokenizer_name(vae, spec)
    encoder, tokenizer = load_text_encoder(text_encoder, dtype)
    return {
        "transformer": network,
        "vae": decoder,
        "scheduler": _scheduler(spec, decoder.config.patch_size * network.patch_size),
        "text_encoder": encoder,
        "tokenizer": tokenizer,
        "model_name": None if spec is None else spec.name,
    }


def var_components_from_files(
    transformer: str | Path,
    vae: str | Path,
    model: str | None,
    dtype: torch.dtype | str | None,
    patch_nums: Sequence[int] | None,
    num_heads: int | None,
) -> dict[str, Any]:
    """Constructor arguments of a ``VARPipeline``; arguments and errors as in its ``from_single_file``."""
    from scalekv.models.var import VARScheduler
    from scalekv.models.var import checkpoint as var

    decoder = var.load_autoencoder(vae)
    network = var.load_transformer(
        transformer, model=model, patch_nums=patch_nums, num_heads=num_heads, dtype=as_dtype(dtype)
    )
    spec = model_spec(model) if model else var.guess_model(network.config)
    settings: dict[str, Any] = {"pixels_per_token": decoder.patch_size}
    if network.config.vocab_size < 900:
        settings["top_k"] = 0  # the published setting has nothing to choose from
    scheduler = VARScheduler(schedule=[[segment.height, segment.width] for segment in network.schedule], **settings)
    name = None if spec is None else spec.name
    return {"transformer": network, "vae": decoder, "scheduler": scheduler, "model_name": name}


def _scheduler(spec: ModelSpec | None, pixels_per_token: int) -> InfinityScheduler:
    settings: dict[str, Any] = {"pixels_per_token": pixels_per_token}
    if spec is not None:
        settings |= {"size": spec.default_size, **asdict(spec.sampling)}
    scheduler: InfinityScheduler = InfinityScheduler(**settings)
    return scheduler


def load_text_encoder(name: str | Path | None, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """The T5 encoder and tokenizer of a folder or hub name; two ``None`` without one.

    Raises:
        InvalidInput: it cannot be loaded.
    """
    if name is None:
        return None, None
    from transformers import AutoTokenizer, T5EncoderModel

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name))
        options = {} if dtype is None else {"dtype": dtype}
        return T5EncoderModel.from_pretrained(str(name), use_safetensors=_safetensors_only(name), **options), tokenizer
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidInput(
            f"Cannot load the text encoder {str(name)!r} ({str(error).splitlines()[0][:120]}); give the folder or hub "
            f"name of a T5 encoder, such as google/flan-t5-xl."
        ) from error


def _safetensors_only(name: str | Path) -> bool | None:
    """Transformers reads pickles with its safe loader; prefer safetensors and say nothing else."""
    return True if Path(name).is_dir() and any(Path(name).glob("*.safetensors")) else None
