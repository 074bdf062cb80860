"""Pipelines: prompt to picture, one file per model family, in diffusers' conventions.

Saved folders name ``scalekv.pipelines.infinity`` and ``scalekv.pipelines.var``: a public contract. Names load on first
use, because diffusers takes seconds to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalekv.pipelines.conversion import convert
    from scalekv.pipelines.infinity import InfinityPipeline
    from scalekv.pipelines.loading import load_pipeline
    from scalekv.pipelines.output import InfinityPipelineOutput, VARPipelineOutput
    from scalekv.pipelines.tiny import tiny_pipeline
    from scalekv.pipelines.tiny_var import tiny_var_pipeline
    from scalekv.pipelines.var import VARPipeline

_HOMES = {
    "InfinityPipeline": "scalekv.pipelines.infinity",
    "InfinityPipelineOutput": "scalekv.pipelines.output",
    "VARPipeline": "scalekv.pipelines.var",
    "VARPipelineOutput": "scalekv.pipelines.output",
    "convert": "scalekv.pipelines.conversion",
    "load_pipeline": "scalekv.pipelines.loading",
    "tiny_pipeline": "scalekv.pipelines.tiny",
    "tiny_var_pipeline": "scalekv.pipelines.tiny_var",
}

__all__ = [
    "InfinityPipeline",
    "InfinityPipelineOutput",
    "VARPipeline",
    "VARPipelineOutput",
    "convert",
    "load_pipeline",
    "tiny_pipeline",
    "tiny_var_pipeline",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
