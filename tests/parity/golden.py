"""What the recorded cases of all families share: where they lie, what they borrow, and a cache of plain arithmetic."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from scalekv.planning import Segment

BUNDLED = Path(__file__).parent.parent / "data" / "golden"
FAMILIES = {"infinity": "Infinity", "var": "VAR"}


def named_folder() -> Path | None:
    """The folder that SCALEKV_GOLDEN names."""
    named = os.environ.get("SCALEKV_GOLDEN")
    return Path(named) if named else None


def golden_folder(family: str) -> Path:
    """The recorded cases of ``family``: those of SCALEKV_GOLDEN, else the ones in the repository."""
    return (named_folder() or BUNDLED) / family


def left_out(family: str) -> bool:
    """Whether the named folder holds cases of another family and no folder at all for this one."""
    return not golden_folder(family).exists() and any(golden_folder(other).is_dir() for other in FAMILIES)


def case_folders(family: str) -> list[Path]:
    folder = golden_folder(family)
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def recorded(folder: Path, prefix: str) -> bool:
    """Whether the case has arrays of this kind; a case that cannot be read counts, so that it is run and fails."""
    try:
        with safe_open(folder / "outputs.safetensors", "pt") as file:
            return any(name.startswith(prefix) for name in file.keys())  # noqa: SIM118
    except Exception:
        return True


def lender(folder: Path, file: str) -> Path:
    """The case that ``file`` is in: this one, or the one that its config.json borrows weights from."""
    seen = []
    while not (folder / file).is_file():
        seen.append(folder)
        origin = json.loads((folder / "config.json").read_text()).get("weights_from")
        assert origin, f"{folder} lacks {file} and names no case to take it from"
        folder = folder.parent / origin
        assert folder not in seen, f"{folder} borrows weights from itself"
    return folder


def gap(ours: Tensor, theirs: Tensor, limit: float) -> float:
    """The largest difference, which must be within ``limit``."""
    assert ours.shape == theirs.shape
    largest = (ours.double() - theirs.double()).abs().max().item()
    assert largest <= limit
    return largest


class ConcatCache:
    """Keeps every key and value by concatenation: the published arithmetic, written without our cache."""

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.segments: list[Segment] = []

    def begin(self, segment: Segment) -> None:
        self.segments.append(segment)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, projected_query: object = None
    ) -> Tensor:
        if layer in self.keys:
            key = torch.cat((self.keys[layer], key), dim=2)
            value = torch.cat((self.values[layer], value), dim=2)
        self.keys[layer], self.values[layer] = key, value
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=1.0)
