"""AMS-KV: whole scales, more of them in layers whose keys change much from scale to scale."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import ClassVar

from scalekv.planning import CacheGeometry, Profile
from scalekv.planning.tables import Table
from scalekv.policies.base import Policy
from scalekv.policies.calibrated import warn_without_profile
from scalekv.policies.checks import check_after, check_share, check_whole
from scalekv.policies.layers import Layers, of_whole_segments, uniform


@dataclass(frozen=True)
class AMSKV(Policy):
    """The first scales and the newest ones that fit; layers of low similarity between scales get room for more.

    Source: AMS-KV (AAAI 2026). Every layer may hold C_min tokens. After each scale it appends the scale and drops the
    oldest ones, never the first two, until it fits; where a layer is full and its keys are less similar than theta to
    those of the scale before, it may hold C_max from then on. A scale that does not fit beside the first two is not
    kept.

    Published settings: C_min is the first two scales and one late one, C_max has one late scale more: 174 and 274
    tokens on ten scales up to 16 x 16, here ``AMSKV(budget="190.67 tokens")`` with 30 layers. Theta and the measure of
    similarity are not printed.

    Ours: memory is planned before the prompt is known, so similarities are those of calibration, and theta is where
    ``expanding_share`` of the layers expand (about 1/6 in the paper's motivating test). C_min is the first two scales
    and the largest run of whole ones that no later scale drives out and with which the expanding layers can hold one
    scale more; what the pool has left is C_max. Without a profile no layer expands and all are equal.

    Args:
        budget: see :class:`Policy`.
        strict: see :class:`Policy`.
        timing: ``"after"``; no token is judged.
        expanding_share: share of the layers that get C_max, 0 to 1; above 0 at least one.
        condensed_scales: first scales that are never dropped, at least 1; default 2.

    Raises:
        InvalidInput: timing ``"before"``, a share outside [0, 1], or ``condensed_scales`` below 1.
    """

    expanding_share: float = 1 / 6
    condensed_scales: int = 2

    name: ClassVar[str] = "ams_kv"
    source: ClassVar[str] = "AMS-KV (AAAI 2026)"
    summary: ClassVar[str] = "first and newest whole scales; more in layers that need them"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_after(self.timing, "AMS-KV drops whole scales, so that no token is judged")
        check_share("expanding_share", self.expanding_share)
        check_whole("condensed_scales", self.condensed_scales, least=1)

    def allocate(self, geometry: CacheGeometry, slots: int, profile: Profile | None) -> Layers:
        """Whole scales per layer and segment; without a profile all layers are equal, and a warning says so."""
        schedule, layers = geometry.schedule, geometry.layers
        if slots >= layers * geometry.heads * schedule.history_tokens:
            return uniform(geometry, slots)
        count = max(1, round(self.expanding_share * layers)) if self.expanding_share else 0
        if profile is None:
            warn_without_profile("AMS-KV", "every layer gets the same capacity")
            count = 0
        small, large = self.capacities(geometry, slots, count)
        weak: dict[int, set[int]] = {}
        if profile is not None and count:
            _, full = _held(schedule.tokens, self.condensed_scales, small, large, ())
            weak = _weak(profile.layer_table("scale_similarity"), full, count)
        heads = range(geometry.heads)
        lists = [
            _held(schedule.tokens, self.condensed_scales, small, large, weak.get(layer, ()))[0]
            for layer in range(layers)
        ]
        return tuple((of_whole_segments(heads, sources, schedule),) for sources in lists)

    def capacities(self, geometry: CacheGeometry, slots: int, expanding: int) -> tuple[int, int]:
        """C_min and C_max in tokens per head.

        Args:
            geometry: the shape of the run.
            slots: the pool, at least the condensed tokens of every head.
            expanding: layers that get C_max; 0 gives all layers an equal share.
        """
        layers, tokens = geometry.layers, geometry.schedule.tokens
        pool = slots // geometry.heads
        if not expanding:
            return pool // layers, pool // layers
        first, last = min(self.condensed_scales, len(tokens) - 1), len(tokens) - 1
        base = small = sum(tokens[:first])
        for start in range(first, last):
            for end in range(start, last):
                run, longer = base + sum(tokens[start : end + 1]), base + sum(tokens[max(first, start - 1) : end + 1])
                fits = (layers - expanding) * run + expanding * longer <= pool
                if (
                    fits
                    and run > small
                    and _held(tokens, first, run, run, ())[0][-1][first:] == (*range(start, end + 1),)
                ):
                    small = run
        return small, (pool - (layers - expanding) * small) // expanding

    def fewest_slots(self, geometry: CacheGeometry) -> int:
        """The condensed scales in every head."""
        return geometry.layers * geometry.heads * sum(geometry.schedule.tokens[: self.condensed_scales])


def _held(
    tokens: Sequence[int], condensed: int, small: int, large: int, weak: Container[int]
) -> tuple[list[tuple[int, ...]], list[int]]:
    """What one layer holds for every segment, and the scales at which it was full before it expanded.

    Args:
        tokens: of every segment.
        condensed: first scales that are never dropped.
        small: C_min.
        large: C_max.
        weak: scales at which similarity is below theta.
    """
    capacity, base = small, sum(tokens[:condensed])
    held: list[int] = []
    sources: list[tuple[int, ...]] = [()]
    full: list[int] = []
    for scale, arriving in enumerate(tokens[:-1]):
        if scale < condensed or base + arriving <= large:
            held.append(scale)
            if sum(tokens[one] for one in held) > capacity == small:
                full.append(scale)
                capacity = large if scale in weak else small
            if scale >= condensed and base + arriving > capacity:
                held.pop()
        while sum(tokens[one] for one in held) > capacity:
            held.pop(condensed)
        sources.append(tuple(held))
    return sources, full


def _weak(similarity: Table, full: Sequence[int], count: int) -> dict[int, set[int]]:
    """By expanding layer the scales at which its similarity is at most theta, with theta so that ``count`` expand."""
    if not full:
        return {}
    lowest = sorted((min(similarity[scale][layer] for scale in full), layer) for layer in range(len(similarity[0])))
    theta = lowest[count - 1][0]
    return {layer: {scale for scale in full if similarity[scale][layer] <= theta} for _, layer in lowest[:count]}
