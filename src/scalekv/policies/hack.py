"""HACK: few tokens for heads that look at content, more for heads that look at places; dropped before attention."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from scalekv.errors import ProfileError
from scalekv.planning import CacheGeometry, Profile
from scalekv.policies.base import SelectionView
from scalekv.policies.calibrated import warn_without_profile
from scalekv.policies.checks import check_flag, check_share, check_whole
from scalekv.policies.classes import CONTEXTUAL, STRUCTURAL, HeadClass, classified, grouped, unclassified
from scalekv.policies.layers import Layers, uniform
from scalekv.policies.observation import ObservingPolicy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Hack(ObservingPolicy):
    """Two classes of heads with a budget and a rule each, the same in all layers.

    Source: "Head-Aware KV Cache Compression for Efficient Visual Autoregressive Modeling", arXiv 2504.09261
    (AAAI 2026): heads whose attention varies least over queries (sigma of the last segment) are contextual, the others
    structural; contextual heads keep the tokens with most attention of 32 evenly spaced queries, structural ones the
    first and the newest segment and the best of the middle; ``B = alpha B_C + (1 - alpha) B_S`` tokens per head.

    Inferred, since neither code nor supplement is public: ``alpha``, B_C, which segments are first, rounding. Where
    the first and the newest tokens alone exceed B_S, the first stay, then the newest with most attention. Tokens that
    B_S cannot use go to contextual heads. Left out: the merging of dropped into kept tokens at the last segment (0.03
    FID in the paper, for a matrix of similarities).

    Published setting: ``Hack(budget="3156 tokens")`` at 1M pixels, 30 % in the paper, which counts the last segment.

    Args:
        budget: see :class:`Policy`.
        strict: see :class:`Policy`.
        timing: ``"before"`` (paper) bounds attention too; ``"after"`` is a pure memory method [ours].
        queries: see :class:`Observation`; the paper takes 32 evenly spaced ones.
        alpha: share of contextual heads; 0.25 [inferred]. HACK++ prints 0.15 to 0.35, by the knee of the sorted sigmas.
        contextual_share: B_C as a share of all tokens, but at most half of B [inferred].
        init_segments: first segments that structural heads keep; default 2.
        fallback: refuse budgets that the published rule does not cover if ``False``.

    Raises:
        InvalidInput: a share outside [0, 1], a negative count, or ``fallback`` that is no flag.
    """

    timing: Literal["after", "before"] = "before"
    alpha: float = 0.25
    contextual_share: float = 0.1
    init_segments: int = 2
    fallback: bool = True

    name: ClassVar[str] = "hack"
    source: ClassVar[str] = "HACK, arXiv 2504.09261 (AAAI 2026)"
    summary: ClassVar[str] = "few tokens for contextual heads, more for structural ones"
    scoring_bytes: ClassVar[int] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("alpha", self.alpha)
        check_share("contextual_share", self.contextual_share)
        check_whole("init_segments", self.init_segments, least=0)
        check_flag("fallback", self.fallback)

    def allocate(self, geometry: CacheGeometry, slots: int, profile: Profile | None) -> Layers:
        """B_C or B_S for every head, by its class; without a profile all are structural, and a warning says so."""
        schedule = geometry.schedule
        if slots >= geometry.layers * geometry.heads * schedule.history_tokens:
            return uniform(geometry, slots)
        classes = self._classes(geometry, profile)
        budget = self.budgets(geometry, slots, sum(len(one.heads) for one in classes if one.role == CONTEXTUAL))
        starts = [schedule.start(index) for index in range(len(schedule))]
        return grouped(geometry, classes, [[min(budget[one.role], start) for start in starts] for one in classes])

    def _classes(self, geometry: CacheGeometry, profile: Profile | None) -> list[HeadClass]:
        if profile is not None:
            return classified(geometry, profile, self.alpha)
        if not self.fallback:
            raise ProfileError("HACK with fallback=False needs a profile; make one with 'scalekv calibrate'.")
        warn_without_profile("HACK", "every head counts as structural")
        return unclassified(geometry, STRUCTURAL)

    def budgets(self, geometry: CacheGeometry, slots: int, contextual: int) -> dict[str, int]:
        """B_C and B_S by role.

        Args:
            geometry: the shape of the run.
            slots: the pool, at least one for every head.
            contextual: number of contextual heads.
        """
        heads, longest = geometry.layers * geometry.heads, geometry.schedule.history_tokens
        structural = heads - contextual
        small = min(self._contextual_tokens(geometry), math.floor(slots / heads / 2 + 0.5))
        large = min(longest, (slots - contextual * small) // structural) if structural else longest
        if large == longest and contextual:
            small = min(longest, (slots - structural * large) // contextual)
        return {CONTEXTUAL: small, STRUCTURAL: large}

    def _contextual_tokens(self, geometry: CacheGeometry) -> int:
        return max(1, math.floor(self.contextual_share * geometry.schedule.total_tokens + 0.5))

    def fewest_slots(self, geometry: CacheGeometry) -> int:
        """One token per head, or without fallback what lets B_S hold the first and the newest segment throughout."""
        heads = geometry.layers * geometry.heads
        if self.fallback:
            return heads
        contextual = math.floor(self.alpha * heads + 0.5)
        tokens = geometry.schedule.tokens
        newest = tokens[self.init_segments :] if self.timing == "before" else tokens[self.init_segments : -1]
        structural = (heads - contextual) * (sum(tokens[: self.init_segments]) + max(newest, default=0))
        half = (structural + contextual / 2) / (1 - contextual / heads / 2)
        return max(heads, min(structural + contextual * self._contextual_tokens(geometry), math.ceil(half)))

    def score(self, view: SelectionView) -> Tensor:
        """Attention of the observed queries; what a structural head protects is above everything, its middle below."""
        from scalekv.policies.scoring import window_attention

        score = window_attention(view)
        if view.role == CONTEXTUAL:
            return score
        first = sum(view.schedule.tokens[: self.init_segments])
        newest = view.tokens - view.segment.tokens
        if first + view.segment.tokens <= view.capacity:
            score[..., newest:] = float("inf")
        else:
            score[..., first:newest] = -float("inf")
        score[..., :first] = float("inf")
        return score
