"""Sums of what was measured, picture by picture, and the profile that they make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from scalekv.planning import CacheGeometry, Profile
from scalekv.planning.tables import KINDS, cell_shape, short


class AttentionStatistics:
    """Tables summed over pictures in float64; :meth:`profile` divides by their number.

    Args:
        geometry: layers, heads and schedule of the runs.
    """

    def __init__(self, geometry: CacheGeometry) -> None:
        self.geometry = geometry
        self.images = 0
        self._sums: dict[str, dict[str, list[np.ndarray]]] = {kind: {} for kind in KINDS}

    def add(self, kind: str, name: str, segment: int, layer: int, value: Tensor) -> None:
        """Add what one picture gave at one segment and layer.

        Args:
            kind: a field of the profile that holds tables.
            name: of the table.
            segment: index.
            layer: index.
            value: the cell of ``segment`` in such a table, without its axis of layers.
        """
        if name not in self._sums[kind]:
            self._sums[kind][name] = self._empty(kind)
        cell = self._sums[kind][name][segment]
        place = (slice(None), layer) if kind == "source_statistics" else (layer,)
        cell[place] += value.detach().cpu().double().numpy()

    def _empty(self, kind: str) -> list[np.ndarray]:
        geometry = self.geometry
        segments = range(len(geometry.schedule))
        return [np.zeros(cell_shape(kind, geometry.schedule, geometry.layers, geometry.heads, at)) for at in segments]

    def profile(self, model: str, details: Mapping[str, Any] | None = None) -> Profile:
        """The mean over pictures.

        Args:
            model: its name.
            details: how it was measured.

        Raises:
            ProfileError: attention gave numbers that are not finite.
        """
        tables: dict[str, Any] = {
            kind: {name: tuple(_short(cell / self.images) for cell in cells) for name, cells in sorted(named.items())}
            for kind, named in self._sums.items()
        }
        geometry = self.geometry
        return Profile(model, geometry.layers, geometry.heads, geometry.schedule, details=details or {}, **tables)


def _short(cell: Any) -> Any:
    return tuple(_short(part) for part in cell) if isinstance(cell, np.ndarray) else short(float(cell))
