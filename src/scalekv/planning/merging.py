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


def check_comparable(profiles: Sequence[Profile]) -> None:
    """Refuse profiles of different models or schedules.

    Raises:
        ProfileError: they are; or there is none.
    """
    if not profiles:
        raise ProfileError("There is no profile; give at least one.")
    for what in ("model", "layers", "heads", "schedule"):
        _check_equal(what, [getattr(profile, what) for profile in profiles])


def check_mergeable(profiles: Sequence[Profile]) -> None:
    """Refuse profiles that do not measure the same thing, or that count a picture twice.

    Raises:
        ProfileError: see :meth:`Profile.merged`.
    """
    check_comparable(profiles)
    _check_equal("roles", [profile.roles for profile in profiles])
    _check_equal("tables", [_names(profile) for profile in profiles])
    for other in profiles[1:]:
        check_settings(profiles[0].details, other.details)
    check_disjoint([profile.details for profile in profiles])


def _check_equal(what: str, values: Sequence[object]) -> None:
    for value in values[1:]:
        if value != values[0]:
            raise ProfileError(
                f"The profiles differ in {what} ({values[0]} and {value}) and do not belong together; "
                f"calibrate both alike."
            )


def check_settings(details: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Refuse measurements with other settings.

    Raises:
        ProfileError: names the first setting that differs.
    """
    for name in sorted((details.keys() | other.keys()) - _OF_A_RUN):
        if details.get(name) != other.get(name):
            raise ProfileError(
                f"The profiles differ in settings ({name}: {details.get(name)} and {other.get(name)}) and cannot be "
                f"added up; calibrate both alike."
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
