"""Which profiles add up, and what the sum tells of its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scalekv.errors import ProfileError
from scalekv.planning.tables import KINDS

if TYPE_CHECKING:
    from scalekv.planning.profile import Profile

_OF_A_RUN = {"prompts", "runs", "torch", "scalekv"}
"""Details that may differ between profiles that add up."""


def check_mergeable(profiles: Sequence[Profile]) -> None:
    """Refuse profiles that do not measure the same thing, or that count a picture twice.

    Raises:
        ProfileError: see :meth:`Profile.merged`.
    """
    if not profiles:
        raise ProfileError("There is no profile to merge; give at least one.")
    first = profiles[0]
    for other in profiles[1:]:
        for what, one, another in (
            ("models", first.model, other.model),
            ("layers", first.layers, other.layers),
            ("heads", first.heads, other.heads),
            ("schedules", first.schedule, other.schedule),
            ("roles", first.roles, other.roles),
            ("tables", _names(first), _names(other)),
        ):
            if one != another:
                raise ProfileError(
                    f"The profiles have different {what} ({one} and {another}) and cannot be added up; "
                    f"calibrate both alike."
                )
        check_settings(first.details, other.details)
    check_disjoint([profile.details for profile in profiles])


def check_settings(details: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Refuse measurements with other settings.

    Raises:
        ProfileError: names the first setting that differs.
    """
    for name in sorted((details.keys() | other.keys()) - _OF_A_RUN):
        if details.get(name) != other.get(name):
            raise ProfileError(
                f"The profiles were measured with different settings ({name}: {details.get(name)} and "
                f"{other.get(name)}) and cannot be added up; calibrate both alike."
            )


def check_disjoint(details: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a picture, a prompt with its seed, that was measured twice.

    Raises:
        ProfileError: names the prompt.
    """
    seen: set[tuple[str, int]] = set()
    for picture in (picture for one in details for picture in pictures_of(one)):
        if picture in seen:
            raise ProfileError(
                f"The prompt {picture[0][:80]!r} was drawn with seed {picture[1]} in two runs and would count twice; "
                f"use other prompts or another seed."
            )
        seen.add(picture)


def pictures_of(details: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Every prompt of a profile with the seed it was drawn with: prompt i of a run with the run's seed + i.

    Raises:
        ProfileError: the details do not tell.
    """
    try:
        pictures = [
            (str(prompt), int(run["seed"]) + index)
            for run in details["runs"]
            for index, prompt in enumerate(run["prompts"])
        ]
    except (KeyError, TypeError, ValueError):
        pictures = []
    if not pictures:
        raise ProfileError("A profile does not tell which prompts it was measured with; calibrate again.")
    return pictures


def merged_details(details: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The details of the first profile, with the runs of all."""
    pictures = [picture for one in details for picture in pictures_of(one)]
    return {**details[0], "prompts": len(pictures), "runs": [run for one in details for run in one["runs"]]}


def _names(profile: Profile) -> list[str]:
    return [name for kind in KINDS for name in sorted(getattr(profile, kind))]
