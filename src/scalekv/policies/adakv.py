"""AdaKV: heads of a layer share one pool, those with spread attention take more of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from scalekv.planning import CacheGeometry, HeadGroup, Profile
from scalekv.planning.curves import head_quotas
from scalekv.policies.calibrated import warn_without_profile
from scalekv.policies.checks import check_share, check_whole
from scalekv.policies.layers import Layers, over_segments, quota_groups, uniform
from scalekv.policies.snapkv import SnapKV


@dataclass(frozen=True)
class AdaKV(SnapKV):
    """The best tokens over all heads of a layer, by SnapKV's scores, after every head got some of its own.

    Source: Feng et al., "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM
    Inference", arXiv 2407.11550: with a mean quota of ``B`` tokens, ``floor(alpha * B)`` are every head's own, and the
    pool of ``heads * B`` is filled with the best of all heads.

    Published setting: ``AdaKV(alpha=0.2)``. Published AdaKV counts the heads' tokens on every prompt; here memory is
    planned before the prompt is known, so the mean sorted scores of calibration (32 evenly spaced queries) count them
    once per segment, and every head keeps as many of its own best [ours]. A window that is kept is set aside before.
    Heads that hold equally many tokens are stored together. Layers are equal.

    Args:
        budget: see :class:`Policy`.
        strict: see :class:`Policy`.
        timing: see :class:`Policy`.
        queries: see :class:`SnapKV`.
        pooling: see :class:`SnapKV`.
        pool_width: see :class:`SnapKV`.
        keep_window: see :class:`SnapKV`.
        alpha: share of the mean quota that is every head's own, 0 to 1; 1 gives every head the same, as SnapKV does.
        groups: most lengths in one layer, at least 1; each is one more call of attention. Where there would be more,
            heads of like quotas get their mean, rounded down [ours].

    Raises:
        InvalidInput: see :class:`SnapKV`, a share outside [0, 1], or no groups.
    """

    alpha: float = 0.2
    groups: int = 4

    name: ClassVar[str] = "adakv"
    source: ClassVar[str] = "AdaKV, arXiv 2407.11550"
    summary: ClassVar[str] = "SnapKV's scores; heads with spread attention keep more than others"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("alpha", self.alpha)
        check_whole("groups", self.groups, least=1)

    def allocate(self, geometry: CacheGeometry, slots: int, profile: Profile | None) -> Layers:
        """Capacities by head and segment; without a profile all heads are equal, and a warning says so.

        Raises:
            ProfileError: the profile has no curves ``"snapkv"``.
        """
        quota = slots // (geometry.layers * geometry.heads)
        if quota >= geometry.schedule.history_tokens:
            return uniform(geometry, slots)
        if profile is None:
            warn_without_profile("AdaKV", "every head gets the same capacity")
            return uniform(geometry, slots)
        curves = profile.curve_table("snapkv")
        return tuple(
            self._head_groups(geometry, quota, [segment[layer] for segment in curves])
            for layer in range(geometry.layers)
        )

    def _head_groups(
        self, geometry: CacheGeometry, quota: int, curves: Sequence[Sequence[Sequence[float]]]
    ) -> tuple[HeadGroup, ...]:
        """The head groups of one layer from its curves, ``[segment][head][point]``."""
        schedule, heads = geometry.schedule, geometry.heads

        def divide(segment: int, available: Sequence[int]) -> list[int]:
            window = self.set_aside(schedule[segment - 1], quota)
            rest, pool = [tokens - window for tokens in available], heads * (quota - window)
            shares = head_quotas(curves[segment - 1], schedule.start(segment), pool, self.alpha, rest)
            return [window + share for share in shares]

        return quota_groups(over_segments(schedule, heads, divide), self.groups)
