"""Candidates merged to as many tokens as there is room for, as the policy groups them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scalekv.cache.codecs import blocks, encode, encode_means, has_loops
from scalekv.cache.ledger import Ledger
from scalekv.cache.stores import Candidates, Store
from scalekv.planning import CachePlan, Segment, VectorCodec
from scalekv.planning.codecs import block_tokens
from scalekv.planning.token_merging import merged_together, merging_scratch
from scalekv.policies import Policy, SelectionView
from scalekv.policies.grouping import means_by_part


@dataclass(frozen=True)
class Merger:
    """Makes the new history of head groups of one cache.

    Args:
        plan: of the cache.
        policy: who groups.
        ledger: of the cache, where what is made is counted.
        dtype: attention computes in.
        device: of the cache.
    """

    plan: CachePlan
    policy: Policy
    ledger: Ledger
    dtype: torch.dtype
    device: torch.device

    def room(self, store: Store, segment: Segment) -> Store:
        """An empty history for what the candidates of this segment are merged to."""
        plan, group, index = self.plan, store.plan, segment.index
        rows, kept, head_dim = plan.geometry.rows, plan.carried(group, index), plan.geometry.head_dim
        sizes, dtype = [head_dim, head_dim], self.dtype
        if plan.holds_coded(group, index + 1):
            halves, dtype = group.halves_at(index + 1), torch.uint8
            sizes = [half.vector_bytes(head_dim, self.dtype.itemsize) for half in halves]
        shape = (rows, len(group.heads), kept)
        return Store(
            group,
            store.heads,
            key=self.ledger.take(torch.empty((*shape, sizes[0]), dtype=dtype, device=self.device)),
            value=self.ledger.take(torch.empty((*shape, sizes[1]), dtype=dtype, device=self.device)),
            count=self.ledger.take(torch.empty(shape, device=self.device)),
        )

    def merge(self, layer: int, segment: Segment, store: Store, candidates: Candidates, fresh: Store) -> None:
        """Write the means of groups of candidates, some rows and heads at a time, as the policy groups them."""
        plan, group, index = self.plan, store.plan, segment.index
        rows, heads = candidates.key.shape[:2]
        some_rows, some_heads = merged_together(plan, group, index, rows)
        with self.ledger.scratch(merging_scratch(plan, group, index, rows)):
            for row in range(0, rows, some_rows):
                for head in range(0, heads, some_heads):
                    part = slice(row, min(row + some_rows, rows)), slice(head, head + some_heads)
                    self._merge_part(layer, segment, store, candidates, fresh, part)

    def _merge_part(
        self,
        layer: int,
        segment: Segment,
        store: Store,
        candidates: Candidates,
        fresh: Store,
        part: tuple[slice, slice],
    ) -> None:
        """The same for some of the rows of ``candidates`` and some heads of the group."""
        plan, group, index = self.plan, store.plan, segment.index
        own, heads = part
        first = candidates.rows.start
        block = slice(first + own.start, first + own.stop), heads
        assert store.count is not None
        assert fresh.key is not None
        assert fresh.value is not None
        assert fresh.count is not None
        view = SelectionView(
            layer=layer,
            heads=group.heads[heads],
            schedule=plan.geometry.schedule,
            segment=segment,
            capacity=plan.carried(group, index),
            key=candidates.key[part],
            value=candidates.value[part],
            count=store.count[block],
            role=group.role,
            profile=plan.profile,
        )
        codecs = group.halves_at(index + 1) if plan.holds_coded(group, index + 1) else None
        self._average(codecs, view, self._groups(view), fresh.count[block], (fresh.key[block], fresh.value[block]))

    def _average(
        self,
        codecs: tuple[VectorCodec, VectorCodec] | None,
        view: SelectionView,
        groups: Tensor,
        sums: Tensor,
        outs: tuple[Tensor, Tensor],
    ) -> None:
        """Write the counts of groups, and their means, coded if there are codecs."""
        pair, count = (view.key, view.value), view.count
        assert count is not None
        if codecs is not None and all(map(has_loops, codecs, pair)):
            encode_means(codecs, pair, count, groups, sums, outs)
            return
        sums.zero_().scatter_add_(2, groups, count)
        for source, out, codec in zip(pair, outs, codecs or (None, None), strict=True):
            for part, means in means_by_part(source, count, groups, sums):
                self._write(codec, means, out[part])

    def _write(self, codec: VectorCodec | None, means: Tensor, out: Tensor) -> None:
        if codec is None:
            out.copy_(means)
            return
        rows, heads, kept, head_dim = means.shape
        each = codec.encoding_bytes(head_dim, self.dtype.itemsize)
        for some in blocks(kept, block_tokens(rows * heads, each, self.plan.strict)):
            encode(codec, means[:, :, some].to(self.dtype) if codec.exact else means[:, :, some], out[:, :, some])

    def _groups(self, view: SelectionView) -> Tensor:
        """The policy's groups of candidates; everyone its own where there is room for all."""
        if view.capacity < view.tokens:
            return self.policy.assign(view)
        return torch.arange(view.tokens, device=self.device).expand(*view.key.shape[:3])
