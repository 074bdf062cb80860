"""Who is a drafter, and how drafters and refiners divide the pool of one segment. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

EPSILON = 1e-6


def z_scores(asi: Sequence[float]) -> list[float]:
    """Z-score over the layers of one segment (ScaleKV eq. 3; population deviation, eps 1e-6 [ours])."""
    mean, deviation = fmean(asi), pstdev(asi)
    return [(value - mean) / (deviation + EPSILON) for value in asi]


def choose_drafters(
    asi: Sequence[Sequence[float]], segments: Sequence[int], share: float
) -> dict[int, tuple[int, ...]]:
    """The (layer, segment) pairs with the smallest Z, over all given segments together (arXiv 2505.19602, eq. 3).

    Args:
        asi: ``asi[segment][layer]``, averaged over prompts.
        segments: the segments whose history is trimmed; only these are ranked.
        share: share of the pairs that become drafters; any share above 0 gives at least one.

    Returns:
        Drafter layers, ascending, by segment. Ties go to the earlier segment, then the earlier layer.
    """
    ranked = sorted((z, segment, layer) for segment in segments for layer, z in enumerate(z_scores(asi[segment])))
    count = max(1, round(share * len(ranked))) if share > 0 and ranked else 0
    chosen: dict[int, list[int]] = {}
    for _, segment, layer in ranked[:count]:
        chosen.setdefault(segment, []).append(layer)
    return {segment: tuple(sorted(layers)) for segment, layers in sorted(chosen.items())}


def share_evenly(available: Sequence[int], pool: int) -> list[int]:
    """Divide ``pool`` tokens as evenly as holdings allow; what is left over goes out one each, in order.

    The result never exceeds ``available`` anywhere nor ``pool`` in total.
    """
    level, left = 0, pool
    for rank, tokens in enumerate(sorted(available)):
        step = min(tokens - level, left // (len(available) - rank))
        level, left = level + step, left - step * (len(available) - rank)
        if level < tokens:
            break
    shares = [min(tokens, level) for tokens in available]
    for index, tokens in enumerate(available):
        if left and shares[index] < tokens:
            shares[index] += 1
            left -= 1
    return shares


@dataclass(frozen=True)
class PoolSplit:
    """The pool of one segment boundary divided between drafters and refiners [inferred from released capacities].

    Args:
        pool: tokens that all layers together may hold.
        floor: least tokens of a refiner, as far as an equal share of the pool allows.
        exact_division: as published: one capacity for all drafters, one for all refiners, no token left over.
    """

    pool: int
    floor: int
    exact_division: bool = False

    def __call__(self, available: Sequence[int], drafters: Sequence[int]) -> list[int]:
        """Capacities by layer; never more than ``available`` each nor ``pool`` in total."""
        if sum(available) <= self.pool:
            return list(available)
        refiners = [layer for layer in range(len(available)) if layer not in set(drafters)]
        if not drafters or not refiners:
            return share_evenly(available, self.pool)
        if self.exact_division and (pair := self._exact(available, drafters, refiners)):
            return [pair[0] if layer in drafters else min(pair[1], available[layer]) for layer in range(len(available))]
        floor = min(self.floor, self.pool // len(available))
        least = sum(min(floor, available[layer]) for layer in refiners)
        shares = [0] * len(available)
        large = share_evenly([available[layer] for layer in drafters], self.pool - least)
        small = share_evenly([available[layer] for layer in refiners], self.pool - sum(large))
        for layer, tokens in zip((*drafters, *refiners), (*large, *small), strict=True):
            shares[layer] = tokens
        return shares

    def _exact(
        self, available: Sequence[int], drafters: Sequence[int], refiners: Sequence[int]
    ) -> tuple[int, int] | None:
        """The smallest refiner capacity whose drafter capacity is integral and can be held, as (drafter, refiner)."""
        limit = min(available[layer] for layer in drafters)
        for small in range(self.floor, self.pool // len(available) + 1):
            spent = sum(min(small, available[layer]) for layer in refiners)
            large, rest = divmod(self.pool - spent, len(drafters))
            if rest == 0 and large <= limit:
                return large, small
        return None
