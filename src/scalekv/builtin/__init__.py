"""Trained models that come with the package, as the pipeline folders that ``from_pretrained`` reads."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent


def builtin_models() -> tuple[str, ...]:
    """Names of the models in the package, such as ``"scenes"``."""
    return tuple(sorted(index.parent.name for index in _HERE.glob("*/model_index.json")))


def builtin_folder(name: str | Path) -> Path | None:
    """The folder of a model in the package, or ``None``; write ``./scenes`` for a folder of one's own of that name."""
    return _HERE / str(name) if str(name) in builtin_models() else None
