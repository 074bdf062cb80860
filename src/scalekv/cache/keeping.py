"""How what a head group holds grows, is copied, carried on and let go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scalekv.cache.codecs import carry_chosen, carry_ranges
from scalekv.cache.ledger import Ledger
from scalekv.cache.selection import copy_rows, flat_positions
from scalekv.cache.stores import Store
from scalekv.planning import CachePlan, Segment
from scalekv.planning.coding import carrying
from scalekv.policies import Policy

_MARKS = ("origin", "memory")
_TENSORS = ("key", "value", *_MARKS, "count")


@dataclass(frozen=True)
class Keeper:
    """Changes the tensors of stores; whatever it allocates or frees is counted.

    Args:
        plan: of the cache.
        policy: whose marks are kept beside the tokens.
        ledger: of the cache.
        dtype: attention computes in.
        device: of the cache.
    """

    plan: CachePlan
    policy: Policy
    ledger: Ledger
    dtype: torch.dtype
    device: torch.device

    def assemble(self, store: Store, segment: Segment, key: Tensor, value: Tensor, marked: bool) -> None:
        """Grow the store by the current segment; each old tensor is freed before the next one grows."""
        self.assemble_marks(store, segment, key, marked)
        store.key = self._grow(store.key, key)
        store.value = self._grow(store.value, value)

    def assemble_marks(self, store: Store, segment: Segment, key: Tensor, marked: bool) -> None:
        """Grow the marks of the store by those of the current segment, or forget them if they are not ``marked``."""
        if not marked:
            self._forget(store)
        elif self.policy.tracks_origin:
            start = self.plan.geometry.schedule.start(segment.index)
            born = torch.arange(start, start + segment.tokens, dtype=torch.int32, device=self.device)
            store.origin = self._grow(store.origin, born.expand(*key.shape[:2], -1))
        if marked and self.policy.remembers:
            nothing = torch.zeros((), dtype=torch.float32, device=self.device)
            store.memory = self._grow(store.memory, nothing.expand(*key.shape[:3]))

    def _forget(self, store: Store) -> None:
        for name in _MARKS:
            self.ledger.give(getattr(store, name))
            setattr(store, name, None)

    def count_arrivals(self, store: Store, segment: Segment) -> None:
        """Grow the counts of the store: every token of the current segment stands for itself."""
        rows, heads = self.plan.geometry.rows, len(store.plan.heads)
        if store.count is None:
            size = self.plan.candidates(store.plan, segment.index)
            store.count = self.ledger.take(torch.ones((rows, heads, size), device=self.device))
            return
        one = torch.ones((), device=self.device)
        store.count = self._grow(store.count, one.expand(rows, heads, segment.tokens))

    def _grow(self, old: Tensor | None, new: Tensor) -> Tensor:
        if old is None:
            return self.ledger.take(new.clone(memory_format=torch.contiguous_format))
        grown = self.ledger.take(torch.cat((old, new), dim=2))
        self.ledger.give(old)
        return grown

    def keep(self, store: Store, positions: Tensor, names: tuple[str, ...] = _TENSORS) -> None:
        """Copy the survivors out, one tensor after the other, each freeing its source."""
        for name in names:
            candidates = getattr(store, name)
            if candidates is not None:
                setattr(store, name, self.ledger.take(copy_rows(candidates, positions)))
                self.ledger.give(candidates)
            del candidates

    def keep_sources(self, store: Store, segment: Segment, names: tuple[str, ...] = _TENSORS) -> None:
        """Copy out the segments that the plan goes on to hold; the others go as a whole."""
        assert store.plan.sources is not None
        tokens = self.plan.geometry.schedule.tokens
        there = (*store.plan.sources[segment.index], segment.index)
        wanted = set(store.plan.sources[segment.index + 1])
        for name in names:
            candidates = getattr(store, name)
            if candidates is not None:
                parts = candidates.split([tokens[source] for source in there], dim=2)
                kept = [part for part, source in zip(parts, there, strict=True) if source in wanted]
                setattr(store, name, self.ledger.take(torch.cat(kept, dim=2)))
                self.ledger.give(candidates)
            del candidates

    def carry(self, store: Store, segment: Segment, key: Tensor, value: Tensor, chosen: Mapping[int, Tensor]) -> None:
        """Carry survivors on, keys first, then values, then marks, each letting go of its source.

        What is coded already is copied as it is; everything else is encoded.
        """
        plan, group, index = self.plan, store.plan, segment.index
        kept, candidates, coded = (
            plan.carried(group, index),
            plan.candidates(group, index),
            plan.reads_coded(group, index),
        )
        positions = chosen.get(kept)
        for name, codec, current in zip(("key", "value"), group.halves_at(index + 1), (key, value), strict=True):
            held = getattr(store, name)
            old, new = (held, current) if coded else (None, held)
            size = codec.vector_bytes(current.shape[3], self.dtype.itemsize)
            out = self.ledger.take(torch.empty((*current.shape[:2], kept, size), dtype=torch.uint8, device=self.device))
            step, scratch = carrying(plan, group, index, codec)
            with self.ledger.scratch(scratch):
                if positions is None:
                    carry_ranges(codec, old, new, self._runs(store, segment), out, step)
                else:
                    carry_chosen(codec, old, new, positions, out, step)
            setattr(store, name, out)
            self.ledger.give(held)
            del held, old, new
        if positions is not None:
            flat = flat_positions(positions, candidates)
            self.keep(store, flat, _MARKS)
        elif kept < candidates:
            self.keep_sources(store, segment, _MARKS)

    def _runs(self, store: Store, segment: Segment) -> list[tuple[int, int]]:
        """The runs of candidates that are carried on whole: the first of each, and the one after its last."""
        plan, group = self.plan, store.plan
        if plan.carried(group, segment.index) == plan.candidates(group, segment.index):
            return [(0, plan.candidates(group, segment.index))]
        assert group.sources is not None
        tokens, start, runs = self.plan.geometry.schedule.tokens, 0, []
        for source in (*group.sources[segment.index], segment.index):
            if source in group.sources[segment.index + 1]:
                runs.append((start, start + tokens[source]))
            start += tokens[source]
        return runs

    def drop(self, store: Store) -> None:
        """Let go of everything."""
        for name in _TENSORS:
            self.ledger.give(getattr(store, name))
            setattr(store, name, None)
