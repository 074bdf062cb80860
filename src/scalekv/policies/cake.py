"""CAKE: layers whose attention is spread and moves keep more tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from scalekv.planning import CacheGeometry, Profile
from scalekv.policies.base import SelectionView
from scalekv.policies.calibrated import warn_without_profile
from scalekv.policies.checks import check_range
from scalekv.policies.layers import Layers, dense, over_segments
from scalekv.policies.sharing import whole_shares
from scalekv.policies.snapkv import SnapKV

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class CAKE(SnapKV):
    """Quotas by layer from the entropy and the variance of a window's attention; tokens by its mean and variance.

    Source: Qin et al., "CAKE: Cascading and Adaptive KV Cache Eviction with Layer Preferences", arXiv 2503.12491
    (ICLR 2025): a layer's preference is ``entropy^(1/tau1) * variance^(1/tau2)``, a token's score its mean attention
    plus ``gamma`` times the variance over the window's queries, in an average pool of 5; the window is kept.

    Published settings: ``gamma=200``; ``tau1`` and ``tau2`` tuned per model and budget, 0.4 to 2.3. Published CAKE
    measures preferences on every prompt and trims earlier layers again as it goes on. Here they are means of
    calibration (32 evenly spaced queries, whatever ``queries`` is), those of a segment divide what the next one reads,
    and a layer's rest goes to the others in proportion, so that nothing is trimmed twice [ours]. The variance is that
    of a population.

    Args:
        budget: see :class:`Policy`.
        strict: see :class:`Policy`.
        timing: see :class:`Policy`.
        queries: see :class:`SnapKV`.
        pooling: see :class:`SnapKV`.
        pool_width: see :class:`SnapKV`.
        keep_window: see :class:`SnapKV`.
        tau1: temperature of the entropy, 0.01 to 100; default 1 (unknown).
        tau2: temperature of the variance, 0.01 to 100; default 1 (unknown).
        gamma: weight of the variance in a token's score, 0 to 1e6.

    Raises:
        InvalidInput: see :class:`SnapKV`, or a number out of range.
    """

    tau1: float = 1.0
    tau2: float = 1.0
    gamma: float = 200.0

    name: ClassVar[str] = "cake"
    source: ClassVar[str] = "CAKE, arXiv 2503.12491 (ICLR 2025)"
    summary: ClassVar[str] = "layers with spread, moving attention keep more; its mean and variance score"
    scoring_bytes: ClassVar[int] = 12

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("tau1", self.tau1, 0.01, 100)
        check_range("tau2", self.tau2, 0.01, 100)
        check_range("gamma", self.gamma, 0, 1e6)

    def allocate(self, geometry: CacheGeometry, slots: int, profile: Profile | None) -> Layers:
        """Capacities by layer and segment; without a profile all layers are equal, and a warning says so.

        Raises:
            ProfileError: the profile has no table ``"window_entropy"`` or ``"window_variance"``.
        """
        pool, schedule, layers = slots // geometry.heads, geometry.schedule, geometry.layers
        weights = [[1.0] * layers for _ in schedule]
        if pool < layers * schedule.history_tokens:
            if profile is None:
                warn_without_profile("CAKE", "every layer gets the same capacity")
            else:
                tables = profile.layer_table("window_entropy"), profile.layer_table("window_variance")
                weights = [preferences(*rows, self.tau1, self.tau2) for rows in zip(*tables, strict=True)]

        def divide(segment: int, available: Sequence[int]) -> list[int]:
            window = self.set_aside(schedule[segment - 1], pool / layers)
            rest = [tokens - window for tokens in available]
            shares = whole_shares([1] * layers, weights[segment - 1], rest, pool - layers * window)
            return [window + share for share in shares]

        return dense(geometry, over_segments(schedule, layers, divide))

    def importance(self, view: SelectionView) -> Tensor:
        """Mean attention plus ``gamma`` times its variance over the observed queries: ``(rows, heads, tokens)``."""
        import torch

        from scalekv.policies.scoring import window_weights

        assert view.window is not None
        total = torch.zeros(view.key.shape[:3], dtype=torch.float32, device=view.key.device)
        squares = torch.zeros_like(total)
        for weights in window_weights(view):
            total += weights.sum(-2)
            squares += weights.square_().sum(-2)
        mean = total.div_(len(view.window))
        variance = squares.div_(len(view.window)).addcmul_(mean, mean, value=-1).clamp_(min=0)
        return mean.add_(variance, alpha=self.gamma)


def preferences(entropy: Sequence[float], variance: Sequence[float], tau1: float, tau2: float) -> list[float]:
    """``entropy^(1/tau1) * variance^(1/tau2)`` by layer, over the largest; all 1 where nothing was measured.

    Nothing is measured at the first segment, all of whose tokens are in the window.
    """
    logs = [
        math.log(spread) / tau1 + math.log(moves) / tau2 if spread > 0 and moves > 0 else -math.inf
        for spread, moves in zip(entropy, variance, strict=True)
    ]
    largest = max(logs)
    return [math.exp(value - largest) if largest > -math.inf else 1.0 for value in logs]
