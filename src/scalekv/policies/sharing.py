"""A pool of slots divided over groups of heads in proportion to weights, within bounds. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

_LEAST = 1e-12
"""Weights below this part of the largest count as this part, so that groups of weight 0 can take what others cannot."""

_ROUNDING = 1e-9
"""Shares this near below a whole number are that number."""


def share_by_weight(
    sizes: Sequence[int], weights: Sequence[float], limits: Sequence[int], quota: int, floor: int = 0
) -> list[float]:
    """Real shares per head of groups of heads (HACK++, arXiv 2606.08302, budgets).

    Every group gets its weight times one common factor, cut to ``floor`` below and to its limit above, with the factor
    that spends the quota.

    Args:
        sizes: heads of each group.
        weights: not negative; all 0 counts as all equal.
        limits: most tokens per head of each group.
        quota: slots of all heads together, at least ``floor`` for each.
        floor: least tokens per head, as far as the limit allows.

    Returns:
        One share per group; ``sum(size * share)`` is the quota, or all that the limits allow.
    """
    if sum(size * limit for size, limit in zip(sizes, limits, strict=True)) <= quota:
        return [float(limit) for limit in limits]
    most = max(weights)
    weights = [max(weight / most, _LEAST) if most > 0 else 1.0 for weight in weights]
    raised: dict[int, int] = {}
    while True:
        shares = _capped(sizes, weights, limits, quota, raised)
        least = [min(floor, limit) for limit in limits]
        below = {group: least[group] for group, share in enumerate(shares) if share < least[group]}
        if not below:
            return shares
        # A raised group leaves less for all others, so that what was above its limit before may be below it now.
        raised |= below


def _capped(
    sizes: Sequence[int], weights: Sequence[float], limits: Sequence[int], quota: int, fixed: Mapping[int, int]
) -> list[float]:
    """Proportional shares; groups above their limit are fixed there and the rest is shared anew."""
    settled = dict(fixed)
    while True:
        free = [group for group in range(len(sizes)) if group not in settled]
        left = quota - sum(sizes[group] * share for group, share in settled.items())
        factor = left / sum(sizes[group] * weights[group] for group in free) if free else 0.0
        over = {group: limits[group] for group in free if factor * weights[group] > limits[group]}
        if not over:
            return [float(settled.get(group, factor * weight)) for group, weight in enumerate(weights)]
        settled |= over


def whole_shares(
    sizes: Sequence[int], weights: Sequence[float], limits: Sequence[int], quota: int, floor: int = 0
) -> list[int]:
    """:func:`share_by_weight` in whole tokens [inferred].

    Shares are rounded down; left-over slots go, one token for each head of a group, by the largest fraction (ties to
    the earlier group), to groups that they cover wholly. Never more than the quota in all.
    """
    shares = share_by_weight(sizes, weights, limits, quota, floor)
    counts = [math.floor(share + _ROUNDING) for share in shares]
    left = quota - sum(size * count for size, count in zip(sizes, counts, strict=True))
    for group in sorted(range(len(sizes)), key=lambda group: (counts[group] - shares[group], group)):
        if sizes[group] <= left and counts[group] < limits[group]:
            counts[group] += 1
            left -= sizes[group]
    return counts
