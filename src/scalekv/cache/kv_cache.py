"""The storage that executes a plan. Shapes are ``(rows, heads, tokens, head_dim)`` throughout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor
from typing_extensions import Self

from scalekv.cache.attention import attention
from scalekv.cache.ledger import Ledger
from scalekv.cache.report import CacheReport
from scalekv.cache.selection import copy_rows, flat_positions, survivors
from scalekv.planning import CachePlan, HeadGroup, Segment
from scalekv.policies import Policy, SelectionView

ProjectedQuery = Callable[[Tensor], Tensor]


@dataclass
class _Store:
    """History of one head group: keys and values, and where each token came from if the policy wants to know."""

    plan: HeadGroup
    heads: Tensor | None
    key: Tensor | None = None
    value: Tensor | None = None
    origin: Tensor | None = None


class KVCache:
    """Keys and values of one generation, held exactly as planned.

    Use it as a context manager: leaving the block frees everything, however it ends. Runs without gradients.

    Args:
        plan: what to hold, from ``policy.plan``.
        policy: who scores when tokens must go; the policy that made the plan.
        dtype: the dtype attention computes in; its size must be the plan's ``element_bytes``.
        device: where keys and values live.

    Raises:
        ValueError: the dtype does not fit the plan.
    """

    def __init__(
        self, plan: CachePlan, policy: Policy, *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        if dtype.itemsize != plan.geometry.element_bytes:
            raise ValueError(
                f"plan counts {plan.geometry.element_bytes} bytes per element, {dtype} has {dtype.itemsize}"
            )
        self.plan, self.policy = plan, policy
        self.dtype, self.device = dtype, torch.device(device)
        self.ledger = Ledger()
        self._stores = [[self._store(group) for group in groups] for groups in plan.layers]
        self._segment: Segment | None = None
        self._next_layer = plan.geometry.layers
        self._observed: Tensor | None = None
        self._segment_bytes: list[int] = []
        self._tokens_per_layer: tuple[float, ...] = (0.0,) * plan.geometry.layers

    def _store(self, group: HeadGroup) -> _Store:
        whole = len(group.heads) == self.plan.geometry.heads
        return _Store(group, None if whole else torch.tensor(group.heads, device=self.device))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free every key and value; the figures for :meth:`report` stay."""
        for stores in self._stores:
            for store in stores:
                self._drop(store)
        self._segment, self._observed = None, None

    @property
    def live_bytes(self) -> int:
        """Bytes held right now."""
        return self.ledger.live

    def begin(self, segment: Segment) -> None:
        """Announce the segment that all layers attend next, in the order of the schedule.

        Raises:
            RuntimeError: a segment out of order, or one whose predecessor was not finished by every layer.
        """
        schedule, expected = self.plan.geometry.schedule, len(self._segment_bytes)
        if expected >= len(schedule) or segment != schedule[expected]:
            raise RuntimeError(f"segment {segment.index} ({segment}) is not the next of the plan's schedule {schedule}")
        if self._next_layer != self.plan.geometry.layers:
            raise RuntimeError(f"layer {self._next_layer} has not attended segment {expected - 1} yet")
        self._segment, self._next_layer = segment, 0
        self._segment_bytes.append(self.ledger.live)
        self._tokens_per_layer = tuple(self._held_tokens(stores) for stores in self._stores)
        positions = self.policy.observation(segment) if self.plan.trims(segment.index) else ()
        self._observed = torch.tensor(positions, device=self.device) if positions else None

    def _held_tokens(self, stores: list[_Store]) -> float:
        held = sum(len(store.plan.heads) * store.key.shape[2] for store in stores if store.key is not None)
        return held / self.plan.geometry.heads

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        projected_query: ProjectedQuery | None = None,
    ) -> Tensor:
        """Attention of the current segment over [kept history ; current segment], then keep what the plan has room for.

        Args:
            layer: layer index; layers come in order 0 .. L-1 within a segment.
            query: ``(rows, heads, tokens, head_dim)``, already scaled.
            key: same shape, as attention uses it.
            value: same shape.
            projected_query: gives the bare query projection ``(rows, heads, n, head_dim)`` of ``n`` positions of the
                current segment; called only if the policy scores with it.

        Returns:
            ``(rows, heads, tokens, head_dim)``.

        Raises:
            RuntimeError: ``begin`` was not called, a layer came out of order, or shape or dtype differ from the plan.
        """
        segment = self._check(layer, query, key, value)
        with self.ledger.scratch(self.plan.observed_bytes(segment.index)):
            observed = self._observe(query, projected_query)
            output = self._attend_groups(layer, segment, query, key, value, observed)
        self._next_layer += 1
        return output

    def _attend_groups(
        self, layer: int, segment: Segment, query: Tensor, key: Tensor, value: Tensor, observed: Tensor | None
    ) -> Tensor:
        stores = self._stores[layer]
        if stores[0].heads is None:
            return self._attend(layer, segment, stores[0], query, key, value, observed)
        output = torch.empty_like(query)
        for store in stores:
            heads = store.heads
            with self.ledger.scratch(self.plan.gathered_bytes(store.plan, segment.index)):
                own_query, own_key, own_value = query[:, heads], key[:, heads], value[:, heads]
                watching = None if observed is None else observed[:, heads]
                output[:, heads] = self._attend(layer, segment, store, own_query, own_key, own_value, watching)
        return output

    def _check(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Segment:
        segment, geometry = self._segment, self.plan.geometry
        if segment is None:
            raise RuntimeError("call begin(segment) before attend")
        if layer != self._next_layer:
            raise RuntimeError(f"expected layer {self._next_layer}, got {layer}; layers attend in order")
        expected = (geometry.rows, geometry.heads, segment.tokens, geometry.head_dim)
        for name, tensor in (("query", query), ("key", key), ("value", value)):
            if tuple(tensor.shape) != expected or tensor.dtype != self.dtype:
                found = f"{tuple(tensor.shape)} {tensor.dtype}"
                raise RuntimeError(f"{name} is {found}, the plan expects {expected} {self.dtype}")
        return segment

    def _observe(self, query: Tensor, projected_query: ProjectedQuery | None) -> Tensor | None:
        if self._observed is None:
            return None
        if not self.policy.projected_observation:
            return query.index_select(2, self._observed)
        if projected_query is None:
            raise RuntimeError("the policy scores with bare query projections, which this network does not offer")
        return projected_query(self._observed)

    def _attend(
        self,
        layer: int,
        segment: Segment,
        store: _Store,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        observed: Tensor | None,
    ) -> Tensor:
        last = self.plan.geometry.schedule.is_last(segment)
        kept = 0 if last else store.plan.capacity[segment.index + 1]
        if store.key is None and not kept:
            return attention(query, key, value)
        self._assemble(store, segment, key, value, keep=kept > 0)
        assert store.key is not None
        assert store.value is not None
        output = attention(query, store.key, store.value)
        self.watch(layer, segment, query, store.key)
        if not kept:
            self._drop(store)
        elif kept < store.key.shape[2]:
            self._trim(layer, segment, store, kept, observed)
        return output

    def watch(self, layer: int, segment: Segment, query: Tensor, key: Tensor) -> None:
        """What attention has just read; a recording cache overrides this, the plain one does nothing.

        Args:
            layer: layer index.
            segment: the current segment.
            query: ``(rows, heads, segment.tokens, head_dim)``.
            key: ``(rows, heads, history + segment.tokens, head_dim)``.
        """

    def _assemble(self, store: _Store, segment: Segment, key: Tensor, value: Tensor, keep: bool) -> None:
        """Grow the store by the current segment; each old tensor is freed before the next one grows."""
        if not keep:
            self.ledger.give(store.origin)
            store.origin = None
        elif self.policy.tracks_origin:
            start = self.plan.geometry.schedule.start(segment.index)
            born = torch.arange(start, start + segment.tokens, dtype=torch.int32, device=self.device)
            store.origin = self._grow(store.origin, born.expand(*key.shape[:2], -1))
        store.key = self._grow(store.key, key)
        store.value = self._grow(store.value, value)

    def _grow(self, old: Tensor | None, new: Tensor) -> Tensor:
        held = 0 if old is None else old.shape[2]
        shape = (*new.shape[:2], held + new.shape[2], *new.shape[3:])
        grown = self.ledger.take(torch.empty(shape, dtype=new.dtype, device=self.device))
        if old is not None:
            grown[:, :, :held] = old
        grown[:, :, held:] = new
        self.ledger.give(old)
        return grown

    def _trim(self, layer: int, segment: Segment, store: _Store, kept: int, observed: Tensor | None) -> None:
        index = self._choose(layer, segment, store, kept, observed)
        for name in ("key", "value", "origin"):
            candidates = getattr(store, name)
            if candidates is not None:
                setattr(store, name, self.ledger.take(copy_rows(candidates, index)))
                self.ledger.give(candidates)
            del candidates
        self.ledger.give(index)

    def _choose(self, layer: int, segment: Segment, store: _Store, kept: int, observed: Tensor | None) -> Tensor:
        """Flat positions of the survivors, ``(rows * heads * kept,)``."""
        key, value, origin = store.key, store.value, store.origin
        assert key is not None
        assert value is not None
        rows, heads, candidates, _ = key.shape
        index = self.ledger.take(torch.empty((rows, heads, kept), dtype=torch.int64, device=self.device))
        step = self.plan.scored_rows(heads, candidates)
        with self.ledger.scratch(self.plan.choosing_bytes(heads, candidates)):
            for start in range(0, rows, step):
                block = slice(start, start + step)
                view = SelectionView(
                    layer,
                    store.plan.heads,
                    self.plan.geometry.schedule,
                    segment,
                    kept,
                    key[block],
                    value[block],
                    None if observed is None else observed[block],
                    None if self._observed is None else self._observed + (candidates - segment.tokens),
                    None if origin is None else origin[block],
                )
                index[block] = survivors(self.policy.score(view), kept)
        return flat_positions(index, candidates)

    def _drop(self, store: _Store) -> None:
        for name in ("key", "value", "origin"):
            self.ledger.give(getattr(store, name))
            setattr(store, name, None)

    def report(self, seconds: float | None = None) -> CacheReport:
        """The planned and the measured bytes so far; call it when the run is done.

        Args:
            seconds: wall time of the run, if the driver measured it.
        """
        return CacheReport.of_plan(
            self.plan,
            kept_bytes=max(self._segment_bytes, default=0),
            measured_peak_bytes=self.ledger.peak,
            tokens_per_layer=self._tokens_per_layer,
            segment_bytes=tuple(self._segment_bytes),
            seconds=seconds,
        )
