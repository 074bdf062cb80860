"""What a run was made with: marks that tell models and profiles apart, versions, the machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

import torch

from scalekv._version import __version__
from scalekv.planning import Profile, ProfileLike, Schedule, choose_profile

_PACKAGES = ("torch", "torchmetrics", "diffusers", "transformers", "numpy", "pillow")
_VALUES = 16
"""Numbers of every weight that are looked at."""

_DIGITS = 16


def model_mark(pipeline: Any) -> str:
    """A few digits that differ between models: from configurations, and shape and first values of every weight."""
    digest = hashlib.sha256()
    for name, part in sorted(pipeline.components.items()):
        config = getattr(part, "config", None)
        if isinstance(config, dict):
            told = {key: value for key, value in config.items() if not key.startswith("_")}
            digest.update(json.dumps([name, told], sort_keys=True, default=str).encode())
        if isinstance(part, torch.nn.Module):
            for key, weight in part.named_parameters():
                digest.update(f"{name}.{key}{tuple(weight.shape)}".encode())
                if not weight.is_meta:
                    digest.update(weight.detach().flatten()[:_VALUES].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:_DIGITS]


def profile_of(pipeline: Any, given: ProfileLike | None) -> Profile | None:
    """The profile that methods are planned with, as it was measured.

    Raises:
        ProfileError: ``given`` is none.
    """
    any_run = pipeline.cache_geometry(Schedule.from_sides((1,)))
    return choose_profile(given, pipeline.profile, pipeline.config.model_name, any_run)


def profile_mark(profile: Profile | None) -> str | None:
    """A few digits that differ between profiles."""
    if profile is None:
        return None
    told = {name: value for name, value in profile.to_dict().items() if name != "written_by"}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:_DIGITS]


def machine(device: torch.device) -> dict[str, Any]:
    """The machine that runs, ready for JSON."""
    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def geometry(pipeline: Any) -> dict[str, int]:
    """The part of a cache's shape that is the model's own; batch, guidance and schedule are those of a result."""
    any_run = pipeline.cache_geometry(Schedule.from_sides((1,)))
    return {name: getattr(any_run, name) for name in ("layers", "heads", "head_dim", "element_bytes")}


def versions() -> dict[str, str]:
    """Versions of what results come from."""
    found = {"scalekv": __version__, "python": platform.python_version()}
    return {**found, **{name: metadata.version(name) for name in _PACKAGES}}


def now() -> str:
    """The time, for people."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
