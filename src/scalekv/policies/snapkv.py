"""SnapKV: keep what a window of queries attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from scalekv.planning import CacheGeometry, Profile, Segment
from scalekv.policies.base import SelectionView
from scalekv.policies.checks import check_choice, check_flag, check_odd
from scalekv.policies.layers import Layers, uniform
from scalekv.policies.observation import Observation, ObservingPolicy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class SnapKV(ObservingPolicy):
    """Score tokens by the attention of some queries, smoothed along the cache; every layer and head keeps as many.

    Source: Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", arXiv 2404.14469 (NeurIPS 2024):
    attention of the prompt's last queries, pooled over neighbours; the window itself is always kept.

    Published settings: 32 or 64 last queries, pool width 5 or 7, average or maximum:
    ``SnapKV(queries="last:32")``. Every segment is a prompt here, and the pool runs over the kept tokens in cache order
    [ours]. The last queries of a picture are its bottom rows, so the default takes evenly spaced ones, as HACK
    (arXiv 2504.09261) does.

    Args:
        budget: see :class:`Policy`.
        strict: see :class:`Policy`.
        timing: see :class:`Policy`.
        queries: see :class:`Observation`; ``"all"`` protects nothing, because it would keep the segment and no history.
        pooling: ``"average"``, ``"max"`` or ``"none"`` along the kept sequence.
        pool_width: odd width of the pool; default 5.
        keep_window: whether the observed tokens are always kept. Where the capacity is smaller than the window, they
            compete like all others [ours].

    Raises:
        InvalidInput: an unknown rule or pooling, or an even pool width.
    """

    pooling: Literal["average", "max", "none"] = "average"
    pool_width: int = 5
    keep_window: bool = True

    name: ClassVar[str] = "snapkv"
    source: ClassVar[str] = "SnapKV, arXiv 2404.14469 (NeurIPS 2024)"
    summary: ClassVar[str] = "keep what 32 evenly spaced queries attend to"
    scoring_bytes: ClassVar[int] = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("pooling", self.pooling, ("average", "max", "none"))
        check_odd("pool_width", self.pool_width)
        check_flag("keep_window", self.keep_window)

    def allocate(self, geometry: CacheGeometry, slots: int, profile: Profile | None) -> Layers:
        """Equal capacities; needs no profile."""
        return uniform(geometry, slots)

    @property
    def protects(self) -> bool:
        """Whether observed tokens are kept where they fit."""
        return self.keep_window and Observation.parse(self.queries).kind != "all"

    def set_aside(self, segment: Segment, quota: float) -> int:
        """Tokens of ``segment`` that methods of unequal quotas give everyone before they divide the rest.

        The observed ones, or 0 where a mean quota of ``quota`` tokens would leave nothing to divide [ours].
        """
        window = len(self.observation(segment)) if self.protects else 0
        return window if window < quota else 0

    def importance(self, view: SelectionView) -> Tensor:
        """Attention that the observed queries pay to each candidate, summed: ``(rows, heads, tokens)`` float32."""
        from scalekv.policies.scoring import window_attention

        return window_attention(view)

    def score(self, view: SelectionView) -> Tensor:
        """:meth:`importance`, pooled; a protected window that fits the capacity goes last."""
        from scalekv.policies.scoring import pooled

        assert view.window is not None
        score = pooled(self.importance(view), self.pooling, self.pool_width)
        if self.protects and view.capacity >= len(view.window):
            score.index_fill_(-1, view.window, float("inf"))
        return score
