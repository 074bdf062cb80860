"""Profiles: what calibration measured of one model on one schedule, as a versioned JSON file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from scalekv._version import __version__
from scalekv.errors import ProfileError
from scalekv.files import write_atomically
from scalekv.planning.geometry import CacheGeometry
from scalekv.planning.schedule import Schedule

FORMAT = "scalekv-profile"
FORMAT_VERSION = 1

Table = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Profile:
    """Per layer and segment statistics of one model on one schedule.

    Args:
        model: name or path of the model that was measured.
        layers: its self-attention layers.
        heads: heads per layer.
        schedule: the segments it was measured on.
        roles: drafter layers by segment index (0-based), where a paper published them; ``None`` lets the policy
            choose from the statistics.
        statistics: tables by name, ``statistics[name][segment][layer]``; ``"asi"`` is the Attention Selectivity
            Index (arXiv 2505.19602, eq. 2).
        details: how it was measured (prompts, seeds, settings, versions), for people.

    Raises:
        ProfileError: a table of another shape, or a role outside the model.
    """

    model: str
    layers: int
    heads: int
    schedule: Schedule
    roles: Mapping[int, tuple[int, ...]] | None = None
    statistics: Mapping[str, Table] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, table in self.statistics.items():
            if not all(math.isfinite(value) for row in table for value in row):
                raise ProfileError(
                    f"The table {name!r} of the profile for {self.model} holds values that are no numbers; "
                    f"calibrate again."
                )
            if len(table) != len(self.schedule) or any(len(row) != self.layers for row in table):
                raise ProfileError(
                    f"The table {name!r} of the profile for {self.model} is not {len(self.schedule)} segments by "
                    f"{self.layers} layers; calibrate again."
                )
        for segment, drafters in (self.roles or {}).items():
            inside = all(0 <= layer < self.layers for layer in drafters) and 0 <= segment < len(self.schedule)
            if not inside or len(set(drafters)) != len(drafters):
                raise ProfileError(
                    f"The profile for {self.model} names drafters {list(drafters)} at segment {segment}; expected "
                    f"different layers in 0..{self.layers - 1} and a segment in 0..{len(self.schedule) - 1}."
                )

    def check(self, geometry: CacheGeometry) -> None:
        """Refuse a geometry that the profile was not made for.

        Raises:
            ProfileError: other layers, heads or schedule; names both sides and how to mend it.
        """
        if (self.layers, self.heads) != (geometry.layers, geometry.heads):
            raise ProfileError(
                f"The profile is for {self.model} ({self.layers} layers, {self.heads} heads), the model has "
                f"{geometry.layers} layers and {geometry.heads} heads; calibrate this model."
            )
        if self.schedule != geometry.schedule:
            raise ProfileError(
                f"The profile for {self.model} is for the schedule {self.schedule}, the run draws {geometry.schedule}; "
                f"calibrate at this size, or use Profile.adapted_to(schedule)."
            )

    def adapted_to(self, schedule: Schedule) -> Profile:
        """This profile moved onto another schedule, segments matched by position from the last [ours].

        Published roles are for one resolution only; late segments behave alike at every resolution.
        A longer schedule repeats the earliest known segment.
        """
        if schedule == self.schedule:
            return self
        shift = len(self.schedule) - len(schedule)
        source = [max(index + shift, 0) for index in range(len(schedule))]
        roles = None
        if self.roles is not None:
            roles = {index: self.roles[known] for index, known in enumerate(source) if known in self.roles}
        return Profile(
            model=self.model,
            layers=self.layers,
            heads=self.heads,
            schedule=schedule,
            roles=roles,
            statistics={name: tuple(table[known] for known in source) for name, table in self.statistics.items()},
            details={**self.details, "adapted_from": self.schedule.key},
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of the profile."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "written_by": f"scalekv {__version__}",
            "model": self.model,
            "layers": self.layers,
            "heads": self.heads,
            "schedule": [[segment.frames, segment.height, segment.width] for segment in self.schedule],
            "roles": None if self.roles is None else {str(k): list(v) for k, v in sorted(self.roles.items())},
            "statistics": {name: [list(row) for row in table] for name, table in self.statistics.items()},
            "details": dict(self.details),
        }

    @classmethod
    def from_dict(cls, data: Any, origin: str = "the profile") -> Profile:
        """Read the JSON form; ``origin`` names the file in messages.

        Raises:
            ProfileError: not a profile, another version, or damaged.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise ProfileError(f"{origin} is not a scalekv profile; write one with 'scalekv calibrate'.")
        if data.get("format_version") != FORMAT_VERSION:
            raise ProfileError(
                f"{origin} has profile version {data.get('format_version')!r}, this scalekv reads version "
                f"{FORMAT_VERSION}; calibrate again or use the scalekv that wrote it ({data.get('written_by')})."
            )
        try:
            roles = data["roles"]
            return cls(
                model=str(data["model"]),
                layers=int(data["layers"]),
                heads=int(data["heads"]),
                schedule=_schedule(data["schedule"]),
                roles=None if roles is None else {int(k): tuple(int(x) for x in v) for k, v in roles.items()},
                statistics={str(name): _table(rows) for name, rows in data["statistics"].items()},
                details=dict(data.get("details", {})),
            )
        except ProfileError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ProfileError(f"{origin} is damaged ({error!r}); calibrate again.") from error

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON; a failed write leaves nothing behind.

        Raises:
            InvalidInput: the folder cannot be written.
        """
        entries = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in self.to_dict().items())
        write_atomically(Path(path), ("{\n" + ",\n".join(entries) + "\n}\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a profile written by :meth:`save`.

        Raises:
            ProfileError: no such file, no JSON, or not a profile of this version.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ProfileError(f"Cannot read the profile {path}: {error.strerror or error}.") from error
        except (ValueError, RecursionError) as error:
            raise ProfileError(f"{path} is not a scalekv profile (it is no JSON text); calibrate again.") from error
        return cls.from_dict(data, origin=str(path))

    @staticmethod
    def builtin_names() -> tuple[str, ...]:
        """Names of the shipped profiles."""
        files = (Path(file.name) for file in resources.files("scalekv.profiles").iterdir())
        return tuple(sorted(file.stem for file in files if file.suffix == ".json"))

    @classmethod
    def builtin(cls, name: str) -> Profile | None:
        """The profile shipped for a known model, such as ``infinity-2b``, or ``None``."""
        file = resources.files("scalekv.profiles") / f"{name}.json"
        return cls.from_dict(json.loads(file.read_text(encoding="utf-8")), name) if file.is_file() else None


def _schedule(shapes: Sequence[Sequence[int]]) -> Schedule:
    return Schedule.from_shapes(shapes)


def _table(rows: Sequence[Sequence[float]]) -> Table:
    return tuple(tuple(float(value) for value in row) for row in rows)
