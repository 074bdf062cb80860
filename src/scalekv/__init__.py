"""scalekv: the same picture from a visual autoregressive model in a tenth of the KV-cache memory.

``import scalekv`` loads neither torch nor diffusers; names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from scalekv._version import __version__

if TYPE_CHECKING:
    from scalekv.cache import CacheReport, KVCache
    from scalekv.calibration import calibrate
    from scalekv.pipelines import InfinityPipeline, VARPipeline, load_pipeline
    from scalekv.planning import Budget, CacheGeometry, CachePlan, Profile, Schedule, Segment
    from scalekv.policies import (
        AMSKV,
        CAKE,
        H2O,
        AdaKV,
        Bytewise,
        Full,
        Hack,
        HackPP,
        HeatKV,
        Policy,
        PyramidKV,
        Random,
        ScaleKV,
        SlidingWindow,
        SnapKV,
        StreamingLLM,
        make_policy,
    )

_HOMES = {
    "scalekv.planning": ("Budget", "CacheGeometry", "CachePlan", "Profile", "Schedule", "Segment"),
    "scalekv.policies": (
        "AMSKV",
        "AdaKV",
        "Bytewise",
        "CAKE",
        "Full",
        "H2O",
        "Hack",
        "HackPP",
        "HeatKV",
        "Policy",
        "PyramidKV",
        "Random",
        "ScaleKV",
        "SlidingWindow",
        "SnapKV",
        "StreamingLLM",
        "make_policy",
    ),
    "scalekv.cache": ("CacheReport", "KVCache"),
    "scalekv.calibration": ("calibrate",),
    "scalekv.pipelines": ("InfinityPipeline", "VARPipeline", "load_pipeline"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AMSKV",
    "CAKE",
    "H2O",
    "AdaKV",
    "Budget",
    "Bytewise",
    "CacheGeometry",
    "CachePlan",
    "CacheReport",
    "Full",
    "Hack",
    "HackPP",
    "HeatKV",
    "InfinityPipeline",
    "KVCache",
    "Policy",
    "Profile",
    "PyramidKV",
    "Random",
    "ScaleKV",
    "Schedule",
    "Segment",
    "SlidingWindow",
    "SnapKV",
    "StreamingLLM",
    "VARPipeline",
    "__version__",
    "calibrate",
    "load_pipeline",
    "make_policy",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'scalekv' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
