"""A cache that attends exactly and measures what attention looks at. No network knows that it is being measured."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from scalekv.cache import KVCache
from scalekv.planning import CacheGeometry, Segment
from scalekv.policies import Full

QUERY_BLOCK = 64


@dataclass
class AttentionStatistics:
    """Sums over images of per (segment, layer) statistics; ``mean`` divides by their number.

    Args:
        segments: number of segments.
        layers: number of layers.
    """

    segments: int
    layers: int
    images: int = 0
    sums: dict[str, list[list[float]]] = field(default_factory=dict)

    def add(self, name: str, segment: int, layer: int, value: float) -> None:
        """Add one image's value to a table."""
        table = self.sums.setdefault(name, [[0.0] * self.layers for _ in range(self.segments)])
        table[segment][layer] += value

    def mean(self) -> dict[str, tuple[tuple[float, ...], ...]]:
        """Every table divided by the number of images, ``[segment][layer]``."""
        return {
            name: tuple(tuple(value / self.images for value in row) for row in table)
            for name, table in self.sums.items()
        }


class RecordingCache(KVCache):
    """The full cache, plus attention statistics of the conditional rows.

    Per (segment, layer), averaged over sampled queries, heads and images:

    * ``asi``: Attention Selectivity Index (ScaleKV eq. 2), per head ``mean_i(current) * mean_i(top-K' of history)``;
    * ``current``, ``previous``, ``first``, ``others``: attention mass on the current segment, the one before it, the
      first one, and all else (a segment that is both first and previous counts as first).

    Args:
        geometry: the shape of the run.
        statistics: where to add; shared by the runs of one calibration.
        dtype: the dtype attention computes in.
        device: where keys and values live.
        queries: sampled queries per segment, without replacement; clamped to the segment.
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
        """Measure one layer's attention in blocks of queries, one row at a time."""
        history = key.shape[2] - segment.tokens
        if history == 0:
            return
        chosen = torch.randperm(segment.tokens, generator=self._generator)[: self._queries].to(query.device)
        edges = self._edges(segment)
        for row in range(self.plan.geometry.batch):
            masses = torch.zeros((5, query.shape[1]), device=query.device)
            for block in chosen.split(QUERY_BLOCK):
                masses += self._masses(query[row].index_select(1, block), key[row], history, edges)
            current, top, first, previous, others = masses / len(chosen)
            table = {
                "asi": current * top,
                "current": current,
                "first": first,
                "previous": previous,
                "others": others,
            }
            for name, value in table.items():
                self.statistics.add(name, segment.index, layer, float(value.mean()))

    def _edges(self, segment: Segment) -> tuple[int, int]:
        """Where the first segment ends and where the previous one starts."""
        schedule = self.plan.geometry.schedule
        first = schedule[0].tokens
        return first, max(schedule.start(segment.index - 1), first)

    def _masses(self, query: Tensor, key: Tensor, history: int, edges: tuple[int, int]) -> Tensor:
        """Summed over queries: mass on current, top-K' of history, first, previous, others; ``(5, heads)``."""
        weights = torch.softmax(query.float() @ key.float().transpose(-1, -2), dim=-1)
        past, current = weights[..., :history], weights[..., history:].sum(-1)
        top = past.topk(min(self._top, history), dim=-1).values.sum(-1)
        first, previous = past[..., : edges[0]].sum(-1), past[..., edges[1] :].sum(-1)
        others = past.sum(-1) - first - previous
        return torch.stack([current, top, first, previous, others]).sum(-1)
