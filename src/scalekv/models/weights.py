"""Weight files of any family, opened without loading them: names and shapes first, tensors one by one.

Only safe readers are used: safetensors, and ``torch.load(weights_only=True)``, which runs no code from the file.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import Self

from scalekv.errors import CheckpointError

INDEX_NAMES = ("model.safetensors.index.json", "diffusion_pytorch_model.safetensors.index.json")
SINGLE_NAMES = ("model.safetensors", "diffusion_pytorch_model.safetensors")

_DOWNLOAD = "download it again"
_NESTING = 3

_SAFE_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
}  # fmt: skip


class WeightTable:
    """One flat table of named tensors inside a file or folder.

    Args:
        origin: what to call it in messages.
        shapes: shape by name.
        dtypes: dtype by name.
        tensors: tensors by name that are in memory or memory-mapped.
        readers: open safetensors file by name, for those that are not.
    """

    def __init__(
        self,
        origin: str,
        shapes: Mapping[str, tuple[int, ...]],
        dtypes: Mapping[str, torch.dtype],
        tensors: Mapping[str, Tensor] | None = None,
        readers: Mapping[str, Any] | None = None,
    ) -> None:
        self.origin = origin
        self.shapes = dict(shapes)
        self.dtypes = dict(dtypes)
        self._tensors = tensors or {}
        self._readers = readers or {}

    @classmethod
    def of_tensors(cls, origin: str, tensors: Mapping[str, Tensor]) -> WeightTable:
        """A table of tensors that exist."""
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        return cls(origin, shapes, {name: tensor.dtype for name, tensor in tensors.items()}, tensors)

    def read(self, name: str) -> Tensor:
        """The tensor called ``name``, possibly a view of the file.

        Raises:
            CheckpointError: its bytes cannot be read.
        """
        if name in self._tensors:
            return self._tensors[name]
        try:
            tensor: Tensor = self._readers[name].get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"Cannot read {name} of {self.origin} ({error}); {_DOWNLOAD}.") from error
        return tensor


class WeightFile:
    """An open file or folder of weights; a context manager that closes what it opened.

    Args:
        path: ``.pth``, ``.pt``, ``.bin``, ``.safetensors``, or a folder with a safetensors index or file.
        variant: of the files of a folder, such as ``"fp16"``; those without one are taken where it has no such files.

    Attributes:
        path: what was opened.
        tables: flat tables by their dotted place in the file; ``""`` is the file itself.

    Raises:
        CheckpointError: missing, empty, truncated, of another kind, or holding code instead of weights.
    """

    def __init__(self, path: str | Path, variant: str | None = None) -> None:
        self.path = Path(path)
        self._variant = variant
        self._open = ExitStack()
        self.tables: dict[str, WeightTable] = {}
        try:
            self._read()
        except BaseException:
            self._open.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.tables.clear()
        self._open.close()

    def _read(self) -> None:
        if self.path.is_dir():
            self.tables = {"": self._read_folder()}
            return
        check_file(self.path)
        if self.path.suffix == ".safetensors":
            self.tables = {"": self._table({self.path: None})}
            return
        for place, tensors in _tables_of(_load_pickle(self.path)):
            origin = f"{self.path}[{place!r}]" if place else str(self.path)
            self.tables[place] = WeightTable.of_tensors(origin, tensors)
        if not self.tables:
            raise CheckpointError(f"{self.path} holds no weights; expected a table of named tensors.")

    def _read_folder(self) -> WeightTable:
        for place in self._places():
            if place.suffix == ".json":
                return self._table(_shards(place))
            check_file(place)
            return self._table({place: None})
        if variants := _variants(self.path):
            raise CheckpointError(
                f"The folder {self.path} holds only weights of the variant {' or '.join(variants)}; ask for one "
                f"(variant={variants[0]!r})."
            )
        raise CheckpointError(
            f"The folder {self.path} holds neither {INDEX_NAMES[0]} nor {SINGLE_NAMES[0]}; expected the folder of a "
            f"sharded checkpoint with its index."
        )

    def _places(self) -> list[Path]:
        """The index or single file to read, best first."""
        names = [*INDEX_NAMES, *SINGLE_NAMES]
        if self._variant:
            names = [f"{Path(name).stem}.{self._variant}{Path(name).suffix}" for name in names] + names
        return [self.path / name for name in names if (self.path / name).is_file()]

    def _table(self, shards: Mapping[Path, list[str] | None]) -> WeightTable:
        shapes: dict[str, tuple[int, ...]] = {}
        dtypes: dict[str, torch.dtype] = {}
        readers: dict[str, Any] = {}
        for shard, names in shards.items():
            check_file(shard)
            try:
                reader = self._open.enter_context(safe_open(shard, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{shard} is no complete safetensors file ({error}); {_DOWNLOAD}.") from error
            held = set(reader.keys())
            if absent := [name for name in names or () if name not in held]:
                raise CheckpointError(
                    f"The index says that {shard} holds {some(absent)}, which it does not; {_DOWNLOAD}, shards and "
                    f"index together."
                )
            for name in held if names is None else names:
                piece = reader.get_slice(name)
                shapes[name] = tuple(piece.get_shape())
                dtypes[name] = _SAFE_DTYPES[piece.get_dtype()]
                readers[name] = reader
        return WeightTable(str(self.path), shapes, dtypes, readers=readers)


def _variants(folder: Path) -> list[str]:
    """The variants that single files and indices of ``folder`` name."""
    found = set()
    for name in (*INDEX_NAMES, *SINGLE_NAMES):
        stem, suffix = Path(name).stem, Path(name).suffix
        found |= {place.name[len(stem) + 1 : -len(suffix)] for place in folder.glob(f"{stem}.*{suffix}")}
    return sorted(one for one in found if re.fullmatch(r"\w+", one))


def some(names: Iterable[str], limit: int = 4) -> str:
    """The first few of ``names`` and how many there are."""
    ordered = sorted(names)
    shown = ", ".join(ordered[:limit])
    return shown if len(ordered) <= limit else f"{shown}, ... ({len(ordered)} in all)"


def check_file(path: Path) -> None:
    """Refuse what is no weight file at all: absent, empty, a Git LFS pointer or a web page.

    Raises:
        CheckpointError: it is one of these; the message says which.
    """
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except FileNotFoundError:
        raise CheckpointError(f"There is no file or folder {path}; check the path.") from None
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror or error}.") from error
    if not start:
        raise CheckpointError(f"{path} is empty (0 bytes); {_DOWNLOAD}.")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; fetch them with 'git lfs pull'.")
    if start.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        raise CheckpointError(f"{path} is a web page, not a weight file; {_DOWNLOAD}.")


def _load_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        start = file.read(4)
    zipped = start.startswith(b"PK\x03\x04")
    if not zipped and not start.startswith(b"\x80"):
        raise CheckpointError(f"{path} is no PyTorch file (it begins with {start!r}); expected a .pth checkpoint.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        if zipped:
            raise CheckpointError(
                f"{path} holds Python objects beside weights, which could run code, and was not opened; save a plain "
                f"state dict (torch.save(model.state_dict())) or safetensors."
            ) from error
        raise CheckpointError(f"{path} is damaged or holds Python objects; {_DOWNLOAD}.") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is truncated or damaged, PyTorch cannot read it; {_DOWNLOAD}.") from error


def _tables_of(content: Any, place: str = "", depth: int = 0) -> Iterable[tuple[str, dict[str, Tensor]]]:
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        return
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield place, tensors
    if depth < _NESTING:
        for name, value in content.items():
            yield from _tables_of(value, f"{place}.{name}" if place else name, depth + 1)


def _shards(index: Path) -> dict[Path, list[str] | None]:
    check_file(index)
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards: dict[str, list[str]] = {}
        for name, shard in places.items():
            shards.setdefault(Path(shard).name, []).append(str(name))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no safetensors index (it lacks 'weight_map'); {_DOWNLOAD}.") from error
    for shard, names in shards.items():
        if not (index.parent / shard).is_file():
            raise CheckpointError(
                f"{index} names the shard {shard} ({len(names)} tensors), which is missing from the folder; download "
                f"all {len(shards)} shards."
            )
    return {index.parent / shard: names for shard, names in sorted(shards.items())}
