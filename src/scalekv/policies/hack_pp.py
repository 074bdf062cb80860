"""HACK++: one budget for what is attended, one for what is kept; the latter by how much later segments rely on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar

from scalekv.errors import InvalidInput
from scalekv.planning import CacheGeometry, HeadGroup, Profile
from scalekv.planning.reliance import future_reliance
from scalekv.policies.base import SelectionView
from scalekv.policies.calibrated import warn_without_profile
from scalekv.policies.checks import check_after, check_odd, check_range, check_share, check_whole
from scalekv.policies.classes import CONTEXTUAL, HeadClass, classified, grouped, unclassified
from scalekv.policies.layers import Layers, bounded, over_segments, uniform
from scalekv.policies.observation import ObservingPolicy
from scalekv.policies.sharing import whole_shares

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class HackPP(ObservingPolicy):
    """Attends to the best tokens of history and current segment, then keeps the best of them by the same score.

    Source: HACK++, arXiv 2606.08302 (2026). Heads are classed as in :class:`Hack`. Contextual heads score by the
    max-pooled attention of 32 evenly spaced queries, structural ones without queries by calibrated attention to a
    token of its source segment times the norm of its value. After segment k a class of a layer keeps tokens in
    proportion to ``gamma ** tau``, gamma being the attention that later segments pay to a token of history.

    Inferred: the width of the pool, ties (by the unpooled score, then the older token) and whole budgets (see
    :func:`whole_shares`). Inside a segment the pool holds too [ours]. A budget of everything also attends to
    everything [ours]. Without a profile all heads are contextual and share evenly [ours].

    Published settings: attention 30 % and cache 10 % or 1 % at 1M pixels, of all tokens, the last segment included:
    ``HackPP(budget="1052 tokens")`` and ``HackPP(budget="105 tokens")``; 50/30 and 30/20 for class-to-image models.

    Args:
        budget: of the cache, see :class:`Policy`.
        strict: see :class:`Policy`.
        timing: ``"after"``; what is attended is bounded by ``attention_share`` instead.
        queries: see :class:`Observation`; of contextual heads.
        alpha: share of contextual heads; 0.25 [inferred], printed are 0.15 to 0.35 by model.
        tau: sharpness of the division, 0 to 100; 0 divides evenly. 1.0 [inferred], printed are 0.5 to 2.
        attention_share: most tokens that a query attends to, as a share of all tokens; 1 for no limit.
        pool_width: odd width of the max pool; 5 [inferred].
        floor: least tokens of a head, at least 1 [inferred].

    Raises:
        InvalidInput: a share outside [0, 1], an attention share of 0, an even pool, a floor below 1, tau out of range,
            or timing ``"before"``.
    """

    alpha: float = 0.25
    tau: float = 1.0
    attention_share: float = 0.3
    pool_width: int = 5
    floor: int = 1

    name: ClassVar[str] = "hack_pp"
    source: ClassVar[str] = "HACK++, arXiv 2606.08302 (2026)"
    summary: ClassVar[str] = "a budget to attend and one to keep, set by later reliance"
    tracks_origin: ClassVar[bool] = True
    scoring_bytes: ClassVar[int] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_after(self.timing, "HACK++ bounds attention by attention_share")
        check_share("alpha", self.alpha)
        check_share("attention_share", self.attention_share)
        check_odd("pool_width", self.pool_width)
        check_whole("floor", self.floor, least=1)
        check_range("tau", self.tau, 0, 100)
        if self.attention_share == 0:
            raise InvalidInput("attention_share must be more than 0, or nothing is attended to.")

    def allocate(self, geometry: CacheGeometry, slots: int, profile: Profile | None) -> Layers:
        """Capacities per class, layer and segment; without a profile all are equal, and a warning says so."""
        if slots >= geometry.layers * geometry.heads * geometry.schedule.history_tokens:
            return uniform(geometry, slots)
        if profile is None:
            warn_without_profile("HACK++", "all heads score by attention and share evenly")
            classes, weights = unclassified(geometry, CONTEXTUAL), None
        else:
            classes = classified(geometry, profile, self.alpha)
            weights = self._weights(classes, profile)
        layers = bounded(grouped(geometry, classes, self._capacities(geometry, classes, weights, slots)), slots)
        return self._attending(layers, geometry)

    def _weights(self, classes: Sequence[HeadClass], profile: Profile) -> list[list[float]]:
        """``[segment][class]``."""
        return [
            [fmean(gamma[one.layer][head] for head in one.heads) ** self.tau for one in classes]
            for gamma in future_reliance(profile)
        ]

    def _capacities(
        self, geometry: CacheGeometry, classes: Sequence[HeadClass], weights: list[list[float]] | None, slots: int
    ) -> list[list[int]]:
        """``[class][segment]``."""
        sizes = [len(one.heads) for one in classes]

        def divide(segment: int, available: Sequence[int]) -> list[int]:
            wanted = weights[segment - 1] if weights else [1.0] * len(sizes)
            return whole_shares(sizes, wanted, available, slots, self.floor)

        return over_segments(geometry.schedule, len(classes), divide)

    def _attending(self, layers: Layers, geometry: CacheGeometry) -> Layers:
        tokens = geometry.schedule.tokens
        most = max(1, math.floor(self.attention_share * geometry.schedule.total_tokens + 1e-9))

        def attending(group: HeadGroup) -> HeadGroup:
            counts = (min(most, held + arriving) for held, arriving in zip(group.capacity, tokens, strict=True))
            return replace(group, attended=tuple(counts))

        return tuple(tuple(map(attending, groups)) for groups in layers)

    def fewest_slots(self, geometry: CacheGeometry) -> int:
        """``floor`` tokens in every head."""
        return self.floor * geometry.layers * geometry.heads

    def score(self, view: SelectionView) -> Tensor:
        """Rank by pooled attention (contextual heads), or scale prior times value norm (structural ones)."""
        from scalekv.policies.head_scores import pooled_rank, prior_times_norm
        from scalekv.policies.scoring import window_attention

        if view.role == CONTEXTUAL:
            return pooled_rank(window_attention(view), self.pool_width)
        return prior_times_norm(view)
