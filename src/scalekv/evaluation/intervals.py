"""Means with bootstrap intervals over prompts. Plain numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 0.95
_BLOCK = 256


@dataclass(frozen=True)
class Interval:
    """A mean and where it lies with 95 % confidence.

    Args:
        mean: over prompts.
        low: 2.5 % point of the resampled means.
        high: 97.5 % point.
        prompts: how many it is the mean of.
    """

    mean: float
    low: float
    high: float
    prompts: int

    def excludes(self, value: float) -> bool:
        """Whether ``value`` lies outside the interval."""
        return not self.low <= value <= self.high


def bootstrap(values: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The mean of one value per prompt, with its percentile interval: prompts are drawn again with replacement.

    Args:
        values: one per prompt, at least one.
        seed: of the resampling; the same values give the same interval.
        resamples: how often.
    """
    return stratified({"": values}, seed=seed, resamples=resamples)


def stratified(groups: Mapping[str, Sequence[float]], *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The mean of the means of several groups, each resampled by itself, as scores over categories are taken.

    Args:
        groups: values by group, at least one each.
        seed: of the resampling.
        resamples: how often.
    """
    random = np.random.default_rng(seed)
    arrays = [np.asarray(values, dtype=np.float64) for values in groups.values()]
    drawn = np.mean([_resampled(array, random, resamples) for array in arrays], axis=0)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    mean = float(np.mean([array.mean() for array in arrays]))
    return Interval(mean, float(low), float(high), sum(map(len, arrays)))


def _resampled(values: NDArray[np.float64], random: np.random.Generator, resamples: int) -> NDArray[np.float64]:
    """(resamples,) means of values drawn with replacement, in blocks that bound the memory."""
    means = np.empty(resamples)
    for start in range(0, resamples, _BLOCK):
        size = min(_BLOCK, resamples - start)
        means[start : start + size] = values[random.integers(len(values), size=(size, len(values)))].mean(axis=1)
    return means
