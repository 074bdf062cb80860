"""Official checkpoint files to a pipeline folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from scalekv.errors import InvalidInput
from scalekv.models.catalog import model_spec
from scalekv.models.inspection import INDEX_FILE
from scalekv.models.kinds import family_of, kind_of
from scalekv.models.weights import WeightFile
from scalekv.pipelines.infinity import InfinityPipeline
from scalekv.pipelines.var import VARPipeline


def convert(
    transformer: str | Path,
    vae: str | Path,
    destination: str | Path,
    *,
    model: str | None = None,
    text_encoder: str | Path | None = None,
    dtype: torch.dtype | str | None = None,
    patchify: bool | None = None,
    ema: bool = False,
    patch_nums: Sequence[int] | None = None,
    num_heads: int | None = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
) -> Path:
    """Write official Infinity or VAR files as a pipeline folder that :func:`load_pipeline` reads.

    The folder appears whole or not at all: everything is written beside ``destination`` and renamed at the end.

    Args:
        transformer: ``.pth``, ``.safetensors`` or sharded folder of the transformer.
        vae: ``.pth`` or ``.safetensors`` of the tokenizer.
        destination: folder to make.
        model: known name, such as ``infinity-2b``; default from the file name and the shapes. Sets the default size,
            the sampling settings and the built-in profile.
        text_encoder: folder or hub name of the T5 encoder. ``None`` leaves it out: the pipeline then takes
            ``prompt_embeds``, or gets its encoder when it is loaded (``from_pretrained(..., text_encoder=...,
            tokenizer=...)``).
        dtype: of the transformer's blocks and the text encoder in the folder; default as stored.
        patchify: whether a token covers 2 x 2 latent pixels; default from the tokenizer's width.
        ema: take the averaged weights of a fine-tuning checkpoint.
        patch_nums: for VAR, tokens per side of every segment, where the file does not tell.
        num_heads: for VAR, where the file does not tell; default 64 channels per head.
        max_shard_size: largest file of the transformer, in bytes or as text such as ``"5GB"``.
        overwrite: replace an existing pipeline folder.

    Returns:
        ``destination``.

    Raises:
        CheckpointError: a file is missing, damaged, of another kind, or does not fit its partner.
        InvalidInput: ``destination`` exists and ``overwrite`` is off, or an argument cannot be used.
    """
    target = Path(destination)
    _check_target(target, overwrite)
    pipeline: InfinityPipeline | VARPipeline
    if _is_var(transformer, model):
        if text_encoder is not None or patchify is not None or ema:
            raise InvalidInput(f"{transformer} is a VAR model, which has no text encoder, patches or averaged weights.")
        pipeline = VARPipeline.from_single_file(
            transformer, vae, model=model, dtype=dtype, patch_nums=patch_nums, num_heads=num_heads
        )
    else:
        if patch_nums is not None or num_heads is not None:
            raise InvalidInput(
                f"{transformer} is an Infinity model, whose file tells segments and heads; leave patch_nums and "
                f"num_heads out."
            )
        pipeline = InfinityPipeline.from_single_file(
            transformer, vae, model=model, text_encoder=text_encoder, dtype=dtype, patchify=patchify, ema=ema
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        working = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            pipeline.save_pretrained(working / "new", max_shard_size=max_shard_size)
            if target.exists():
                target.rename(working / "old")
            (working / "new").rename(target)
        finally:
            if not target.exists() and (working / "old").exists():
                (working / "old").rename(target)
            shutil.rmtree(working, ignore_errors=True)
    except OSError as error:
        raise InvalidInput(f"Cannot write {target}: {error.strerror or error}; choose another place.") from error
    return target


def _is_var(transformer: str | Path, model: str | None) -> bool:
    if model is not None:
        return model_spec(model).family == "var"
    with WeightFile(transformer) as file:
        kinds = [kind_of(table.shapes) for table in file.tables.values()]
    return any(kind is not None and family_of(kind) == "var" for kind in kinds)


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise InvalidInput(f"{target} is a file; choose the name of a new folder.")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise InvalidInput(f"{target} exists already; choose another folder, or allow overwriting (overwrite=True).")
    if not (target / INDEX_FILE).is_file():
        raise InvalidInput(f"{target} is no pipeline folder and is not overwritten; choose another folder.")
