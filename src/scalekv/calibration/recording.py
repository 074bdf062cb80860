"""A cache that attends exactly and measures what attention looks at. No network knows that it is being measured."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from scalekv.cache import KVCache
from scalekv.cache.attention import attention
from scalekv.cache.choosing import ProjectedQuery
from scalekv.calibration.measures import (
    coding_loss,
    mass_and_sigma,
    merging_loss,
    scale_similarity,
    selectivity,
    window_statistics,
)
from scalekv.calibration.statistics import AttentionStatistics
from scalekv.planning import CacheGeometry, Segment
from scalekv.policies import Full


class RecordingCache(KVCache):
    """The full cache, plus all tables of a :class:`~scalekv.planning.Profile`, from the conditional rows, in one pass.

    Cost: the attention of all queries is computed once more, not fused and in float32, and that of the sampled and the
    watching queries on top, a dozen times in all for 64 of them. Memory: about ``24 * heads * 64 * candidates`` bytes
    beside the cache, whatever the length of a segment, and one layer's keys and values of one row in float32. With
    ``sensitivity`` one segment's forward pass is kept for its backward pass, and costs about three times as much.

    Args:
        geometry: the shape of the run.
        statistics: where to add; shared by the runs of one calibration.
        dtype: the dtype attention computes in.
        device: where keys and values live.
        queries: queries per segment that the selectivity index and the masses beside it sample, without replacement;
            clamped to the segment. All other tables use the queries that their papers name.
        top: K', history tokens whose mass counts as selective; clamped to the history. The paper gives no value.
        seed: of the sampled queries and of the draws that sensitivity is measured with; sampling of the picture is not
            touched.
        sensitivity: whether the generation loop shall keep gradients, for :meth:`differentiate`.
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
        sensitivity: bool = False,
    ) -> None:
        super().__init__(Full().plan(geometry), Full(), dtype=dtype, device=device)
        self.statistics = statistics
        self.differentiates = sensitivity
        self._queries, self._top = queries, top
        self._generator = torch.Generator().manual_seed(seed)
        self._draws = torch.Generator().manual_seed(seed)
        self._outputs: list[Tensor] = []
        statistics.images += geometry.batch

    def begin(self, segment: Segment) -> None:
        """See :meth:`KVCache.begin`."""
        super().begin(segment)
        self._outputs = []

    def close(self) -> None:
        """See :meth:`KVCache.close`."""
        super().close()
        self._outputs = []

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        projected_query: ProjectedQuery | None = None,
    ) -> Tensor:
        """See :meth:`KVCache.attend`; with ``sensitivity`` the result has gradients within the segment."""
        if not self.differentiates:
            return super().attend(layer, query, key, value, projected_query=projected_query)
        store = self._stores[layer][0]
        held = [(store.key, key), (store.value, value)]
        with torch.no_grad():
            super().attend(layer, query.detach(), key.detach(), value.detach())
        keys, values = (new if old is None else torch.cat([old, new], dim=2) for old, new in held)
        output = attention(query, keys, values)
        if not output.requires_grad:  # all weights are frozen
            output.requires_grad_()
        self._outputs.append(output)
        return output

    def differentiate(self, logits: Tensor, choices: int) -> None:
        """Measure how the distribution of this segment's draws depends on the output of every head.

        The empirical Fisher information: the squared gradient of the log-likelihood of draws from the very logits
        (temperature and guidance included, filters not), summed over channels, mean over the segment's tokens. History
        counts as given [ours].

        Args:
            logits: ``(batch, tokens, draws * choices)``, with gradients.
            choices: values that a draw can take.
        """
        segment, batch = self.plan.geometry.schedule[len(self._segment_bytes) - 1], self.plan.geometry.batch
        with torch.enable_grad():
            chances = logits.float().unflatten(-1, (-1, choices)).log_softmax(-1)
            drawn = torch.multinomial(chances.detach().exp().flatten(0, -2).cpu(), 1, generator=self._draws)
            likelihood = chances.flatten(0, -2).gather(1, drawn.to(logits.device)).sum()
        gradients = torch.autograd.grad(likelihood, self._outputs)
        self._outputs = []
        for layer, gradient in enumerate(gradients):
            squares = gradient.float().square().sum(-1).mean(-1)
            self.statistics.add("head_statistics", "sensitivity", segment.index, layer, squares[:batch].sum(0))
            if len(squares) > batch:
                others = squares[batch:].sum(0)
                self.statistics.add("head_statistics", "sensitivity_unguided", segment.index, layer, others)

    def watch(self, layer: int, segment: Segment, query: Tensor, key: Tensor, value: Tensor) -> None:
        """Measure one layer's attention, one row at a time."""
        chosen = self._sample(segment).to(query.device)
        for row in range(self.plan.geometry.batch):
            own = query[row], key[row].float()
            for kind, name, measured in self._measured(segment, *own, chosen):
                self.statistics.add(kind, name, segment.index, layer, measured)
            self._measure_losses(layer, segment, *own, value[row].float())

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

    def _measure_losses(self, layer: int, segment: Segment, query: Tensor, key: Tensor, value: Tensor) -> None:
        """What merging after the segment before would have cost this one, and what codecs would."""
        history = self.plan.geometry.schedule.start(segment.index)
        if not history:
            return
        loss = merging_loss(query, key, value, segment, history)
        self.statistics.add("curves", "merging", segment.index - 1, layer, loss)
        for name, coded in coding_loss(query, key, value, segment, history).items():
            self.statistics.add("head_statistics", name, segment.index, layer, coded)
