"""Compression methods, one file each. A new method is one file here and one line in ``POLICIES``."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from scalekv.errors import InvalidInput
from scalekv.planning import BudgetLike
from scalekv.policies.adakv import AdaKV
from scalekv.policies.ams_kv import AMSKV
from scalekv.policies.base import Policy, SelectionView
from scalekv.policies.bytewise import Bytewise
from scalekv.policies.cake import CAKE
from scalekv.policies.full import Full
from scalekv.policies.h2o import H2O
from scalekv.policies.hack import Hack
from scalekv.policies.hack_pp import HackPP
from scalekv.policies.heatkv import HeatKV
from scalekv.policies.layers import Layers, dense, uniform
from scalekv.policies.observation import Observation, ObservingPolicy
from scalekv.policies.pyramidkv import PyramidKV
from scalekv.policies.random import Random
from scalekv.policies.scalekv import ScaleKV
from scalekv.policies.sliding_window import SlidingWindow
from scalekv.policies.snapkv import SnapKV
from scalekv.policies.streaming_llm import StreamingLLM

POLICIES: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (
        Full,
        ScaleKV,
        SlidingWindow,
        StreamingLLM,
        Random,
        SnapKV,
        PyramidKV,
        H2O,
        CAKE,
        AdaKV,
        Hack,
        HackPP,
        HeatKV,
        AMSKV,
        Bytewise,
    )
}
"""Every method by name."""


def make_policy(name: str, budget: BudgetLike | None = None, **settings: Any) -> Policy:
    """Build a policy by name.

    Args:
        name: a key of ``POLICIES``, where hyphens and capitals do not matter, or ``"module.Class"`` of one's own.
        budget: see :class:`Policy`; the method's default if ``None``.
        settings: the method's other fields.

    Raises:
        InvalidInput: an unknown name (the message lists the known ones) or an unknown setting.
    """
    found = POLICIES.get(name.lower().replace("-", "_")) or _imported(name)
    if found is None:
        raise InvalidInput(f"Unknown policy {name!r}; choose one of {', '.join(sorted(POLICIES))}.")
    if budget is not None:
        settings["budget"] = budget
    try:
        return found(**settings)
    except TypeError as error:
        known = ", ".join(found.__dataclass_fields__)
        raise InvalidInput(f"Policy {found.name} does not take these settings ({error}); it has {known}.") from error


def _imported(name: str) -> type[Policy] | None:
    module, _, attribute = name.rpartition(".")
    if not module:
        return None
    try:
        found = getattr(import_module(module), attribute, None)
    except ImportError as error:
        raise InvalidInput(f"Cannot import the policy {name!r} ({error}); is its folder in PYTHONPATH?") from error
    if isinstance(found, type) and issubclass(found, Policy):
        return found
    raise InvalidInput(f"{name!r} is no policy; it must be a class that inherits from scalekv.policies.Policy.")


DEFAULT_POLICY = Bytewise.name
"""The method of a budget that comes without one: the best at every budget of docs/results.md."""

__all__ = [
    "AMSKV",
    "CAKE",
    "DEFAULT_POLICY",
    "H2O",
    "POLICIES",
    "AdaKV",
    "Bytewise",
    "Full",
    "Hack",
    "HackPP",
    "HeatKV",
    "Layers",
    "Observation",
    "ObservingPolicy",
    "Policy",
    "PyramidKV",
    "Random",
    "ScaleKV",
    "SelectionView",
    "SlidingWindow",
    "SnapKV",
    "StreamingLLM",
    "dense",
    "make_policy",
    "uniform",
]
