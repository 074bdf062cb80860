"""What a run is about: its settings and prompts, in ``run.json``. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from scalekv.errors import InvalidInput
from scalekv.evaluation.subjects import Subject, merged

FORMAT, FORMAT_VERSION = "scalekv evaluation", 1


@dataclass(frozen=True)
class RunInfo:
    """What a run is about: ``run.json``.

    Args:
        settings: all that results depend on beside method, budget, prompt and seed: the model, its fingerprint and
            profile, sampling, batch, metrics. A run is resumed only with the same ones.
        subjects: the prompts; their order never changes, new ones are appended.
        windows: first prompt and one past the last of every batch; batches never change either.
        details: versions, machine, commands, what was asked for (methods, budgets, seeds) and other things to know.
    """

    settings: dict[str, Any]
    subjects: tuple[Subject, ...]
    windows: tuple[tuple[int, int], ...]
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def begin(cls, settings: dict[str, Any], subjects: Sequence[Subject], details: dict[str, Any]) -> RunInfo:
        """A new run; ``settings`` name the ``batch``."""
        return cls(json.loads(json.dumps(settings)), (), (), details)._with(merged((), subjects))

    def continued(self, settings: dict[str, Any], subjects: Sequence[Subject], details: dict[str, Any]) -> RunInfo:
        """This run with more prompts.

        Raises:
            InvalidInput: other settings; names the first that differs.
        """
        check_same(self.settings, json.loads(json.dumps(settings)))
        grown = {name: self._both(name, details) for name in ("commands", "asked")}
        kept = RunInfo(self.settings, self.subjects, self.windows, {**self.details, **grown})
        return kept._with(merged(self.subjects, subjects))

    def _both(self, name: str, details: dict[str, Any]) -> list[Any]:
        """A list of the details so far with what is new in ``details``."""
        known = list(self.details.get(name, []))
        return known + [one for one in details.get(name, []) if one not in known]

    def _with(self, subjects: tuple[Subject, ...]) -> RunInfo:
        batch, first = int(self.settings["batch"]), len(self.subjects)
        starts = range(first, len(subjects), batch)
        new = tuple((start, min(start + batch, len(subjects))) for start in starts)
        return RunInfo(self.settings, subjects, (*self.windows, *new), self.details)

    def windows_of(self, indices: Iterable[int]) -> list[tuple[int, int]]:
        """The batches that hold any of these prompts."""
        wanted = set(indices)
        return [window for window in self.windows if wanted.intersection(range(*window))]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **self.details,
            "settings": self.settings,
            "prompts": [subject.to_dict() for subject in self.subjects],
            "windows": [list(window) for window in self.windows],
        }

    @classmethod
    def from_dict(cls, data: Any, origin: str) -> RunInfo:
        """Read :meth:`to_dict`; ``origin`` names the file in messages.

        Raises:
            InvalidInput: no run, of another version, or damaged.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise InvalidInput(f"{origin} was not written by 'scalekv evaluate'; choose another --out.")
        if data.get("format_version") != FORMAT_VERSION:
            raise InvalidInput(
                f"{origin} has version {data.get('format_version')!r}, this scalekv reads {FORMAT_VERSION}; evaluate "
                "into another folder."
            )
        own = ("format", "format_version", "settings", "prompts", "windows")
        try:
            subjects = tuple(Subject.from_dict(one) for one in data["prompts"])
            windows = tuple((int(start), int(stop)) for start, stop in data["windows"])
            details = {name: value for name, value in data.items() if name not in own}
            return cls(dict(data["settings"]), subjects, windows, details)
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"{origin} is damaged ({error!r}); evaluate into another folder.") from error


def check_same(found: dict[str, Any], wanted: dict[str, Any], within: str = "") -> None:
    """Compare the settings of a run with those that it is resumed with.

    Raises:
        InvalidInput: they differ; names the first that does.
    """
    for name in dict.fromkeys([*found, *wanted]):
        before, now = found.get(name), wanted.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            check_same(before, now, f"{within}{name}.")
        elif before != now:
            raise InvalidInput(
                f"This run was made with {_difference(f'{within}{name}', before, now)}; results of both do not "
                "belong together: give another --out, or the settings of the run."
            )


def _difference(name: str, before: Any, now: Any) -> str:
    if name.endswith("_mark"):  # digits that mean nothing to a person
        return f"another {name.removesuffix('_mark')}" if before and now else f"{'a' if before else 'no'} {name[:-5]}"
    return f"{name} = {_said(before)}, not {_said(now)}"


def _said(value: Any) -> str:
    return "its default" if value is None else f"{value!s:.60}"
