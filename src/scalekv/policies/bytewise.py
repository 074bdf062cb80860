"""Bytewise: history is merged to as many tokens as there is room for, in as few bits as hardly matter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from scalekv.errors import InvalidInput
from scalekv.planning import CacheGeometry, Codec, Profile, Segment
from scalekv.planning.worth import UNGUIDED, head_losses, shared_pool
from scalekv.policies.base import SelectionView
from scalekv.policies.calibrated import warn_without_profile
from scalekv.policies.checks import check_choice, check_share, check_whole
from scalekv.policies.layers import Layers, over_segments, quota_groups, uniform
from scalekv.policies.observation import ObservingPolicy

if TYPE_CHECKING:
    from torch import Tensor

_TABLES = ("merging", "sensitivity")
"""Of a profile, what heads are told apart by."""

_FINER = {"int8": 8, "int6": 6}
"""Codecs that history may be held in before the last, and their bits."""


@dataclass(frozen=True)
class Bytewise(ObservingPolicy):
    """Merge like tokens to as many as fit, more of them where errors matter, in few bits once the budget binds.

    Source: ours. Four departures from the published methods, each a setting:

    * Nothing is dropped. Where candidates have no room they join the nearest of evenly spaced ones, near in key and
      value together, and are carried on as their mean, which attention counts as often as it stands for tokens (as in
      token merging, Bolya et al., arXiv 2210.09461, of which this is the variant for keys and values). No query is
      looked at.
    * History stays exact until the budget first binds, then it is rounded to 8 bits while all of it fits in those, then
      to 6, then to ``codec``. What is merged is rounded anew.
    * Heads share one pool by what calibration measured: the error of a head's output if it had kept so many tokens,
      times the Fisher information of the draws about it (:mod:`scalekv.planning.worth`).
    * Heads of a layer that get about as many tokens are stored together.

    Args:
        budget: see :class:`Policy`.
        strict: see :class:`Policy`.
        timing: only ``"after"`` where tokens are merged.
        codec: see :class:`Policy`; default six bits for keys, four for values.
        precision: ``"late"``, exact until the budget first binds, then rounded step by step; ``"bound"``, held in
            ``codec`` from there on; or ``"first"``, in ``codec`` from the first boundary on, unless all of it fits.
        reduction: ``"merge"``; or keep the tokens of the largest score and drop the others: ``"damage"``, the sum over
            queries of ``|a / (1 - a) * (o - v)|^2`` for a token of weight a and value v beside the output o, exactly
            what dropping it alone costs; or ``"attention"``, the weight.
        rounds: how often the centres of groups move to their means before tokens are merged, at least 0.
        reach: how many centres above and below those as high in the picture as itself a token looks at, at least 0.
        queries: those that score, where tokens are dropped; see :class:`Observation`; nothing is protected.
        allocation: ``"sensitivity"``, from a profile with the tables ``"merging"`` and ``"sensitivity"``; without one,
            and with ``"uniform"``, all heads get the same.
        guidance: ``"apart"``, where heads get unequal capacities the conditional and the unconditional rows of a head
            count as two heads; or ``"together"``, they hold the same.
        floor: share of the mean capacity that every head gets in any case, 0 to 1.
        groups: most lengths in one layer, at least 1; each is one more call of attention.

    Raises:
        InvalidInput: an unknown rule, codec or reduction, a number out of range, or merging before attention.
    """

    codec: str = "int6/int4"
    precision: Literal["late", "bound", "first"] = "late"
    reduction: Literal["merge", "damage", "attention"] = "merge"
    rounds: int = 0
    reach: int = 32
    queries: str = "uniform:64"
    allocation: Literal["sensitivity", "uniform"] = "sensitivity"
    guidance: Literal["apart", "together"] = "apart"
    floor: float = 0.25
    groups: int = 2

    name: ClassVar[str] = "bytewise"
    source: ClassVar[str] = "ours"
    summary: ClassVar[str] = "merge like tokens, more where errors matter, in few bits once the budget binds"
    scoring_bytes: ClassVar[int] = 12

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("precision", self.precision, ("late", "bound", "first"))
        check_choice("reduction", self.reduction, ("merge", "damage", "attention"))
        check_choice("allocation", self.allocation, ("sensitivity", "uniform"))
        check_choice("guidance", self.guidance, ("apart", "together"))
        check_share("floor", self.floor)
        check_whole("groups", self.groups, least=1)
        check_whole("rounds", self.rounds, least=0)
        check_whole("reach", self.reach, least=0)
        if self.merges and self.timing == "before":
            raise InvalidInput(
                "bytewise merges tokens after attention only; use timing='after', or reduction='damage' to drop before."
            )

    @property
    def merges(self) -> bool:
        """Whether tokens are merged."""
        return self.reduction == "merge"

    @property
    def finer_codecs(self) -> tuple[str, ...]:
        """Eight bits, then six, as far as ``codec`` is coarser."""
        bits = [half.bits for half in Codec.parse(self.codec).halves]
        if not self.merges or not all(bits) or self.precision != "late":
            return ()
        return tuple(name for name, each in _FINER.items() if 2 * each > sum(bits))

    @property
    def exact_first(self) -> bool:
        """Whether early segments stay exact."""
        return self.precision != "first"

    def observation(self, segment: Segment) -> tuple[int, ...]:
        """No queries where tokens are merged."""
        return () if self.merges else super().observation(segment)

    def shape(self, geometry: CacheGeometry, profile: Profile | None, limit: int) -> CacheGeometry:
        """Conditional and unconditional rows apart, where heads are told apart and not everything fits."""
        if not self.merges or (self.allocation, self.guidance) != ("sensitivity", "apart") or geometry.guidance != 2:
            return geometry
        known = profile is not None and _has(profile, *_TABLES, UNGUIDED)
        return geometry.apart() if known and limit < geometry.lossless_bytes else geometry

    def allocate(self, geometry: CacheGeometry, slots: int, profile: Profile | None) -> Layers:
        """Capacities by head and boundary; without a profile that was calibrated for it equal ones, with a warning."""
        heads = geometry.layers * geometry.heads
        if self.allocation == "uniform" or slots >= heads * geometry.schedule.history_tokens:
            return uniform(geometry, slots)
        if profile is None or not _has(profile, *_TABLES):
            lacks = None if profile is None else profile.model
            warn_without_profile("Bytewise", "every head gets the same capacity", lacks)
            return uniform(geometry, slots)
        least = max(1, math.floor(self.floor * slots / heads))

        def divide(segment: int, available: Sequence[int]) -> Sequence[int]:
            if sum(available) <= slots:
                return available
            return shared_pool(head_losses(profile, segment - 1, geometry.parts), slots, least, available)

        quotas = over_segments(geometry.schedule, heads, divide)
        layers = (quotas[first : first + geometry.heads] for first in range(0, heads, geometry.heads))
        return tuple(quota_groups(layer, self.groups) for layer in layers)

    def assign(self, view: SelectionView) -> Tensor:
        """Groups of like candidates around evenly spaced ones."""
        from scalekv.policies.grouping import candidate_heights, nearest_groups

        assert view.count is not None
        heights = candidate_heights(view.schedule, view.segment, view.tokens - view.segment.tokens)
        return nearest_groups(view.key, view.value, view.count, view.capacity, self.rounds, heights, self.reach)

    def score(self, view: SelectionView) -> Tensor:
        """What the observed outputs lose without each candidate, or the attention they pay to it."""
        from scalekv.policies.scoring import window_attention, window_damage

        return window_damage(view) if self.reduction == "damage" else window_attention(view)


def _has(profile: Profile, *tables: str) -> bool:
    return all(name in profile.head_statistics or name in profile.curves for name in tables)
