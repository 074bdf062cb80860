"""How far profiles of one model agree that were measured with other prompts, or with more of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from scalekv.errors import BudgetError
from scalekv.planning import Budget, BudgetLike, CacheGeometry, Profile
from scalekv.planning.merging import check_comparable, pictures_of
from scalekv.planning.reliance import contextual_heads, future_reliance, removal_orders, scas
from scalekv.planning.tables import KINDS
from scalekv.policies import ScaleKV

SINK = 3
"""First segments that HeatKV always keeps."""

CONTEXTUAL_SHARE = 0.25
"""Share of heads that is contextual in an unknown model (HACK)."""


def rank_correlations(one: Profile, other: Profile) -> dict[str, float]:
    """Spearman's rank correlation by table, ties sharing their mean rank.

    Every list of layers (of layers and heads in a head table) that belongs to one segment, to one source of it, or to
    one point of the curves is ranked by itself; the correlations of all lists are averaged. Lists of equal values have
    none and do not count. Beside the tables that both profiles hold there is ``"scas"`` and ``"future_reliance"``.

    Raises:
        ProfileError: the profiles are of different models or schedules.
    """
    check_comparable([one, other])
    found = {}
    for name, lists in _lists(one).items():
        partner = _lists(other).get(name, [])
        values = [value for pair in zip(lists, partner, strict=False) if (value := spearman(*pair)) is not None]
        if values:
            found[name] = float(np.mean(values))
    return found


def _lists(profile: Profile) -> dict[str, list[np.ndarray]]:
    """By name, the flat lists of slots that are ranked."""
    found: dict[str, list[np.ndarray]] = {}
    for kind in KINDS:
        for name, table in getattr(profile, kind).items():
            found[name] = [np.ravel(cell) for cell in _cells(kind, table)]
    if "mass" in profile.source_statistics:
        found["scas"] = [np.ravel(cell) for cell in scas(profile, SINK).values()]
        found["future_reliance"] = [np.ravel(cell) for cell in future_reliance(profile)]
    return found


def _cells(kind: str, table: Sequence[Any]) -> Iterator[Any]:
    for cell in table:
        if kind == "source_statistics":
            yield from cell
        elif kind == "curves":
            yield from np.moveaxis(np.array(cell), -1, 0)
        else:
            yield cell


def spearman(one: np.ndarray, other: np.ndarray) -> float | None:
    """Rank correlation of two lists; ``None`` if one of them holds equal values only."""
    first, second = _ranks(one), _ranks(other)
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[place]
    return ranks


def overlaps(one: Profile, other: Profile, budget: BudgetLike = "10%") -> dict[str, float]:
    """What methods decide by both profiles alike: the part of the larger set that is in both, 1 if both are empty.

    * ``"drafters"``: ScaleKV's (segment, layer) pairs, chosen from the ASI tables at ``budget``;
    * ``"contextual_heads"``: the quarter of all heads with the lowest sigma (HACK);
    * ``"heatkv_heads"``: the heads that attend a source segment most, as large a share of all as ``budget`` is of the
      history, averaged over sources (HeatKV keeps about these).

    A set whose table is missing is left out.

    Args:
        one: a profile.
        other: another.
        budget: a share or mean tokens per head and layer.

    Raises:
        ProfileError: the profiles are of different models or schedules.
        BudgetError: a budget in bytes, which depends on more than a profile tells.
    """
    check_comparable([one, other])
    found: dict[str, float] = {}
    pair = one, other
    if all("asi" in profile.statistics for profile in pair):
        sets = [_pairs(drafters_at(replace(profile, roles=None), budget)) for profile in pair]
        found["drafters"] = _overlap(*sets)
    if all("sigma" in profile.head_statistics for profile in pair):
        found["contextual_heads"] = _overlap(*(contextual_heads(profile, CONTEXTUAL_SHARE) for profile in pair))
    if all("mass" in profile.source_statistics for profile in pair):
        left, right = (_most_attended(profile, budget) for profile in pair)
        if left:
            found["heatkv_heads"] = float(np.mean([_overlap(left[source], right[source]) for source in left]))
    return found


def shared_pictures(one: Profile, other: Profile) -> int:
    """How many prompts both profiles drew with the same seed; 0 if one does not tell its prompts."""
    if not one.details.get("runs") or not other.details.get("runs"):
        return 0
    return len(set(pictures_of(one.details)) & set(pictures_of(other.details)))


def drafters_at(profile: Profile, budget: BudgetLike) -> dict[int, tuple[int, ...]]:
    """Drafter layers by segment that ScaleKV takes from a profile at a budget.

    Raises:
        BudgetError: a budget in bytes.
        ProfileError: neither roles nor an ASI table.
    """
    geometry, slots = _pool(profile, budget)
    return ScaleKV().drafters(geometry, slots // geometry.heads, profile)


def _pool(profile: Profile, budget: BudgetLike) -> tuple[CacheGeometry, int]:
    """A geometry of one channel, and the slots (one token of one head of one layer) of the budget in it."""
    parsed = Budget.parse(budget)
    if parsed.nbytes is not None:
        raise BudgetError(f"A profile tells no bytes, got {parsed}; write a share such as '10%', or '650 tokens'.")
    geometry = CacheGeometry(profile.layers, profile.heads, 1, profile.schedule)
    return geometry, parsed.bytes_for(geometry) // geometry.head_token_bytes


def _most_attended(profile: Profile, budget: BudgetLike) -> dict[int, tuple[int, ...]]:
    """By source segment, as many of the most attended slots as is the budget's share of the history."""
    geometry, pool = _pool(profile, budget)
    slots = geometry.layers * geometry.heads
    kept = max(1, min(slots, round(pool / max(1, geometry.schedule.history_tokens))))
    return {source: order[slots - kept :] for source, order in removal_orders(profile, SINK).items()}


def _pairs(drafters: dict[int, tuple[int, ...]]) -> set[tuple[int, int]]:
    return {(segment, layer) for segment, layers in drafters.items() for layer in layers}


def _overlap(one: Collection[Any], other: Collection[Any]) -> float:
    larger = max(len(one), len(other))
    return len(set(one) & set(other)) / larger if larger else 1.0
