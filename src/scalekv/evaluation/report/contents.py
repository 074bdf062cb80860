"""What a report shows: the results of a run, the plans they were drawn with, and what is missing. Needs no torch."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from scalekv.errors import InvalidInput
from scalekv.evaluation.intervals import Interval
from scalekv.evaluation.jobs import FULL, Cell
from scalekv.evaluation.report.style import Look, looks
from scalekv.evaluation.store import Record, RunFolder
from scalekv.evaluation.summary import Difference, Row, differences, summarize
from scalekv.planning import Budget, CacheGeometry, CachePlan, Profile, Schedule
from scalekv.policies import POLICIES, ScaleKV
from scalekv.policies.specs import PolicySpec

MAPPED_SHARE = 0.1
"""Maps and memory are shown at the budget of the run that is nearest to this share of the lossless cache."""


@dataclass(frozen=True)
class Contents:
    """A run, read.

    Args:
        run: its folder.
        records: all results there are.

    Raises:
        InvalidInput: there are none.
    """

    run: RunFolder
    records: Sequence[Record]

    def __post_init__(self) -> None:
        if not any("infeasible" not in record for record in self.records):
            raise InvalidInput(f"{self.run.path} has no results yet; wait for 'scalekv evaluate' or run it again.")

    @classmethod
    def of(cls, run: RunFolder) -> Contents:
        """Read all results of a run.

        Raises:
            InvalidInput: there are none, or a damaged one.
        """
        return cls(run, run.records())

    @cached_property
    def rows(self) -> list[Row]:
        """Results without the full cache, methods in the order of the registry."""
        rows = [row for row in summarize(self.records, self.run.fids()) if row.label != FULL.spec.label]
        known = list(POLICIES)
        return sorted(rows, key=lambda row: known.index(row.policy) if row.policy in known else len(known))

    @cached_property
    def full(self) -> Row | None:
        """The results of the full cache, if there are any."""
        return next((row for row in summarize(self.records) if row.label == FULL.spec.label), None)

    @cached_property
    def look(self) -> dict[str, Look]:
        """How every method looks."""
        return looks(list(dict.fromkeys(row.label for row in self.rows)))

    @cached_property
    def budgets(self) -> list[str]:
        """Budgets, largest first as far as they can be compared."""
        return list(dict.fromkeys(row.budget for row in self.rows))

    @property
    def labels(self) -> list[str]:
        """Methods, as they were asked for."""
        return list(self.look)

    @cached_property
    def first_results(self) -> dict[tuple[str, str], Record]:
        """One result per method and budget, of a full batch."""
        found: dict[tuple[str, str], Record] = {}
        largest = max(record.get("batch", 0) for record in self.records)
        for record in self.records:
            if record.get("batch") == largest:
                found.setdefault((record["label"], record["budget"]), record)
        return found

    @cached_property
    def by_key(self) -> dict[str, Record]:
        """Results by what identifies them."""
        return {record["key"]: record for record in self.records}

    @cached_property
    def prompts(self) -> set[int]:
        """Indices of the prompts that have any result."""
        return {record["prompt_index"] for record in self.records}

    @property
    def name(self) -> str:
        """Of the model."""
        return str(self.run.info.details.get("model") or "model")

    @property
    def word(self) -> str:
        """What the model draws in every place of a segment."""
        return "tokens" if self.run.info.settings.get("pipeline") == "VARPipeline" else "bits"

    @property
    def batch_words(self) -> str:
        """What figures of bytes are of."""
        batch = next(iter(self.first_results.values()))["batch"]
        return "1 picture" if batch == 1 else f"a batch of {batch} pictures"

    def winners(self) -> Iterator[tuple[Row, Row | None, Interval | None]]:
        """Per budget the method of the highest PSNR, the next one, and how far that is behind, prompt by prompt."""
        for budget in self.budgets:
            rows = [row for row in self.rows if row.budget == budget and "psnr" in row.metrics and not row.identical]
            ranked = sorted(rows, key=lambda row: -row.metrics["psnr"].mean)
            if len(ranked) < 2:
                yield from ((row, None, None) for row in ranked)
                continue
            pair = {row.label for row in ranked[:2]}
            records = [one for one in self.records if one["budget"] == budget and one["label"] in pair]
            found = differences(records)
            yield ranked[0], ranked[1], _lead(found[0], ranked[0].label) if found else None

    @cached_property
    def schedule(self) -> Schedule:
        """The segments of the run."""
        key = next(record["schedule"] for record in self.records if "schedule" in record)
        return Schedule.from_shapes([int(side) for side in shape.split("x")] for shape in key.split("-"))

    @cached_property
    def geometry(self) -> CacheGeometry | None:
        """The cache of a full batch; ``None`` if the run does not say."""
        told = self.run.info.details.get("geometry")
        if not isinstance(told, dict):
            return None
        record = next(iter(self.first_results.values()))
        try:
            one_row = CacheGeometry(**told, schedule=self.schedule, batch=record["batch"], guidance=1)
        except (TypeError, ValueError):
            return None
        return replace(one_row, guidance=round(record["lossless_bytes"] / one_row.lossless_bytes))

    @cached_property
    def profile(self) -> Profile | None:
        """The calibration of the run, as it was measured; ``None`` if there was none."""
        return self.run.profile()

    @cached_property
    def mapped_budget(self) -> str | None:
        """The budget at which maps are shown."""

        def distance(budget: str) -> float:
            assert self.geometry is not None
            share = Budget.parse(budget).bytes_for(self.geometry) / self.geometry.lossless_bytes
            return abs(math.log(max(share, 1e-9) / MAPPED_SHARE))

        return min(self.budgets, key=distance, default=None) if self.geometry is not None else None

    @cached_property
    def plans(self) -> dict[str, CachePlan]:
        """What every method planned at `mapped_budget`; those that did not fit are left out."""
        if self.geometry is None or self.mapped_budget is None:
            return {}
        profile = None if self.profile is None else self.profile.adapted_to(self.schedule)
        plans = {}
        for label in self.labels:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # said when the run was made
                try:
                    plans[label] = self._cell(label).policy.plan(self.geometry, profile)
                except InvalidInput:
                    continue
        return plans

    def _cell(self, label: str) -> Cell:
        assert self.mapped_budget is not None
        return Cell(PolicySpec.parse(label), self.mapped_budget)

    @cached_property
    def drafters(self) -> dict[str, dict[int, tuple[int, ...]]]:
        """Drafter layers by segment, of the methods that choose some."""
        found, profile = {}, None if self.profile is None else self.profile.adapted_to(self.schedule)
        for label, plan in self.plans.items():
            policy = self._cell(label).policy
            if isinstance(policy, ScaleKV) and profile is not None:
                pool = plan.limit_bytes // plan.geometry.layer_token_bytes
                found[label] = policy.drafters(plan.geometry, pool, profile)
        return found

    @property
    def measured(self) -> dict[str, Record]:
        """One result per method at `mapped_budget`."""
        return {label: found for (label, budget), found in self.first_results.items() if budget == self.mapped_budget}

    @cached_property
    def missing(self) -> list[str]:
        """What an unfinished run lacks, a sentence each; nothing for a complete one."""
        counts = Counter((record["label"], record["budget"], record["seed"]) for record in self.records)
        told = [(label, budget, seed) for label, budget, seed in self.run.info.details.get("asked", [])]
        asked = dict.fromkeys([*told, *counts])
        each = len(self.run.info.subjects)
        if all(counts[one] >= each for one in asked):
            return []
        seeds = {seed for _, _, seed in asked}
        of_seeds = f" at {len(seeds)} seeds" if len(seeds) > 1 else ""
        cells = list(dict.fromkeys((label, budget) for label, budget, _ in asked))
        done = [sum(counts[label, budget, seed] for seed in seeds) for label, budget in cells]
        absent = [f"{label} at {budget}" for (label, budget), count in zip(cells, done, strict=True) if not count]
        said = [
            f"The run is not finished: {sum(counts.values())} of {each * len(asked)} results are there ({each} "
            f"prompts{of_seeds})."
        ]
        if absent:
            said.append(f"Nothing yet of {', '.join(absent)}.")
        if len({count for count in done if count}) > 1:
            said.append("Methods have results of different prompts, so their means are not strictly comparable yet.")
        return said

    def agreement(self, label: str, budget: str) -> list[float] | None:
        """Mean share of equal bits or tokens per segment; ``None`` without results."""
        lists = [
            record["agreement"]
            for record in self.records
            if (record["label"], record["budget"]) == (label, budget) and "agreement" in record
        ]
        return [sum(values) / len(values) for values in zip(*lists, strict=True)] if lists else None


def _lead(difference: Difference, label: str) -> Interval:
    """How far ``label``, one of the two, is ahead."""
    one = difference.interval
    return one if difference.label == label else Interval(-one.mean, -one.high, -one.low, one.prompts)
