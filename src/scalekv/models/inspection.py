"""What is in a file or folder: kind, size, type and the known models it fits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from scalekv.errors import CheckpointError
from scalekv.models.assembly import Shapes
from scalekv.models.catalog import ModelSpec, matching_autoencoders, matching_models, model_names, model_spec
from scalekv.models.infinity import layout
from scalekv.models.kinds import (
    INFINITY_AUTOENCODER,
    INFINITY_TRANSFORMER,
    VAR_AUTOENCODER,
    VAR_TRANSFORMER,
    kind_of,
)
from scalekv.models.var import layout as var
from scalekv.models.weights import WeightFile, WeightTable, some
from scalekv.planning import Profile
from scalekv.planning.reliance import mean_attention
from scalekv.planning.tables import KINDS

INDEX_FILE = "model_index.json"
PROFILE_FILE = "profile.json"

Stored = Mapping[str, Any]
"""The configuration beside weights in a pipeline folder; empty for official files."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What :func:`inspect_checkpoint` found.

    Args:
        path: what was looked at.
        kind: ``"infinity transformer"``, ``"infinity vae"``, ``"var transformer"``, ``"var vae"``,
            ``"pipeline folder"`` or ``"profile"``.
        description: one line for people.
        models: known models of this shape; several where one network was trained at two sizes.
        parameters: weights, without buffers; ``None`` for a profile.
        dtypes: how the numbers are stored, such as ``("float32",)``.
        bits: bits per token (transformer) or per latent pixel (tokenizer).
        config: what the keys and shapes tell of the configuration.
        autoencoders: known tokenizers that fit.
        profiles: names of known profiles that fit.
        components: parts of a pipeline folder by name, with their class; ``None`` where one was left out.
        attention: of a measured profile, shares of attention per layer; see :func:`mean_attention`.
    """

    path: str
    kind: str
    description: str
    models: tuple[str, ...] = ()
    parameters: int | None = None
    dtypes: tuple[str, ...] = ()
    bits: int | None = None
    config: dict[str, Any] | None = None
    autoencoders: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    components: dict[str, str | None] | None = None
    attention: dict[str, tuple[float, ...]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


def inspect_checkpoint(path: str | Path) -> CheckpointInfo:
    """Tell what a checkpoint file, sharded folder, pipeline folder or profile is, without loading weights.

    Raises:
        CheckpointError: nothing there, damaged, or of no kind that scalekv reads.
        ProfileError: a JSON file that is no profile.
    """
    place = Path(path)
    if (place / INDEX_FILE).is_file():
        return _pipeline(place)
    if place.suffix == ".json" and place.is_file():
        return _profile(place)
    with WeightFile(place) as file:
        names = {"": file.path, **{name: f"{file.path} at {name!r}" for name in file.tables if name}}
        for name, table in sorted(file.tables.items(), key=lambda item: _preference(item[0])):
            kind = kind_of(table.shapes)
            if kind is not None:
                return _DESCRIBERS[kind](place, table, str(names[name]), {})
        shown = some(next(iter(file.tables.values())).shapes)
    raise CheckpointError(
        f"{place} holds weights of no kind that scalekv reads: expected an Infinity or VAR transformer or VAE, found "
        f"{shown}."
    )


def _preference(place: str) -> int:
    order = ("", "vae", "trainer.gpt_fsdp", "trainer.var_wo_ddp")
    return order.index(place) if place in order else len(order)


def _infinity_transformer(path: Path, table: WeightTable, where: str, stored: Stored) -> CheckpointInfo:
    shapes = {name: shape for name, shape in table.shapes.items() if name not in layout.TRAINING_KEYS}
    plain = layout.transformer_config(shapes, where, None, False)
    bits = plain["codebook_bits"]
    fits = matching_models("infinity", plain["depth"], plain["num_heads"], plain["width"], bits)
    named = [spec for spec in fits if path.name in spec.files]
    fits = tuple(named) or fits
    patchify = bool(fits) and fits[0].patchify
    config = layout.transformer_config(shapes, where, None, patchify)
    parameters = _count(shapes, skip=("zero_k_bias", "ln_wo_grad.weight"))
    called = " or ".join(spec.name for spec in fits) or "an Infinity transformer of no published size"
    return CheckpointInfo(
        path=str(path),
        kind=INFINITY_TRANSFORMER,
        description=f"{called}: {parameters / 1e6:,.1f} M parameters, {config['depth']} layers, {bits} bits per token",
        models=tuple(spec.name for spec in fits),
        parameters=parameters,
        dtypes=_dtypes(table),
        bits=bits,
        config=config,
        autoencoders=tuple(dict.fromkeys(spec.autoencoder.files[0] for spec in fits)),
        profiles=tuple(spec.profile for spec in fits if Profile.builtin(spec.profile) is not None),
    )


def _infinity_autoencoder(path: Path, table: WeightTable, where: str, stored: Stored) -> CheckpointInfo:
    shapes = {layout.canonical_vae_name(name): shape for name, shape in table.shapes.items() if "lfq" not in name}
    config = layout.autoencoder_config(shapes, where)
    bits, patch = config["codebook_bits"], config["patch_size"]
    parameters = _count(shapes)
    fits = [one for one in matching_autoencoders("infinity", bits, patch) if one.parameters == parameters]
    return CheckpointInfo(
        path=str(path),
        kind=INFINITY_AUTOENCODER,
        description=f"an Infinity VAE: {parameters / 1e6:,.1f} M parameters, {bits} bits per {patch} x {patch} pixels",
        models=tuple(name for name in model_names() if model_spec(name).autoencoder in fits),
        parameters=parameters,
        dtypes=_dtypes(table),
        bits=bits,
        config=config,
        autoencoders=tuple(one.files[0] for one in fits),
    )


def _var_transformer(path: Path, table: WeightTable, where: str, stored: Stored) -> CheckpointInfo:
    shapes = {name: shape for name, shape in table.shapes.items() if name not in var.TRAINING_KEYS}
    sides = var.patch_nums_of(table, stored.get("patch_nums"))
    config = var.transformer_config(shapes, where, sides, stored.get("num_heads"))
    bits = (config["vocab_size"] - 1).bit_length()
    shaped = matching_models("var", config["depth"], config["num_heads"], config["width"], bits)
    fits = [spec for spec in shaped if spec.sides == sides]
    parameters = _count(shapes, skip=("zero_k_bias",))
    called = " or ".join(spec.name for spec in fits) or "a VAR transformer of no published size"
    return CheckpointInfo(
        path=str(path),
        kind=VAR_TRANSFORMER,
        description=f"{called}: {parameters / 1e6:,.1f} M parameters, {config['depth']} layers, "
        f"{len(sides)} segments up to {sides[-1]}x{sides[-1]} tokens, {config['num_classes']} classes",
        models=tuple(spec.name for spec in fits),
        parameters=parameters,
        dtypes=_dtypes(table),
        bits=bits,
        config=config,
        autoencoders=tuple(dict.fromkeys(spec.autoencoder.files[0] for spec in fits)),
        profiles=tuple(spec.profile for spec in fits if Profile.builtin(spec.profile) is not None),
    )


def _var_autoencoder(path: Path, table: WeightTable, where: str, stored: Stored) -> CheckpointInfo:
    config = var.autoencoder_config(table.shapes, where)
    patch, channels = 1 << (len(config["channel_multipliers"]) - 1), config["latent_channels"]
    parameters = _count(table.shapes, skip=("ema_vocab_hit_SV",))
    fits = [one for one in matching_autoencoders("var", channels, patch) if one.parameters == parameters]
    return CheckpointInfo(
        path=str(path),
        kind=VAR_AUTOENCODER,
        description=f"a VAR VAE: {parameters / 1e6:,.1f} M parameters, {config['vocab_size']} codes of {channels} "
        f"channels per {patch} x {patch} pixels",
        models=tuple(name for name in model_names() if model_spec(name).autoencoder in fits),
        parameters=parameters,
        dtypes=_dtypes(table),
        bits=(config["vocab_size"] - 1).bit_length(),
        config=config,
        autoencoders=tuple(one.files[0] for one in fits),
    )


_DESCRIBERS: dict[str, Callable[[Path, WeightTable, str, Stored], CheckpointInfo]] = {
    INFINITY_TRANSFORMER: _infinity_transformer,
    INFINITY_AUTOENCODER: _infinity_autoencoder,
    VAR_TRANSFORMER: _var_transformer,
    VAR_AUTOENCODER: _var_autoencoder,
}


def _pipeline(folder: Path) -> CheckpointInfo:
    try:
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        parts = {name: entry[1] for name, entry in index.items() if isinstance(entry, list) and len(entry) == 2}
        config = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{folder} is no complete pipeline folder ({error}); copy or convert it again."
        ) from error
    with WeightFile(folder / "transformer") as file:
        kind = kind_of(file.tables[""].shapes)
        if kind not in (INFINITY_TRANSFORMER, VAR_TRANSFORMER):
            raise CheckpointError(f"{folder / 'transformer'} holds no transformer; copy or convert the folder again.")
        info = _DESCRIBERS[kind](folder, file.tables[""], str(folder / "transformer"), config)
    config = {name: value for name, value in config.items() if not name.startswith("_")}
    name = index.get("model_name")
    stored = (PROFILE_FILE,) if (folder / PROFILE_FILE).is_file() else ()
    description = f"{index.get('_class_name')} of {name or info.description.split(':')[0]}"
    models = (name,) if name in model_names() else info.models
    return replace(
        info,
        kind="pipeline folder",
        description=f"{description}: {info.description.partition(': ')[2]}",
        models=models,
        config=config,
        profiles=(*stored, *(one for one in models if Profile.builtin(model_spec(one).profile) is not None)),
        components=parts,
    )


def _profile(path: Path) -> CheckpointInfo:
    profile = Profile.load(path)
    known = [name for name in model_names() if _same_shape(profile, model_spec(name))]
    return CheckpointInfo(
        path=str(path),
        kind="profile",
        description=f"calibration of {profile.model}: {profile.layers} layers, {profile.heads} heads, "
        f"{len(profile.schedule)} segments up to {profile.schedule[-1]} tokens",
        models=tuple(known),
        config=_contents(profile),
        attention=mean_attention(profile),
    )


def _contents(profile: Profile) -> dict[str, Any]:
    tables = [name for kind in KINDS for name in getattr(profile, kind)]
    roles = "published" if profile.roles is not None else "chosen from the tables when a plan is made"
    return {"roles": roles, "tables": ", ".join(tables) or "none", "prompts": profile.details.get("prompts")}


def _same_shape(profile: Profile, spec: ModelSpec) -> bool:
    return (profile.layers, profile.heads) == (spec.layers, spec.heads)


def _count(shapes: Shapes, skip: tuple[str, ...] = ()) -> int:
    return sum(prod(shape) for name, shape in shapes.items() if not (skip and name.endswith(skip)))


def _dtypes(table: WeightTable) -> tuple[str, ...]:
    found = {dtype for dtype in table.dtypes.values() if dtype.is_floating_point}
    return tuple(sorted(str(dtype).removeprefix("torch.") for dtype in found))
