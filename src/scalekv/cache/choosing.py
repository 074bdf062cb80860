"""What the policy sees of the candidates, and which of them it lets live."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from scalekv.cache.ledger import Ledger
from scalekv.cache.selection import survivors
from scalekv.cache.stores import Candidates, Store
from scalekv.planning import CachePlan, Segment
from scalekv.policies import Policy, SelectionView

ProjectedQuery = Callable[[Tensor], Tensor]


class Chooser:
    """Shows the policy the candidates of one segment after the other, and keeps to its scores.

    Args:
        plan: of the cache.
        policy: who scores.
        ledger: of the cache, where scratch is counted.
        device: of the cache.
    """

    def __init__(self, plan: CachePlan, policy: Policy, ledger: Ledger, device: torch.device) -> None:
        self.plan, self.policy, self.ledger, self.device = plan, policy, ledger, device
        self._observed: Tensor | None = None
        self._observes_all = False

    def begin(self, segment: Segment) -> None:
        """Find the queries that score at ``segment``."""
        positions = self.policy.observation(segment) if self.plan.observes(segment.index) else ()
        self._observed = torch.tensor(positions, device=self.device) if positions else None
        self._observes_all = len(positions) == segment.tokens

    def close(self) -> None:
        """Let go of what is held for the current segment."""
        self._observed = None

    def observe(self, query: Tensor, projected_query: ProjectedQuery | None) -> Tensor | None:
        """The queries that score, ``(rows, heads, observed, head_dim)``; ``None`` for none.

        Args:
            query: of the whole segment, ``(rows, heads, tokens, head_dim)``.
            projected_query: see :meth:`KVCache.attend`.

        Raises:
            RuntimeError: the policy wants bare projections, and there is nobody to give them.
        """
        if self._observed is None:
            return None
        if not self.policy.projected_observation:
            return query if self._observes_all else query.index_select(2, self._observed)
        if projected_query is None:
            raise RuntimeError("the policy scores with bare query projections, which this network does not offer")
        return projected_query(self._observed)

    def room(self, store: Store, segment: Segment) -> dict[int, Tensor]:
        """Room for the positions ``(rows, heads, size)`` of the sets that the plan asks for, by size."""
        rows, heads = self.plan.geometry.rows, len(store.plan.heads)
        sizes = self.plan.chosen(store.plan, segment.index) if self.plan.judges(store.plan, segment.index) else ()
        return {
            size: self.ledger.take(torch.empty((rows, heads, size), dtype=torch.int64, device=self.device))
            for size in sizes
        }

    def remember(
        self, layer: int, segment: Segment, store: Store, candidates: Candidates, observed: Tensor | None
    ) -> None:
        """Let every candidate add up what it was worth to this segment."""
        assert store.memory is not None
        for block, view in self._views(layer, segment, store, candidates, observed, capacity=0):
            store.memory[block] += self.policy.remember(view)

    def choose(
        self,
        layer: int,
        segment: Segment,
        store: Store,
        candidates: Candidates,
        observed: Tensor | None,
        chosen: dict[int, Tensor],
    ) -> None:
        """Write the positions of all sets, from one score."""
        capacity = next(iter(chosen))
        for block, view in self._views(layer, segment, store, candidates, observed, capacity):
            score = self.policy.score(view)
            for size, positions in chosen.items():
                positions[block] = survivors(score, size)

    def _views(
        self,
        layer: int,
        segment: Segment,
        store: Store,
        candidates: Candidates,
        observed: Tensor | None,
        capacity: int,
    ) -> Iterator[tuple[slice, SelectionView]]:
        """The candidates of some rows at a time, as many as the planned scratch allows."""
        key, value, origin, memory = candidates.key, candidates.value, store.origin, store.memory
        rows, heads, tokens, _ = key.shape
        first = candidates.rows.start
        step = self.plan.scored_rows(heads, tokens, rows)
        window = None if self._observed is None else self._observed + (tokens - segment.tokens)
        with self.ledger.scratch(self.plan.choosing_bytes(heads, tokens, rows)):
            for start in range(0, rows, step):
                own = slice(start, min(start + step, rows))
                block = slice(first + own.start, first + own.stop)
                yield (
                    block,
                    SelectionView(
                        layer=layer,
                        heads=store.plan.heads,
                        schedule=self.plan.geometry.schedule,
                        segment=segment,
                        capacity=capacity,
                        key=key[own],
                        value=value[own],
                        query=None if observed is None else observed[block],
                        window=window,
                        origin=None if origin is None else origin[block],
                        memory=None if memory is None else memory[block],
                        mass=None if candidates.mass is None else candidates.mass[own],
                        role=store.plan.role,
                        profile=self.plan.profile,
                    ),
                )
