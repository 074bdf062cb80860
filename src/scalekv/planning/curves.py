"""Sorted scores of a head's tokens, in a few points, and how heads would divide a pool of tokens by them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

_LEAST = 1e-30
"""Scores below count as this, so that they have a logarithm."""


def curve_ranks(tokens: int) -> tuple[int, ...]:
    """Ranks at which a curve over ``tokens`` tokens is sampled: 1, 2, 4, 8, ... and the last."""
    ranks = [1 << power for power in range(tokens.bit_length()) if 1 << power < tokens]
    return (*ranks, tokens)


def resampled(curve: Sequence[float], tokens: int, wanted: int) -> tuple[float, ...]:
    """A curve over ``tokens`` tokens as one over ``wanted`` tokens, of the same sum of scores [ours]."""
    if tokens == wanted:
        return tuple(curve)
    logs, scale = [_log(score) for score in curve], tokens / wanted
    return tuple(scale * math.exp(_between(logs, *place)) for place in _places(tokens, wanted))


@lru_cache(maxsize=1024)
def _places(tokens: int, wanted: int) -> tuple[tuple[int, float], ...]:
    """Where the sampled ranks of ``wanted`` tokens lie in a curve over ``tokens``."""
    return tuple(_place(curve_ranks(tokens), rank * tokens / wanted) for rank in curve_ranks(wanted))


def _place(ranks: Sequence[int], rank: float) -> tuple[int, float]:
    """The sampled rank before ``rank``, by its index, and the share of the way to the next one."""
    after = bisect_left(ranks, rank)
    if after == 0 or after == len(ranks):
        return min(after, len(ranks) - 1), 0.0
    return after - 1, (rank - ranks[after - 1]) / (ranks[after] - ranks[after - 1])


def _between(logs: Sequence[float], index: int, share: float) -> float:
    return logs[index] + share * (logs[index + 1] - logs[index]) if share else logs[index]


def _log(score: float) -> float:
    return math.log(max(score, _LEAST))


def head_quotas(
    curves: Sequence[Sequence[float]],
    tokens: int,
    pool: int,
    floor_share: float,
    available: Sequence[int] | None = None,
) -> list[int]:
    """How many of ``pool`` tokens each head of a layer takes, if the best over all heads are kept (AdaKV).

    Every head first gets ``floor(floor_share * pool / heads)`` of its own best. AdaKV (arXiv 2407.11550) decides this
    anew for every prompt; here the mean curves of calibration decide it once [ours].

    Args:
        curves: ``[head][point]``, one segment and layer of a profile's curves: scores by falling rank, at the ranks of
            :func:`curve_ranks`, log scores linear in the rank between them.
        tokens: candidates per head that the curves were measured with.
        pool: tokens of all heads together.
        floor_share: 0 to 1; 1 gives every head the same.
        available: candidates of each head, at most ``tokens``; default all.

    Returns:
        One count per head, none above ``available``; together ``pool``, or all there is. Tokens left over by rounding
        go one each by largest fraction, ties to the lower head.
    """
    held = [min(tokens, count) for count in (available or [tokens] * len(curves))]
    if pool >= sum(held):
        return held
    floor = math.floor(floor_share * pool / len(curves) + 1e-9)
    shares = [_Share(curve, tokens, min(floor, count), count) for curve, count in zip(curves, held, strict=True)]
    return _whole(_counts(shares, pool), pool)


class _Share:
    """One head's tokens between those it has for certain and all it has, as a falling line of log scores."""

    def __init__(self, curve: Sequence[float], tokens: int, least: int, most: int) -> None:
        ranks, logs = curve_ranks(tokens), [_log(score) for score in curve]
        inside = [knot for knot in zip(ranks, logs, strict=True) if least < knot[0] < most]
        first, last = ((rank, _between(logs, *_place(ranks, rank))) for rank in (least, most))
        self.least, self.knots = least, [first, *inside, last]

    def count(self, level: float, ties: bool) -> float:
        """Tokens whose log score is above ``level``, or also those at it."""
        found = float(self.least)
        for (low, top), (high, bottom) in pairwise(self.knots):
            if bottom > level or (ties and bottom == level):
                found = float(high)
            elif top > level:
                return low + (top - level) / (top - bottom) * (high - low)
            else:
                break
        return found


def _counts(shares: Sequence[_Share], pool: int) -> list[float]:
    """Real counts that add up to ``pool``: the level at which the heads together hold so many, found among knots."""
    levels = sorted({level for share in shares for _, level in share.knots}, reverse=True)
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        if sum(share.count(levels[middle], ties=True) for share in shares) >= pool:
            high = middle
        else:
            low = middle + 1
    more = [share.count(levels[low], ties=True) for share in shares]
    less = [share.count(levels[low], ties=False) for share in shares]
    if sum(less) > pool:  # between two levels, where all counts are straight lines
        more, less = less, [share.count(levels[low - 1], ties=True) for share in shares]
    gap = sum(more) - sum(less)
    part = (pool - sum(less)) / gap if gap else 0.0
    return [few + part * (many - few) for few, many in zip(less, more, strict=True)]


def _whole(counts: Sequence[float], pool: int) -> list[int]:
    found = [math.floor(count + 1e-9) for count in counts]
    order = sorted(range(len(counts)), key=lambda head: (found[head] - counts[head], head))
    for head in order[: pool - sum(found)]:
        found[head] += 1
    return found
