"""VAR: class-conditional next-scale networks on ImageNet (Tian et al., 2024).

Saved pipelines name this module in their ``model_index.json``, so it is a public contract: the components are found
here by name, and so are the diffusers base classes that its loader looks up beside them. Everything loads on first use,
because the schedule tables must be readable without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalekv.models.var.autoencoder import VQAutoencoder
    from scalekv.models.var.scheduler import VARScheduler
    from scalekv.models.var.transformer import VARTransformer

_HOMES = {
    "ModelMixin": "diffusers.models.modeling_utils",
    "SchedulerMixin": "diffusers.schedulers.scheduling_utils",
    "VARScheduler": "scalekv.models.var.scheduler",
    "VARTransformer": "scalekv.models.var.transformer",
    "VQAutoencoder": "scalekv.models.var.autoencoder",
}

__all__ = ["VARScheduler", "VARTransformer", "VQAutoencoder"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
