"""Weights to networks, for every family: strict about names and shapes, with one copy of the weights in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import Tensor

from scalekv.errors import CheckpointError, InvalidInput
from scalekv.models.catalog import ModelSpec, model_names, model_spec
from scalekv.models.kinds import EXAMPLES, family_of, kind_of, with_article
from scalekv.models.weights import WeightFile, WeightTable, some

Shapes = Mapping[str, tuple[int, ...]]

_STORABLE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class ShapeReader:
    """Shapes of one checkpoint, refusing what is not there.

    Args:
        shapes: shape of every tensor.
        origin: the file, for messages.
    """

    def __init__(self, shapes: Shapes, origin: str) -> None:
        self.shapes = shapes
        self.origin = origin

    def side(self, name: str, dimensions: int, side: int) -> int:
        """Length of one side of the tensor ``name``, which must have so many ``dimensions``.

        Raises:
            CheckpointError: it is missing or has an impossible shape.
        """
        shape = self.shapes.get(name)
        if shape is None:
            raise CheckpointError(
                f"{self.origin} lacks {name}, which tells its size (it has {len(self.shapes)} tensors: "
                f"{some(self.shapes)}); the file is incomplete or of another model."
            )
        if len(shape) != dimensions or 0 in shape:
            raise CheckpointError(
                f"{name} of {self.origin} has shape {shape}, expected {dimensions} dimensions; the file is of another "
                f"model or sharded by its training run."
            )
        return shape[side]

    def multiplier(self, name: str, base: int) -> int:
        """Channels of the convolution ``name`` over ``base``.

        Raises:
            CheckpointError: as `side`, or no whole number.
        """
        channels = self.side(name, 4, 0)
        if channels % base:
            raise CheckpointError(
                f"{name} of {self.origin} has {channels} channels, expected a multiple of {base}; the file is of "
                f"another VAE."
            )
        return channels // base

    def count(self, stem: str) -> int:
        """How many numbered parts ``stem.0``, ``stem.1``, ... there are."""
        count = 0
        while any(name.startswith(f"{stem}.{count}.") for name in self.shapes):
            count += 1
        return count


def choose_table(
    file: WeightFile, places: tuple[str, ...], kind: str, swap: str, averaged: str | None = None
) -> WeightTable:
    """The table of ``file`` that holds a network of ``kind``.

    Args:
        file: the open file.
        places: where in the file it may be, the preferred one first.
        kind: one of those of `scalekv.models.kinds`.
        swap: what to do with a file that holds the other network of the family.
        averaged: the place of averaged weights, which an ``ema`` option asks for.

    Raises:
        CheckpointError: it holds none there; says what it holds instead.
    """
    for place in places:
        if place in file.tables and kind_of(file.tables[place].shapes) == kind:
            return file.tables[place]
    for place, table in file.tables.items():
        found = kind_of(table.shapes)
        if found is not None and found != kind:
            advice = swap if family_of(found) == family_of(kind) else f"use the pipeline of {family_of(found)} models"
            raise CheckpointError(f"{file.path} is {with_article(found)}, expected {with_article(kind)}; {advice}.")
        if found == kind and averaged is not None and averaged in (place, *places):
            raise CheckpointError(
                f"{file.path} holds its {kind} at {place!r}, expected {' or '.join(map(repr, places))}; "
                f"{'leave ema off' if averaged in places else 'pass ema=True'}."
            )
    first = next(iter(file.tables.values()))
    raise CheckpointError(
        f"{file.path} is no {kind}: expected names such as {EXAMPLES[kind]}, found {some(first.shapes)} "
        f"(places in the file: {', '.join(repr(place) for place in file.tables)})."
    )


def build(kind: type[Any], config: dict[str, Any], origin: str) -> Any:
    """An empty network of ``kind``; its tensors take no memory.

    Raises:
        CheckpointError: ``config`` describes none that can run.
    """
    try:
        with init_empty_weights(include_buffers=True):
            return kind(**config)
    except InvalidInput as error:
        raise CheckpointError(f"{origin} describes no {kind.__name__} that can run: {error}") from error


def _exactly(_: str, found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return found == expected


def _reshaped(_: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    return tensor.reshape(shape)


def fill(
    network: Any,
    table: WeightTable,
    sources: Mapping[str, str],
    dtypes: Mapping[str, torch.dtype | None],
    accept: Callable[[str, tuple[int, ...], tuple[int, ...]], bool] = _exactly,
    fit: Callable[[str, Tensor, tuple[int, ...]], Tensor] = _reshaped,
) -> None:
    """Put the tensors of ``table`` into ``network`` and ready it for use.

    Args:
        network: from `build`.
        table: the weights.
        sources: names of the table by those of the network.
        dtypes: dtype by the first part of a name, ``""`` for all; as stored where there is none.
        accept: (name, found, expected) judges shapes, see `compare`.
        fit: (name, tensor, shape) gives a tensor of an accepted shape the one that is needed.

    Raises:
        CheckpointError: tensors that are not just those of the network, or stored in a type that is no plain number.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    compare(expected, {name: table.shapes[source] for name, source in sources.items()}, table.origin, accept)
    state = {}
    for name, shape in expected.items():
        tensor = table.read(sources[name])
        if tensor.dtype not in _STORABLE:
            raise CheckpointError(
                f"{name} of {table.origin} is stored as {str(tensor.dtype).removeprefix('torch.')}, expected float32, "
                f"bfloat16 or float16; quantised files are not supported, load the original."
            )
        tensor = fit(name, tensor, shape)
        dtype = dtypes.get("", dtypes.get(name.split(".")[0]))
        # A copy, because the tensor may be a view of a file that can change or vanish under the network.
        state[name] = tensor.to(dtype or tensor.dtype, copy=True).contiguous()
    network.load_state_dict(state, strict=True, assign=True)
    network.eval()


def block_dtypes(names: Iterable[str], dtype: torch.dtype | None) -> dict[str, torch.dtype | None]:
    """What `fill` takes for a transformer in ``dtype``: that for its blocks, float32 for all else.

    Args:
        names: of its tensors.
        dtype: of the blocks; ``None`` leaves everything as stored.
    """
    blocks = ("blocks", "block_chunks")
    parts = {name.split(".")[0] for name in names} if dtype is not None else ()
    return {part: dtype if part in blocks else torch.float32 for part in parts}


def compare(
    expected: Shapes,
    found: Shapes,
    origin: str,
    accept: Callable[[str, tuple[int, ...], tuple[int, ...]], bool] = _exactly,
) -> None:
    """Refuse tensors that are not just those a network has; ``accept(name, found, expected)`` judges shapes.

    Raises:
        CheckpointError: some are missing, too many, or of another shape; names the first few.
    """
    missing, unexpected = expected.keys() - found.keys(), found.keys() - expected.keys()
    if missing or unexpected:
        parts = [f"lacks {len(missing)}: {some(missing)}"] if missing else []
        parts += [f"holds {len(unexpected)} that do not belong: {some(unexpected)}"] if unexpected else []
        raise CheckpointError(
            f"{origin} has {len(found)} tensors, expected {len(expected)}: it {' and '.join(parts)}; the file is "
            f"incomplete, or of another model."
        )
    for name, shape in expected.items():
        if not accept(name, found[name], shape):
            raise CheckpointError(
                f"{name} of {origin} has shape {found[name]}, expected {shape}; the file is damaged or of another "
                f"model."
            )


def named_model(family: str, path: Path) -> ModelSpec | None:
    """The known model of ``family`` whose published file bears the name of ``path``."""
    specs = (spec for spec in map(model_spec, model_names()) if spec.family == family)
    return next((spec for spec in specs if path.name in spec.files), None)


def check_known(path: Path, found: Mapping[str, Any], spec: ModelSpec | None) -> None:
    """Refuse a network whose fields ``found``, those of a `ModelSpec`, are not those of ``spec``, if there is one.

    Raises:
        CheckpointError: names the first difference.
    """
    for name, value in found.items() if spec is not None else ():
        if value != (expected := getattr(spec, name)):
            assert spec is not None
            raise CheckpointError(
                f"{path} is not {spec.name}: it has {name} {value}, expected {expected}; the file is incomplete, or of "
                f"another model."
            )
