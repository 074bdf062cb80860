"""ScaleKV: a large cache for drafters, a small one for refiners, decided per segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from scalekv.errors import ProfileError
from scalekv.planning import CacheGeometry, Profile, Segment
from scalekv.policies.base import SelectionView
from scalekv.policies.calibrated import warn_without_profile
from scalekv.policies.checks import check_choice, check_flag, check_odd, check_share, check_whole
from scalekv.policies.layers import Layers, dense, over_segments
from scalekv.policies.observation import ObservingPolicy, patch_centers
from scalekv.policies.roles import PoolSplit, choose_drafters

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ScaleKV(ObservingPolicy):
    """Layers that spread attention over earlier scales (drafters) keep much, the others (refiners) share the rest.

    Source: Li et al., "Memory-Efficient Visual Autoregressive Modeling with Scale-Aware KV Cache Compression",
    arXiv 2505.19602 (NeurIPS 2025): roles from the Attention Selectivity Index (eq. 2, 3), tokens by the attention of
    16 patch centres, which are always kept themselves (eq. 5). How the pool is divided at each segment is inferred from
    the released capacities, and generalised to any schedule, roles and budget [ours].

    Published setting: ``ScaleKV(budget="650 tokens", exact_division=True)``, for 8B with ``refiner_floor=200``.

    Args:
        budget: see :class:`Policy`; the paper's 10 % is ``"650 tokens"`` at 1M pixels, 1:1.
        strict: see :class:`Policy`.
        timing: see :class:`Policy`; the paper drops after attention.
        queries: see :class:`Observation`; ``"centers"`` (paper) protects its queries from being dropped. Others are
            [ours], are named in every report, and protect nothing; on the built-in model they keep pictures closer.
        scorer: ``"attention"`` sums the softmax attention of the window (eq. 5); ``"projection"`` is what the released
            code computes instead: logits of bare query projections over sqrt(head_dim), without softmax.
        pooling: ``"average"`` (paper), ``"max"`` (released code) or ``"none"`` [ours] along the kept sequence.
        pool_width: odd width of the pool; 5 in the released code, the paper gives none.
        centered: patch centres that suit sides which are no multiple of 8 [ours].
        refiner_floor: least tokens of a refiner where drafters would take all; 200 reproduces 8B.
        exact_division: only capacities that use the pool to the last token, as published; they hold between
            segments, and inside one the layers together may hold more. Else drafters are lossless where they can be,
            left-over tokens go to refiners in layer order, and the pool holds at every moment [ours].
        drafter_share: share of the trimmed (layer, segment) pairs that become drafters when the profile carries no
            published roles; 1/15 is the published mean (24 of 360 pairs).

    Raises:
        InvalidInput: an unknown scorer or pooling, an even pool width, a negative floor or a share outside [0, 1].
    """

    queries: str = "centers"
    scorer: Literal["attention", "projection"] = "attention"
    pooling: Literal["average", "max", "none"] = "average"
    pool_width: int = 5
    centered: bool = False
    refiner_floor: int = 0
    exact_division: bool = False
    drafter_share: float = 1 / 15

    name: ClassVar[str] = "scalekv"
    source: ClassVar[str] = "ScaleKV, arXiv 2505.19602 (NeurIPS 2025)"
    summary: ClassVar[str] = "drafter layers keep much, refiner layers little; attention of patch centres scores"
    scoring_bytes: ClassVar[int] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("scorer", self.scorer, ("attention", "projection"))
        check_choice("pooling", self.pooling, ("average", "max", "none"))
        check_odd("pool_width", self.pool_width)
        check_whole("refiner_floor", self.refiner_floor, least=0)
        check_flag("centered", self.centered)
        check_flag("exact_division", self.exact_division)
        check_share("drafter_share", self.drafter_share)

    def allocate(self, geometry: CacheGeometry, slots: int, profile: Profile | None) -> Layers:
        """Capacities per layer and segment; without a profile all layers are equal, and a warning says so."""
        pool = slots // geometry.heads
        drafters = self.drafters(geometry, pool, profile)
        schedule, layers = geometry.schedule, geometry.layers

        def divide(index: int, available: Sequence[int]) -> list[int]:
            window = len(self.observation(schedule[index - 1])) if self.queries == "centers" else 0
            split = PoolSplit(pool, max(self.refiner_floor, window), self.exact_division)
            return split(available, drafters.get(index, ()))

        return dense(geometry, over_segments(schedule, layers, divide))

    def drafters(self, geometry: CacheGeometry, pool: int, profile: Profile | None) -> dict[int, tuple[int, ...]]:
        """Drafter layers by segment: the profile's published roles, else chosen from its ASI table."""
        schedule = geometry.schedule
        trimmed = [k for k in range(1, len(schedule)) if schedule.start(k) * geometry.layers > pool]
        if not trimmed:
            return {}
        if profile is None:
            warn_without_profile("ScaleKV", "every layer gets the same capacity")
            return {}
        if profile.roles is not None:
            return dict(profile.roles)
        if "asi" not in profile.statistics:
            raise ProfileError(f"The profile for {profile.model} has neither roles nor an ASI table; calibrate again.")
        return choose_drafters(profile.statistics["asi"], trimmed, self.drafter_share)

    def observation(self, segment: Segment) -> tuple[int, ...]:
        """The positions that ``queries`` picks, by default the centres of 4 x 4 patches."""
        return patch_centers(segment, self.centered) if self.queries == "centers" else super().observation(segment)

    @property
    def bounded(self) -> bool:
        """Published capacities stay as they are, unless the budget is strict."""
        return self.strict or not self.exact_division

    @property
    def projected_observation(self) -> bool:
        """The compatibility scorer works on bare projections."""
        return self.scorer == "projection"

    def score(self, view: SelectionView) -> Tensor:
        """Attention the window pays to each candidate, pooled; a window that fits the capacity is never dropped.

        The paper requires capacities of at least the window. Below that the window competes like all others [ours],
        where keeping a part of it would leave no room for any history.
        """
        from scalekv.policies.scoring import pooled, window_attention, window_projection

        assert view.window is not None
        protects = self.queries == "centers" and view.capacity >= len(view.window)
        if self.scorer == "attention":
            score = window_attention(view)
        else:
            score = window_projection(view).div_(view.key.shape[-1] ** 0.5)
            if protects:
                score.index_fill_(-1, view.window, -float("inf"))
        score = pooled(score, self.pooling, self.pool_width)
        return score.index_fill_(-1, view.window, float("inf")) if protects else score
