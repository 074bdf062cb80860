"""What the recorded cases of all families share: where they lie, what they borrow, and a cache of plain arithmetic."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
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
    """Where the cases of ``family`` are: in a folder of its name, or beside those of other families."""
    root = named_folder() or BUNDLED
    return root / family if any((root / name).is_dir() for name in FAMILIES) else root


def left_out(family: str) -> bool:
    """Whether the named folder holds cases of another family and no folder at all for this one."""
    absent = golden_folder(family).name != family or not golden_folder(family).exists()
    return absent and not case_folders(family) and any(case_folders(other) for other in FAMILIES)


def case_folders(family: str) -> list[Path]:
    """All cases of ``family``: in its folder every folder, elsewhere those whose config.json is of this family."""
    folder = golden_folder(family)
    if (folder / "config.json").is_file():
        return [folder] if family_of(folder) == family else []
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    shown = [path for path in inside if path.is_dir() and not path.name.startswith((".", "_"))]
    return [path for path in shown if family_of(path) == family]


def family_of(case: Path) -> str | None:
    """The family of a case: the name of the folder around it, else what its config.json is about."""
    if case.parent.name in FAMILIES:
        return case.parent.name
    try:
        config = json.loads((case / "config.json").read_text())
    except (OSError, ValueError):
        return None
    if {"scale_schedule", "sampling"} & set(config):
        return "infinity"
    return "var" if {"patch_nums", "combos", "sample"} & set(config) else None


def beyond(folder: Path, flags: Iterable[str], arrays: Iterable[str]) -> str:
    """What a case holds that nobody here knows, for the summary; a bundled case must not hold any.

    A flag with an effect shows in the numbers, which are compared all the same.
    """
    parts = {"flags nobody knows": sorted(flags), "arrays nobody checks": sorted(arrays)}
    said = "; ".join(f"{what}: {', '.join(names)}" for what, names in parts.items() if names)
    assert not said or BUNDLED not in folder.parents, said
    return said


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
        places = [folder.parent / origin, BUNDLED / str(family_of(folder)) / origin]
        found = [place for place in places if (place / "config.json").is_file()]
        assert found, f"{folder} takes {file} from the case {origin!r}, which is neither beside it nor bundled"
        folder = found[0]
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

    dtype = None

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
