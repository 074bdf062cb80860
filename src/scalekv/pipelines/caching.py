"""The cache of one call: its policy, and the calibration profile it plans with."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol

import torch

from scalekv.cache import KVCache
from scalekv.errors import InvalidInput
from scalekv.planning import CacheGeometry, Profile
from scalekv.policies import Full, Policy

logger = logging.getLogger(__name__)

ProfileLike = Profile | str | Path


class CacheFactory(Protocol):
    """Opens a cache for a run; what calibration passes instead of a policy."""

    def __call__(self, geometry: CacheGeometry, *, dtype: torch.dtype, device: torch.device) -> KVCache:
        """A fresh cache for ``geometry``."""


def open_cache(
    kv_cache: Policy | CacheFactory | None,
    geometry: CacheGeometry,
    profile: Profile | None,
    dtype: torch.dtype,
    device: torch.device,
) -> KVCache:
    """A fresh cache for one run.

    Args:
        kv_cache: policy, by default everything is kept; or a factory, which plans for itself.
        geometry: the run.
        profile: what the policy plans with.
        dtype: of keys and values.
        device: where they live.

    Raises:
        InvalidInput: ``kv_cache`` is neither; a :class:`BudgetError` or :class:`ProfileError` where it cannot plan.
    """
    policy: Any = Full() if kv_cache is None else kv_cache
    if isinstance(policy, Policy):
        return KVCache(policy.plan(geometry, profile), policy, dtype=dtype, device=device)
    if isinstance(policy, (type, KVCache)) or not callable(policy):
        raise InvalidInput(f"kv_cache must be a policy such as ScaleKV(budget='10%'), got {policy!r:.80}.")
    opened: KVCache = policy(geometry, dtype=dtype, device=device)
    return opened


def resolve_profile(
    given: ProfileLike | None, own: Profile | None, model_name: str | None, geometry: CacheGeometry
) -> Profile | None:
    """The profile for one run, moved onto its schedule.

    Args:
        given: what the call was told: a profile, its file, or the name of a built-in one. First choice.
        own: the pipeline's own profile. Second choice.
        model_name: known model whose built-in profile is the third choice, if it has the model's shape.
        geometry: the run.

    Raises:
        ProfileError: the file is no profile.
        InvalidInput: ``given`` is none of the above.
    """
    profile = own if given is None else _read(given)
    if profile is None and model_name:
        profile = Profile.builtin(model_name)
        if profile is not None and (profile.layers, profile.heads) != (geometry.layers, geometry.heads):
            logger.warning(
                "The built-in profile %s is for another network and is not used; calibrate this one.", model_name
            )
            return None
    if profile is None or profile.schedule == geometry.schedule:
        return profile
    logger.info("The profile for %s was measured on %s; adapted to this size.", profile.model, profile.schedule)
    return profile.adapted_to(geometry.schedule)


def _read(given: ProfileLike) -> Profile:
    if isinstance(given, Profile):
        return given
    if not isinstance(given, (str, Path)):
        raise InvalidInput(f"profile must be a Profile, its file or a known name, got {type(given).__name__}.")
    builtin = None if Path(given).exists() or Path(given).name != str(given) else Profile.builtin(str(given))
    return builtin or Profile.load(given)
