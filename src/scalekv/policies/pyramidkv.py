"""PyramidKV: SnapKV's scores, and quotas that fall with depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from scalekv.planning import CacheGeometry, Profile
from scalekv.policies.checks import check_range
from scalekv.policies.layers import Layers, dense, over_segments
from scalekv.policies.sharing import whole_shares
from scalekv.policies.snapkv import SnapKV


@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """Early layers keep many tokens and late layers few, in equal steps; tokens by SnapKV's scores.

    Source: Cai et al., "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling",
    arXiv 2406.02069. With ``p`` the mean quota beside the window of observed queries, the last layer gets ``p / beta``
    and the first ``2p - p / beta``, or less if there are not so many tokens.

    Published setting: ``PyramidKV(beta=20)``. Applied once, to the longest history, for quotas that hold at all
    segments; where a layer has fewer tokens, the others get its rest in proportion to their quotas. A mean quota that
    does not exceed the window counts without it. Rounding by largest remainder [all ours].

    Args:
        budget: see :class:`Policy`.
        strict: see :class:`Policy`.
        timing: see :class:`Policy`.
        queries: see :class:`SnapKV`.
        pooling: see :class:`SnapKV`.
        pool_width: see :class:`SnapKV`.
        keep_window: see :class:`SnapKV`.
        beta: steepness, 1 to 1000; 1 gives every layer the same, as SnapKV does.

    Raises:
        InvalidInput: see :class:`SnapKV`, or ``beta`` out of range.
    """

    beta: float = 20.0

    name: ClassVar[str] = "pyramidkv"
    source: ClassVar[str] = "PyramidKV, arXiv 2406.02069"
    summary: ClassVar[str] = "SnapKV's scores; early layers keep more than late ones"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("beta", self.beta, 1, 1000)

    def allocate(self, geometry: CacheGeometry, slots: int, profile: Profile | None) -> Layers:
        """Capacities by layer; needs no profile."""
        pool, schedule, layers = slots // geometry.heads, geometry.schedule, geometry.layers
        window = self.set_aside(schedule[max(len(schedule) - 2, 0)], pool / layers)
        quotas = pyramid(layers, pool, schedule.history_tokens, window, self.beta)

        def divide(_: int, available: Sequence[int]) -> list[int]:
            return whole_shares([1] * layers, quotas, available, pool)

        return dense(geometry, over_segments(schedule, layers, divide))


def pyramid(layers: int, pool: int, most: int, window: int, beta: float) -> list[int]:
    """Quotas by layer, falling linearly, together ``pool``.

    Args:
        layers: number of layers.
        pool: tokens per head of all layers together, at most ``layers * most``.
        most: tokens that a layer can hold at most.
        window: tokens that every layer gets beforehand, at most ``pool / layers``.
        beta: mean quota beside the window over the last layer's.
    """
    mean = pool / layers - window
    first = min(2 * mean - mean / beta, most - window)
    step = 2 * (first - mean) / max(layers - 1, 1)
    slope = [first - layer * step for layer in range(layers)]
    shares = whole_shares([1] * layers, slope, [most - window] * layers, pool - layers * window)
    return [window + share for share in shares]
