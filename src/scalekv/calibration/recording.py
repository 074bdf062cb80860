"""A cache that attends exactly and measures what attention looks at. No network knows that it is being measured."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from scalekv.cache import KVCache
from scalekv.calibration.measures import mass_and_sigma, scale_similarity, selectivity, window_statistics
from scalekv.calibration.statistics import AttentionStatistics
from scalekv.planning import CacheGeometry, Segment
from scalekv.policies import Full


class RecordingCache(KVCache):
    """The full cache, plus all tables of a :class:`~scalekv.planning.Profile`, from the conditional rows, in one pass.

    Cost: the attention of all queries is computed once more, not fused and in float32, and that of the sampled and the
    window queries on top. Memory: about ``24 * heads * 64 * candidates`` bytes beside the cache, whatever the length of
    a segment, and one layer's keys of one row in float32.

    Args:
        geometry: the shape of the run.
        statistics: where to add; shared by the runs of one calibration.
        dtype: the dtype attention computes in.
        device: where keys and values live.
        queries: queries per segment that the selectivity index and the masses beside it sample, without replacement;
            clamped to the segment. All other tables use the queries that their papers name.
        top: K', history tokens whose mass counts as selective; clamped to the history. The paper gives no value.
        seed: of the sampled queries; sampling of the picture is not touched.
    """

    def __init__(
        self,
        geometry: CacheGeometry,
        statistics: AttentionStatistics,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        queries: int = 256,
        top: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(Full().plan(geometry), Full(), dtype=dtype, device=device)
        self.statistics = statistics
        self._queries, self._top = queries, top
        self._generator = torch.Generator().manual_seed(seed)
        statistics.images += geometry.batch

    def watch(self, layer: int, segment: Segment, query: Tensor, key: Tensor) -> None:
        """Measure one layer's attention, one row at a time."""
        chosen = self._sample(segment).to(query.device)
        for row in range(self.plan.geometry.batch):
            for kind, name, value in self._measured(segment, query[row], key[row].float(), chosen):
                self.statistics.add(kind, name, segment.index, layer, value)

    def _sample(self, segment: Segment) -> Tensor:
        """Positions of queries for the selectivity index, which the first segment has not."""
        tokens = segment.tokens if segment.index > 0 else 0
        return torch.randperm(tokens, generator=self._generator)[: self._queries]

    def _measured(
        self, segment: Segment, query: Tensor, key: Tensor, chosen: Tensor
    ) -> Iterator[tuple[str, str, Tensor]]:
        """Field of the profile, table and value."""
        schedule = self.plan.geometry.schedule
        if segment.index > 0:
            sampled = query.index_select(1, chosen)
            for name, value in selectivity(sampled, key, schedule, segment, self._top).items():
                yield "statistics", name, value
            yield "statistics", "scale_similarity", scale_similarity(key, schedule, segment)
        mass, sigma = mass_and_sigma(query, key, schedule, segment)
        yield "source_statistics", "mass", mass
        yield "head_statistics", "sigma", sigma
        entropy, variance, curve = window_statistics(query, key, segment)
        yield "statistics", "window_entropy", entropy
        yield "statistics", "window_variance", variance
        yield "curves", "snapkv", curve
