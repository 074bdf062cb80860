"""From results to a table: means over prompts with bootstrap intervals, differences between methods. Needs no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scalekv.evaluation.intervals import Interval, bootstrap, stratified
from scalekv.evaluation.jobs import FULL
from scalekv.planning import Budget

Record = Mapping[str, Any]

PSNR_CAP = 100.0
"""Decibels that identical pictures count in a mean, and the most that any picture does [ours]; papers do not say."""

_FIGURES = (
    "lossless_bytes",
    "limit_bytes",
    "nominal_bytes",
    "kept_bytes",
    "peak_bytes",
    "measured_peak_bytes",
    "tokens",
    "attention_flops",
    "seconds",
)
"""Means of these are of the pictures in full batches, so that one short batch at the end changes no byte."""


@dataclass(frozen=True)
class Row:
    """One method at one budget.

    Args:
        label: the method as it was asked for, with its settings.
        policy: its name.
        budget: as text.
        pictures: how many results it is the mean of.
        metrics: means over prompts by name: ``psnr`` (identical pictures count `PSNR_CAP`), ``mse``, ``ssim``,
            ``ms_ssim``, ``lpips``, ``identical`` (share), ``agreement`` (mean over segments) and scorers of one's own.
        following: share of right pictures per category.
        following_overall: mean of the categories, as GenEval has it.
        figures: bytes, tokens, attention FLOPs and seconds of one full batch of pictures.
        fid: against the pictures of the full cache, if it was measured.
        infeasible: why there are no results, if there are none.
    """

    label: str
    policy: str
    budget: str
    pictures: int
    metrics: dict[str, Interval] = field(default_factory=dict)
    following: dict[str, Interval] = field(default_factory=dict)
    following_overall: Interval | None = None
    figures: dict[str, float] = field(default_factory=dict)
    fid: float | None = None
    infeasible: str | None = None

    @property
    def identical(self) -> bool:
        """Whether every picture equals that of the full cache, byte for byte."""
        return "identical" in self.metrics and self.metrics["identical"].mean == 1

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def decibels(record: Record) -> float:
    """The PSNR of a result as it counts in means: at most `PSNR_CAP`, which identical pictures have."""
    return PSNR_CAP if record["identical"] else min(float(record["psnr"]), PSNR_CAP)


def values_of(record: Record) -> dict[str, float]:
    """Every number of one result that is averaged over prompts, by name."""
    if "infeasible" in record:
        return {}
    values = {name: float(record[name]) for name in ("mse", "ssim", "ms_ssim", "lpips", "identical") if name in record}
    values["psnr"] = decibels(record)
    values["agreement"] = sum(record["agreement"]) / len(record["agreement"])
    return {**values, **record.get("scores", {})}


def summarize(records: Iterable[Record], fids: Mapping[str, float] | None = None) -> list[Row]:
    """A row for every method and budget: the full cache first, then methods by name, budgets from the largest.

    Args:
        records: results of one run, as `RunFolder.records` gives them.
        fids: of methods and budgets, as `RunFolder.fids` gives them.
    """
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record["label"], record["budget"]].append(record)
    ordered = sorted(groups.items(), key=lambda item: _row_order(*item[0]))
    return [_row(group, (fids or {}).get(f"{label}/{budget}")) for (label, budget), group in ordered]


def _row_order(label: str, budget: str) -> tuple[bool, str, str, float]:
    parsed = Budget.parse(budget)
    kind = "share" if parsed.fraction else "tokens" if parsed.tokens else "bytes"
    return label != FULL.spec.label, label, kind, -(parsed.fraction or parsed.tokens or parsed.nbytes or 0)


def _row(records: Sequence[Record], fid: float | None) -> Row:
    first, done = records[0], [record for record in records if "infeasible" not in record]
    named = (first["label"], first["policy"], first["budget"], len(done))
    if not done:
        return Row(*named, infeasible=str(first["infeasible"]))
    categories = _right(done)
    return Row(
        *named,
        metrics={name: bootstrap(list(values.values())) for name, values in _by_prompt(done).items()},
        following={name: bootstrap(values) for name, values in categories.items()},
        following_overall=stratified(categories) if categories else None,
        figures=_figures(done),
        fid=fid,
    )


def _figures(records: Sequence[Record]) -> dict[str, float]:
    largest = max(record["batch"] for record in records)
    whole = [record for record in records if record["batch"] == largest]
    return {name: sum(record[name] for record in whole) / len(whole) for name in _FIGURES if name in whole[0]}


def _by_prompt(records: Iterable[Record]) -> dict[str, dict[int, float]]:
    """Per metric the mean over seeds of every prompt."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        for name, value in values_of(record).items():
            found[name][record["prompt_index"]].append(value)
    return {
        name: {prompt: sum(values) / len(values) for prompt, values in prompts.items()}
        for name, prompts in found.items()
    }


def _right(records: Iterable[Record]) -> dict[str, list[float]]:
    """Per category the share of right pictures of every prompt."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if "following" in record:
            judged = record["following"]
            found[judged["category"]][record["prompt_index"]].append(float(judged["right"]))
    return {category: [sum(values) / len(values) for values in prompts.values()] for category, prompts in found.items()}


@dataclass(frozen=True)
class Difference:
    """How two methods differ at one budget, over the prompts and seeds that both have.

    Args:
        label: the first.
        other: the second.
        budget: of both.
        metric: name of the number.
        interval: of first minus second; it excludes 0 where the difference is more than chance.
    """

    label: str
    other: str
    budget: str
    metric: str
    interval: Interval


def differences(records: Iterable[Record], metric: str = "psnr") -> list[Difference]:
    """Paired differences between all methods at every budget, each pair once.

    Args:
        records: results of one run.
        metric: a name of `values_of`.
    """
    found: dict[str, dict[str, dict[tuple[int, int], float]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        values = values_of(record)
        if metric in values and record["label"] != FULL.spec.label:
            place = (record["prompt_index"], record["seed"])
            found[record["budget"]][record["label"]][place] = values[metric]
    return [
        Difference(label, other, budget, metric, _paired(methods[label], methods[other]))
        for budget, methods in found.items()
        for label in sorted(methods)
        for other in sorted(methods)
        if label < other and methods[label].keys() & methods[other].keys()
    ]


def _paired(first: Mapping[tuple[int, int], float], second: Mapping[tuple[int, int], float]) -> Interval:
    prompts: dict[int, list[float]] = defaultdict(list)
    for place in sorted(first.keys() & second.keys()):
        prompts[place[0]].append(first[place] - second[place])
    return bootstrap([sum(values) / len(values) for values in prompts.values()])
