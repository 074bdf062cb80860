"""The calibration profile that the cache of one call is planned with."""

from __future__ import annotations

import logging
from pathlib import Path

from scalekv.errors import InvalidInput
from scalekv.planning import CacheGeometry, Profile

logger = logging.getLogger(__name__)

ProfileLike = Profile | str | Path


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
