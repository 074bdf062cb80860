"""Profiles: what calibration measured of one model on one schedule, as a versioned JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from scalekv._version import __version__
from scalekv.errors import ProfileError
from scalekv.files import write_atomically
from scalekv.planning.geometry import CacheGeometry
from scalekv.planning.merging import check_mergeable, merged_details, pictures_of
from scalekv.planning.schedule import Schedule
from scalekv.planning.tables import (
    KINDS,
    HeadTable,
    SourceTable,
    Table,
    cell_shape,
    check_table,
    depth_of,
    frozen,
    matched_segments,
    moved,
    thawed,
    weighted_mean,
)

FORMAT = "scalekv-profile"
FORMAT_VERSION = 2
"""Version 1 holds ``statistics`` only, and is read too."""

T = TypeVar("T")


@dataclass(frozen=True)
class Profile:
    """What was measured of one model on one schedule, averaged over prompts; the network's conditional rows only.

    The tables of `calibrate`, by field:

    * ``statistics[name][segment][layer]``: ``"asi"``, the Attention Selectivity Index (arXiv 2505.19602, eq. 2), and
      the attention mass on the ``"current"``, ``"first"`` and ``"previous"`` segment and on all ``"others"``;
      ``"window_entropy"`` and ``"window_variance"`` of 32 evenly spaced queries (CAKE); ``"scale_similarity"`` of the
      keys to those of the segment before (AMS-KV).
    * ``head_statistics[name][segment][layer][head]``: ``"sigma"``, the variance over queries of the attention to a
      token, summed over tokens (HACK, arXiv 2504.09261). Ours: ``"sensitivity"``, the squared gradient of the
      log-likelihood of draws in the head's output, summed over channels, mean over tokens (``"sensitivity_unguided"``
      that of the unconditional row); ``"key_int8"``, ``"value_int8"`` and so on, the squared error of the output where
      the history's keys or values are held in a codec.
    * ``source_statistics[name][segment][source][layer][head]``: ``"mass"``, the attention that the queries of a
      segment pay to all tokens of a source segment, itself included; see :mod:`scalekv.planning.reliance`.
    * ``curves[name][segment][layer][head][point]``: ``"snapkv"``, SnapKV's scores by falling rank, at the ranks of
      :func:`scalekv.planning.curves.curve_ranks` among all tokens so far. Ours: ``"merging"``, the squared error of the
      head's output at the next segment if all tokens so far had been merged to so many; 0 at the last segment.

    Args:
        model: name or path of the model that was measured.
        layers: its self-attention layers.
        heads: heads per layer.
        schedule: the segments it was measured on.
        roles: drafter layers by segment index (0-based), where a paper published them; ``None`` lets the policy
            choose from the statistics.
        statistics: see above.
        head_statistics: see above.
        source_statistics: see above.
        curves: see above.
        details: how it was measured (prompts, seeds, settings, versions).

    Raises:
        ProfileError: a table of another shape, or a role outside the model.
    """

    model: str
    layers: int
    heads: int
    schedule: Schedule
    roles: Mapping[int, tuple[int, ...]] | None = None
    statistics: Mapping[str, Table] = field(default_factory=dict)
    head_statistics: Mapping[str, HeadTable] = field(default_factory=dict)
    source_statistics: Mapping[str, SourceTable] = field(default_factory=dict)
    curves: Mapping[str, SourceTable] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind in KINDS:
            tables = getattr(self, kind)
            shapes = [cell_shape(kind, self.schedule, self.layers, self.heads, at) for at in range(len(self.schedule))]
            for name, table in tables.items():
                check_table(name, table, shapes, self.model)
        for segment, drafters in (self.roles or {}).items():
            inside = all(0 <= layer < self.layers for layer in drafters) and 0 <= segment < len(self.schedule)
            if not inside or len(set(drafters)) != len(drafters):
                raise ProfileError(
                    f"The profile for {self.model} names drafters {list(drafters)} at segment {segment}; expected "
                    f"different layers in 0..{self.layers - 1} and a segment in 0..{len(self.schedule) - 1}."
                )

    def layer_table(self, name: str) -> Table:
        """A table ``[segment][layer]``.

        Raises:
            ProfileError: it was not measured.
        """
        return self._measured(self.statistics, name)

    def head_table(self, name: str) -> HeadTable:
        """A table ``[segment][layer][head]``.

        Raises:
            ProfileError: it was not measured.
        """
        return self._measured(self.head_statistics, name)

    def source_table(self, name: str) -> SourceTable:
        """A table ``[segment][source][layer][head]``.

        Raises:
            ProfileError: it was not measured.
        """
        return self._measured(self.source_statistics, name)

    def curve_table(self, name: str) -> SourceTable:
        """A table ``[segment][layer][head][point]``.

        Raises:
            ProfileError: it was not measured.
        """
        return self._measured(self.curves, name)

    def _measured(self, tables: Mapping[str, T], name: str) -> T:
        if name not in tables:
            raise ProfileError(
                f"The profile for {self.model} has no table {name!r}; measure it with 'scalekv calibrate'."
            )
        return tables[name]

    def check(self, geometry: CacheGeometry) -> None:
        """Refuse a geometry that the profile was not made for.

        Raises:
            ProfileError: other layers, heads or schedule; names both sides and how to mend it.
        """
        if (self.layers, self.heads) != (geometry.layers, geometry.network_heads):
            raise ProfileError(
                f"The profile is for {self.model} ({self.layers} layers, {self.heads} heads), the model has "
                f"{geometry.layers} layers and {geometry.network_heads} heads; calibrate this model."
            )
        if self.schedule != geometry.schedule:
            raise ProfileError(
                f"The profile for {self.model} is for the schedule {self.schedule}, the run draws {geometry.schedule}; "
                f"calibrate at this size, or use Profile.adapted_to(schedule)."
            )

    def adapted_to(self, schedule: Schedule) -> Profile:
        """This profile moved onto another schedule, segments matched by position from the last [ours].

        Published roles are for one resolution only; late segments behave alike at every resolution. Sources are
        matched alike. A longer schedule repeats the earliest known segment.
        """
        if schedule == self.schedule:
            return self
        roles = None
        if self.roles is not None:
            known = enumerate(matched_segments(self.schedule, schedule))
            roles = {index: self.roles[source] for index, source in known if source in self.roles}
        tables: dict[str, Any] = {
            kind: {name: moved(kind, table, self.schedule, schedule) for name, table in getattr(self, kind).items()}
            for kind in KINDS
        }
        details = {**self.details, "adapted_from": self.schedule.key}
        return replace(self, schedule=schedule, roles=roles, details=details, **tables)

    @classmethod
    def merged(cls, *profiles: Profile) -> Profile:
        """One profile of several runs: means weighted by the number of prompts of each.

        The prompts and seeds of all runs are remembered in ``details["runs"]``.

        Raises:
            ProfileError: no profile; other models, schedules, roles, tables or settings; no record of prompts; or a
                prompt that was drawn with the same seed in two of them, and would count twice.
        """
        check_mergeable(profiles)
        first, weights = profiles[0], [len(pictures_of(profile.details)) for profile in profiles]
        tables: dict[str, Any] = {
            kind: {
                name: weighted_mean([getattr(profile, kind)[name] for profile in profiles], weights)
                for name in getattr(first, kind)
            }
            for kind in KINDS
        }
        return replace(first, details=merged_details([profile.details for profile in profiles]), **tables)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form of the profile; numbers in six significant digits."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "written_by": f"scalekv {__version__}",
            "model": self.model,
            "layers": self.layers,
            "heads": self.heads,
            "schedule": [[segment.frames, segment.height, segment.width] for segment in self.schedule],
            "roles": None if self.roles is None else {str(k): list(v) for k, v in sorted(self.roles.items())},
            **{kind: {name: thawed(table) for name, table in getattr(self, kind).items()} for kind in KINDS},
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
        version = data.get("format_version")
        if version not in (1, FORMAT_VERSION):
            raise ProfileError(
                f"{origin} has profile version {version!r}, this scalekv reads versions up to {FORMAT_VERSION}; "
                f"calibrate again or use the scalekv that wrote it ({data.get('written_by')})."
            )
        try:
            roles = data["roles"]
            return cls(
                model=str(data["model"]),
                layers=int(data["layers"]),
                heads=int(data["heads"]),
                schedule=Schedule.from_shapes(data["schedule"]),
                roles=None if roles is None else {int(k): tuple(int(x) for x in v) for k, v in roles.items()},
                details=dict(data.get("details", {})),
                **{
                    kind: {str(name): frozen(rows, depth_of(kind)) for name, rows in data[kind].items()}
                    for kind in (KINDS if version == FORMAT_VERSION else ["statistics"])
                },
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
