"""From a method to an open cache: the one line a generation loop needs."""

from __future__ import annotations

from typing import Protocol

import torch

from scalekv.cache.kv_cache import KVCache
from scalekv.planning import CacheGeometry, Profile
from scalekv.policies import Policy


class CacheFactory(Protocol):
    """Anything that opens a cache for a geometry; calibration passes one that records."""

    def __call__(self, geometry: CacheGeometry, *, dtype: torch.dtype, device: torch.device) -> KVCache:
        """Open a cache for one generation."""
        ...


def open_cache(
    method: Policy | CacheFactory,
    geometry: CacheGeometry,
    profile: Profile | None,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> KVCache:
    """Plan and open the cache of one generation.

    Args:
        method: a policy, or a factory that decides for itself (the profile is then not used).
        geometry: the shape of the run.
        profile: calibration of this model and schedule, if there is one.
        dtype: the dtype attention computes in.
        device: where keys and values live.

    Raises:
        BudgetError: nothing fits the policy's budget.
        ProfileError: the profile is for another model or schedule.
    """
    if isinstance(method, Policy):
        return KVCache(method.plan(geometry, profile), method, dtype=dtype, device=device)
    return method(geometry, dtype=dtype, device=device)
