"""What is in a file or folder: kind, size, type and the known models it fits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class CheckpointInfo:
    """What :func:`inspect_checkpoint` found.

    Args:
        path: what was looked at.
        kind: ``"infinity transformer"``, ``"infinity vae"``, ``"pipeline folder"`` or ``"profile"``.
        description: one line for people.
        models: known models of this shape; several where one network was trained at two sizes.
        parameters: weights, without buffers; ``None`` for a profile.
        dtypes: how the numbers are stored, such as ``("float32",)``.
        bits: bits per token (transformer) or per latent pixel (tokenizer).
        config: what the keys and shapes tell of the configuration.
        autoencoders: known tokenizers that fit.
        profiles: names of known profiles that fit.
        components: parts of a pipeline folder by name, with their class; ``None`` where one was left out.
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

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


def inspect_checkpoint(path: str | Path) -> CheckpointInfo:
    """Tell what a checkpoint file, sharded folder, pipeline folder or profile is, without loading weights.

    Raises:
        CheckpointError: nothing there, damaged, or of no kind that scalekv reads.
    """
    raise NotImplementedError
