"""Which calibration profile a run is planned with: the same for `scalekv plan` and for drawing."""

from __future__ import annotations

import logging
from pathlib import Path

from scalekv.errors import InvalidInput, ProfileError
from scalekv.planning.geometry import CacheGeometry
from scalekv.planning.profile import Profile

logger = logging.getLogger(__name__)

ProfileLike = Profile | str | Path


def choose_profile(
    given: ProfileLike | None, own: Profile | None, model_name: str | None, geometry: CacheGeometry
) -> Profile | None:
    """The profile for one run, as it was measured.

    Args:
        given: what the call was told: a profile, its file, or the name of a built-in one. First choice.
        own: the model's own profile. Second choice.
        model_name: known model whose built-in profile is the third choice, if it has the model's shape.
        geometry: the run.

    Raises:
        ProfileError: the file is no profile.
        InvalidInput: ``given`` is none of the above.
    """
    profile = own if given is None else read_profile(given)
    if profile is not None or not model_name:
        return profile
    profile = Profile.builtin(model_name)
    if profile is not None and (profile.layers, profile.heads) != (geometry.layers, geometry.heads):
        logger.warning(
            "The built-in profile %s is for another network and is not used; calibrate this one.", model_name
        )
        return None
    return profile


def resolve_profile(
    given: ProfileLike | None, own: Profile | None, model_name: str | None, geometry: CacheGeometry
) -> Profile | None:
    """The profile of :func:`choose_profile`, moved onto the schedule of the run."""
    profile = choose_profile(given, own, model_name, geometry)
    if profile is None or profile.schedule == geometry.schedule:
        return profile
    logger.info("The profile for %s was measured on %s; adapted to this size.", profile.model, profile.schedule)
    return profile.adapted_to(geometry.schedule)


def read_profile(given: ProfileLike) -> Profile:
    """A profile, the one in a file, or the built-in one of a name; a file of that name goes first.

    Raises:
        ProfileError: no profile, and no known name.
        InvalidInput: something else.
    """
    if isinstance(given, Profile):
        return given
    if not isinstance(given, (str, Path)):
        raise InvalidInput(f"profile must be a Profile, its file or a known name, got {type(given).__name__}.")
    path, name = Path(given), str(given)
    if path.exists() or path.name != name:
        return Profile.load(path)
    builtin = Profile.builtin(name)
    if builtin is None:
        known = ", ".join(Profile.builtin_names())
        raise ProfileError(f"There is no profile {name}: no file is called so, and the built-in ones are {known}.")
    return builtin
