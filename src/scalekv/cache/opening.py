"""From a method to an open cache: the one line a generation loop needs."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from scalekv.cache.kv_cache import KVCache
from scalekv.errors import InvalidInput
from scalekv.planning import CacheGeometry, Profile
from scalekv.policies import Full, Policy


class CacheFactory(Protocol):
    """Opens a cache for a run; what calibration passes instead of a policy."""

    def __call__(self, geometry: CacheGeometry, *, dtype: torch.dtype, device: torch.device) -> KVCache:
        """A fresh cache for ``geometry``."""


def open_cache(
    method: Policy | CacheFactory | None,
    geometry: CacheGeometry,
    profile: Profile | None,
    dtype: torch.dtype,
    device: torch.device,
) -> KVCache:
    """Plan and open the cache of one generation.

    Args:
        method: a policy, by default everything is kept; or a factory, which plans for itself without the profile.
        geometry: the shape of the run.
        profile: calibration of this model and schedule, if there is one.
        dtype: of keys and values.
        device: where they live.

    Raises:
        InvalidInput: ``method`` is neither.
        BudgetError: nothing fits the policy's budget.
        ProfileError: the profile is for another model or schedule.
    """
    policy: Any = Full() if method is None else method
    if isinstance(policy, Policy):
        return KVCache(policy.plan(geometry, profile), policy, dtype=dtype, device=device)
    if isinstance(policy, (type, KVCache)) or not callable(policy):
        raise InvalidInput(f"kv_cache must be a policy such as ScaleKV(budget='10%'), got {policy!r:.80}.")
    opened: KVCache = policy(geometry, dtype=dtype, device=device)
    return opened
