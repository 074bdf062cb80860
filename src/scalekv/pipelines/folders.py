"""Pipeline folders: what is in them, and whether it is complete and fits together.

diffusers draws random weights where a file lacks some; here every name and shape is compared first.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]

from scalekv.builtin import builtin_folder
from scalekv.errors import CheckpointError, InvalidInput
from scalekv.models import infinity, var
from scalekv.models.assembly import compare
from scalekv.models.inspection import INDEX_FILE, PROFILE_FILE
from scalekv.models.weights import WeightFile

NETWORKS = {
    "InfinityPipeline": (infinity, {"transformer": "InfinityTransformer", "vae": "BSQAutoencoder"}),
    "VARPipeline": (var, {"transformer": "VARTransformer", "vae": "VQAutoencoder"}),
}
"""By the class name that folders store: where its networks live, and their names."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_OPTIONS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "variant")
_CONVERT = "convert it first with 'scalekv convert', or use InfinityPipeline.from_single_file"


def read_index(folder: Path) -> dict[str, Any]:
    """The ``model_index.json`` of a pipeline folder.

    Raises:
        InvalidInput: there is none; says what the folder is instead where that is known.
    """
    if folder.is_file():
        raise InvalidInput(f"{folder} is a file, expected a pipeline folder; if it holds official weights, {_CONVERT}.")
    try:
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInput(_no_index(folder)) from None
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{folder / INDEX_FILE} cannot be read ({error}); convert or download it again.") from error
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise InvalidInput(f"{folder / INDEX_FILE} names no pipeline class; expected '_class_name'.")
    return index


def _no_index(folder: Path) -> str:
    if any(folder.glob("*.safetensors*")) or any(folder.glob("*.pth")):
        return f"{folder} holds official weights, not a pipeline ({INDEX_FILE} is missing); {_CONVERT}."
    return f"{folder} is no pipeline folder: it has no {INDEX_FILE}; check the path, or convert official weights first."


def local_folder(pipeline: Any, name: str | Path, options: Mapping[str, Any]) -> Path:
    """The folder of a pipeline: of the package, of the user, or downloaded if ``name`` is a hub name.

    Raises:
        InvalidInput: neither a folder nor a hub name that can be reached.
    """
    path = builtin_folder(name) or Path(name)
    if path.exists():
        return path
    if not _HUB_NAME.fullmatch(str(name)):
        raise InvalidInput(f"There is no folder {str(name)!r}, and it is no hub name (owner/name); check the path.")
    chosen = {option: options[option] for option in _HUB_OPTIONS if option in options}
    try:
        folder = Path(pipeline.download(str(name), **chosen))
    except (OSError, ValueError) as error:
        raise InvalidInput(
            f"Cannot load {str(name)!r}: there is no such folder, and the model hub does not give it "
            f"({type(error).__name__}); check the name, your connection and your access."
        ) from error
    _download_profile(str(name), chosen)
    return folder


def _download_profile(name: str, options: Mapping[str, Any]) -> None:
    """Fetch the optional profile next to the other files; most repositories have none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    allowed = ("cache_dir", "force_download", "local_files_only", "token", "revision")
    try:
        hf_hub_download(name, PROFILE_FILE, **{key: options[key] for key in allowed if key in options})
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return


def check_folder(folder: Path, given: Mapping[str, Any]) -> None:
    """Refuse a pipeline folder whose networks are missing, damaged, or of another shape than they say.

    Args:
        folder: with a ``model_index.json``.
        given: options of ``from_pretrained``; parts passed there are not looked for.

    Raises:
        CheckpointError: names the part and what is wrong.
        InvalidInput: no pipeline folder.
    """
    index = read_index(folder)
    room, networks = NETWORKS.get(index["_class_name"], (None, {}))
    for part, entry in index.items():
        if part.startswith("_") or not isinstance(entry, list) or entry[:2] == [None, None] or part in given:
            continue
        if not (folder / part).is_dir():
            raise CheckpointError(f"{folder} lacks the folder {part!r} that its {INDEX_FILE} names; copy it whole.")
        if part in networks:
            _check_network(folder / part, getattr(room, networks[part]), given.get("variant"))


def _check_network(folder: Path, network_class: Any, variant: str | None) -> None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        expected_class = network_class.__name__
        if config.get("_class_name") != expected_class:
            raise CheckpointError(
                f"{folder} holds a {config.get('_class_name')}, expected a {expected_class}; copy the right part."
            )
        with init_empty_weights(include_buffers=True):
            network = network_class.from_config(config)
    except CheckpointError:
        raise
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be used ({error}); copy the folder again.") from error
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    with WeightFile(folder, variant) as file:
        compare(expected, file.tables[""].shapes, str(folder))


def stored_dtypes(folder: Path, variant: str | None = None) -> dict[str, torch.dtype]:
    """The type most weights of every network are stored in, for diffusers' ``dtype`` option."""
    dtypes: dict[str, torch.dtype] = {"default": torch.float32}
    for part in (one for one in folder.iterdir() if one.is_dir()):
        if any(part.glob("*.safetensors")):
            with WeightFile(part, variant) as file:
                counted = Counter(dtype for dtype in file.tables[""].dtypes.values() if dtype.is_floating_point)
            dtypes[part.name] = counted.most_common(1)[0][0]
    return dtypes


def keep_stored_dtypes(network: Any, folder: Path, variant: str | None = None) -> None:
    """Put back weights that loading rounded: published runs keep all but the blocks in float32."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    with WeightFile(folder, variant) as file:
        table = file.tables[""]
        for name, tensor in tensors.items():
            if table.dtypes[name] != tensor.dtype and not tensor.is_meta:
                tensor.data = table.read(name).to(tensor.device, copy=True)


def check_partners(transformer: Any, vae: Any, text_encoder: Any) -> None:
    """Refuse a tokenizer or text encoder of another width than the transformer's.

    Raises:
        CheckpointError: names both sides.
    """
    bits, needed = vae.config.codebook_bits, transformer.config.codebook_bits
    if bits != needed:
        raise CheckpointError(
            f"The VAE does not fit the transformer: it has {bits} bits per latent pixel, expected {needed}; use the "
            f"VAE it was trained with."
        )
    if text_encoder is not None and text_encoder.config.d_model != transformer.config.text_channels:
        raise CheckpointError(
            f"The text encoder does not fit the transformer: its d_model is {text_encoder.config.d_model}, expected "
            f"{transformer.config.text_channels}; use the text encoder it was trained with."
        )


def check_var_partners(transformer: Any, vae: Any, scheduler: Any) -> None:
    """Refuse a tokenizer or schedule that is not that of a VAR transformer.

    Raises:
        CheckpointError: names both sides.
    """
    network = transformer.config
    for name in ("vocab_size", "latent_channels"):
        if vae.config[name] != network[name]:
            raise CheckpointError(
                f"The VAE does not fit the transformer: its {name} is {vae.config[name]}, expected {network[name]}; "
                f"use the VAE it was trained with."
            )
    if scheduler.segments != transformer.schedule:
        raise CheckpointError(
            f"The scheduler does not fit the transformer: it has the segments {scheduler.segments}, the positions of "
            f"the transformer are for {transformer.schedule}."
        )
