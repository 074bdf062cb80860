"""One batch of pictures with one method: its plan, its pictures, what was drawn in every segment, its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from scalekv.cache import CacheReport, KVCache
from scalekv.errors import BudgetError
from scalekv.evaluation.jobs import Cell
from scalekv.evaluation.store import Record
from scalekv.planning import CacheGeometry, CachePlan, Profile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image


class Plans:
    """Plans of all methods, each made once; a budget that cannot be met is remembered too.

    Args:
        cells: all methods and budgets of the run. All are planned before the first picture is drawn, so that a method
            that cannot work at all is refused at once.
        profile: calibration of the model.
    """

    def __init__(self, cells: Sequence[Cell], profile: Profile | None) -> None:
        self._cells, self._profile = cells, profile
        self._known: dict[tuple[Cell, CacheGeometry], CachePlan | BudgetError] = {}

    def of(self, cell: Cell, geometry: CacheGeometry) -> CachePlan:
        """The plan of a method for a batch.

        Raises:
            BudgetError: it cannot meet its budget.
            ProfileError: it needs another profile.
        """
        for one in (*self._cells, cell):
            if (one, geometry) not in self._known:
                self._known[one, geometry] = self._plan(one, geometry)
        found = self._known[cell, geometry]
        if isinstance(found, BudgetError):
            raise found
        return found

    def _plan(self, cell: Cell, geometry: CacheGeometry) -> CachePlan | BudgetError:
        adapted = None if self._profile is None else self._profile.adapted_to(geometry.schedule)
        try:
            return cell.policy.plan(geometry, adapted)
        except BudgetError as error:
            return error


class Opener:
    """Opens the cache of one batch and remembers its plan."""

    def __init__(self, plans: Plans, cell: Cell) -> None:
        self._plans, self._cell = plans, cell
        self.plan: CachePlan | None = None

    def __call__(self, geometry: CacheGeometry, *, dtype: torch.dtype, device: torch.device) -> KVCache:
        """A fresh cache; see `CacheFactory`."""
        self.plan = self._plans.of(self._cell, geometry)
        return KVCache(self.plan, self._cell.policy, dtype=dtype, device=device)


@dataclass(frozen=True)
class Picture:
    """One drawn picture, and per segment its bits or tokens."""

    image: Image
    drawn: list[NDArray[np.integer]]


@dataclass(frozen=True)
class Batch:
    """What one method drew for one unit."""

    pictures: list[Picture]
    plan: CachePlan
    report: CacheReport

    def figures(self) -> Record:
        """Planned and measured figures of the whole batch."""
        plan, report = self.plan, self.report
        return {
            "batch": plan.geometry.batch,
            "schedule": plan.geometry.schedule.key,
            "lossless_bytes": report.lossless_bytes,
            "limit_bytes": report.limit_bytes,
            "nominal_bytes": report.nominal_bytes,
            "kept_bytes": report.kept_bytes,
            "peak_bytes": report.peak_bytes,
            "measured_peak_bytes": report.measured_peak_bytes,
            "tokens": plan.mean_tokens,
            "attention_flops": plan.attention_flops,
            "codec": report.codec,
            "coded_from": report.coded_from,
            "segment_bytes": list(report.segment_bytes),
            "tokens_per_layer": list(report.tokens_per_layer),
            "seconds": report.seconds,
        }


def draw(
    pipeline: Any, texts: Sequence[str], seeds: Sequence[int], cell: Cell, plans: Plans, generation: dict[str, Any]
) -> Batch:
    """Draw a batch.

    Args:
        pipeline: an `InfinityPipeline` or a `VARPipeline`.
        texts: prompts or classes.
        seeds: one per text; each picture is what it is alone.
        cell: the method and its budget.
        plans: of the run.
        generation: further arguments of the pipeline.

    Raises:
        BudgetError: the method cannot meet its budget.
    """
    opener = Opener(plans, cell)
    generators = [torch.Generator(device="cpu").manual_seed(seed) for seed in seeds]
    output = pipeline(list(texts), generator=generators, kv_cache=opener, **generation)
    assert opener.plan is not None
    drawn = [segment.cpu().numpy() for segment in output.drawn]
    pictures = [Picture(image, [segment[row] for segment in drawn]) for row, image in enumerate(output.images)]
    return Batch(pictures, opener.plan, output.cache)
