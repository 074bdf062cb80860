"""The storage that executes a plan. Shapes are ``(rows, heads, tokens, head_dim)`` throughout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import TracebackType

import torch
from torch import Tensor
from typing_extensions import Self

from scalekv.cache.attention import attention, attention_and_mass
from scalekv.cache.codecs import carry_chosen, carry_ranges, decode_tokens
from scalekv.cache.ledger import Ledger
from scalekv.cache.merging import Merger
from scalekv.cache.report import CacheReport
from scalekv.cache.selection import copy_rows, flat_positions, survivors
from scalekv.cache.stores import Candidates, HeadIndex, Store
from scalekv.planning import CachePlan, HeadGroup, Segment, VectorCodec
from scalekv.planning.coding import carrying, decoded_rows, decoding_scratch, decoding_tokens
from scalekv.planning.token_merging import counting_scratch
from scalekv.planning.weighing import weighing_scratch
from scalekv.policies import Policy, SelectionView

ProjectedQuery = Callable[[Tensor], Tensor]

_MARKS = ("origin", "memory")
_TENSORS = ("key", "value", *_MARKS, "count")


class KVCache:
    """Keys and values of one generation, held exactly as planned.

    Use it as a context manager: leaving the block frees everything, however it ends. Runs without gradients.

    Args:
        plan: what to hold, from ``policy.plan``.
        policy: who scores when tokens must go; the policy that made the plan.
        dtype: the dtype attention computes in; its size must be the plan's ``element_bytes``.
        device: where keys and values live.

    Attributes:
        differentiates: whether a generation loop shall run its network with gradients; only calibration asks for that.

    Raises:
        ValueError: the dtype does not fit the plan.
    """

    differentiates: bool = False

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
        self._merger = Merger(plan, policy, self.ledger, dtype, self.device)
        self._stores = [[self._store(group) for group in groups] for groups in plan.layers]
        self._segment: Segment | None = None
        self._next_layer = plan.geometry.layers
        self._observed: Tensor | None = None
        self._observes_all = False
        self._segment_bytes: list[int] = []
        self._tokens_per_layer: tuple[float, ...] = (0.0,) * plan.geometry.layers

    def _store(self, group: HeadGroup) -> Store:
        geometry = self.plan.geometry
        whole = len(group.heads) == geometry.heads and geometry.parts == 1
        return Store(group, None if whole else HeadIndex(group.heads, geometry, self.device))

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
        positions = self.policy.observation(segment) if self.plan.observes(segment.index) else ()
        self._observed = torch.tensor(positions, device=self.device) if positions else None
        self._observes_all = len(positions) == segment.tokens

    def _held_tokens(self, stores: list[Store]) -> float:
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
            assert heads is not None
            with self.ledger.scratch(self.plan.gathered_bytes(store.plan, segment.index)):
                own_query, own_key, own_value = (heads.take(tensor) for tensor in (query, key, value))
                watching = own_query if observed is query else None if observed is None else heads.take(observed)
                heads.put(output, self._attend(layer, segment, store, own_query, own_key, own_value, watching))
        return output

    def _check(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Segment:
        segment, geometry = self._segment, self.plan.geometry
        if segment is None:
            raise RuntimeError("call begin(segment) before attend")
        if layer != self._next_layer:
            raise RuntimeError(f"expected layer {self._next_layer}, got {layer}; layers attend in order")
        expected = (geometry.rows * geometry.parts, geometry.network_heads, segment.tokens, geometry.head_dim)
        for name, tensor in (("query", query), ("key", key), ("value", value)):
            if tuple(tensor.shape) != expected or tensor.dtype != self.dtype:
                found = f"{tuple(tensor.shape)} {tensor.dtype}"
                raise RuntimeError(f"{name} is {found}, the plan expects {expected} {self.dtype}")
        return segment

    def _observe(self, query: Tensor, projected_query: ProjectedQuery | None) -> Tensor | None:
        if self._observed is None:
            return None
        if not self.policy.projected_observation:
            return query if self._observes_all else query.index_select(2, self._observed)
        if projected_query is None:
            raise RuntimeError("the policy scores with bare query projections, which this network does not offer")
        return projected_query(self._observed)

    def _attend(
        self,
        layer: int,
        segment: Segment,
        store: Store,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        observed: Tensor | None,
    ) -> Tensor:
        plan, group, index = self.plan, store.plan, segment.index
        kept, candidates = plan.carried(group, index), plan.candidates(group, index)
        judged = plan.judges(group, index)
        if store.key is None and not kept and not judged:
            return attention(query, key, value)
        if store.count is not None or plan.merges(group, index):
            return self._attend_merging(layer, segment, store, query, key, value)
        if plan.codes(group, index):
            return self._attend_coded(layer, segment, store, query, key, value, observed)
        self._assemble(store, segment, key, value, marked=kept > 0 or judged)
        output = None
        if plan.weighs(group, index):
            output = self._read_weighing(layer, segment, store, query)
        elif plan.remembers(index):
            self._remember(layer, segment, store, self._all(store), observed)
        chosen = self._positions(store, segment)
        if judged:
            self._choose(layer, segment, store, self._all(store), observed, chosen)
            chosen = {size: flat_positions(positions, candidates) for size, positions in chosen.items()}
        if output is None:
            output = self._read(layer, segment, store, query, chosen)
        if not kept:
            self._drop(store)
        elif kept in chosen and kept != plan.attended(group, index):
            self._keep(store, chosen[kept])
        elif group.sources is not None and kept < candidates:
            self._keep_sources(store, segment)
        for positions in chosen.values():
            self.ledger.give(positions)
        return output

    def _attend_coded(
        self,
        layer: int,
        segment: Segment,
        store: Store,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        observed: Tensor | None,
    ) -> Tensor:
        """As :meth:`_attend`, where history is coded or becomes so: it is decoded and read some rows at a time."""
        plan, group, index = self.plan, store.plan, segment.index
        kept, judged = plan.carried(group, index), plan.judges(group, index)
        if plan.reads_coded(group, index):
            self._assemble_marks(store, segment, key, marked=kept > 0 or judged)
        else:
            self._assemble(store, segment, key, value, marked=kept > 0 or judged)
        chosen, output = self._positions(store, segment), torch.empty_like(query)
        for candidates in self._candidates(store, segment, key, value):
            rows = candidates.rows
            if plan.remembers(index):
                self._remember(layer, segment, store, candidates, observed)
            if judged:
                self._choose(layer, segment, store, candidates, observed, chosen)
            output[rows] = self._read_rows(layer, segment, store, query[rows], candidates, chosen)
            del candidates
        if kept:
            self._carry(store, segment, key, value, chosen)
        else:
            self._drop(store)
        for positions in chosen.values():
            self.ledger.give(positions)
        return output

    def _attend_merging(
        self, layer: int, segment: Segment, store: Store, query: Tensor, key: Tensor, value: Tensor
    ) -> Tensor:
        """As :meth:`_attend`, where tokens of the history stand for several, or will."""
        plan, group, index = self.plan, store.plan, segment.index
        merges = plan.merges(group, index)
        if not plan.reads_coded(group, index):
            self._assemble(store, segment, key, value, marked=False)
        self._count_arrivals(store, segment)
        fresh, output = self._merger.room(store, segment) if merges else None, torch.empty_like(query)
        for candidates in self._candidates(store, segment, key, value):
            output[candidates.rows] = self._read_counted(store, segment, query[candidates.rows], candidates)
            if fresh is not None:
                self._merge(layer, segment, store, candidates, fresh)
            del candidates
        if fresh is not None:
            self._drop(store)
            store.key, store.value, store.count = fresh.key, fresh.value, fresh.count
        elif not plan.carried(group, index):
            self._drop(store)
        elif plan.codes(group, index):
            self._carry(store, segment, key, value, {})
        return output

    def _count_arrivals(self, store: Store, segment: Segment) -> None:
        rows, heads = self.plan.geometry.rows, len(store.plan.heads)
        if store.count is None:
            size = self.plan.candidates(store.plan, segment.index)
            store.count = self.ledger.take(torch.ones((rows, heads, size), device=self.device))
            return
        one = torch.ones((), device=self.device)
        store.count = self._grow(store.count, one.expand(rows, heads, segment.tokens))

    def _read_counted(self, store: Store, segment: Segment, query: Tensor, candidates: Candidates) -> Tensor:
        """Attention in which a token weighs as much as all that it stands for."""
        assert store.count is not None
        with self.ledger.scratch(counting_scratch(self.plan, store.plan, segment.index, len(query))):
            bias = store.count[candidates.rows].log().to(self.dtype)
            return attention(query, candidates.key, candidates.value, bias)

    def _merge(self, layer: int, segment: Segment, store: Store, candidates: Candidates, fresh: Store) -> None:
        self._merger.merge(layer, segment, store, candidates, fresh)

    def _candidates(self, store: Store, segment: Segment, key: Tensor, value: Tensor) -> Iterator[Candidates]:
        """[history ; current] of some rows at a time, decoded for as long as they are looked at."""
        if not self.plan.reads_coded(store.plan, segment.index):
            yield self._all(store)
            return
        step = decoded_rows(self.plan, store.plan, segment.index)
        for start in range(0, key.shape[0], step):
            rows = slice(start, start + step)
            assert store.key is not None
            assert store.value is not None
            key_codec, value_codec = store.plan.halves_at(segment.index)
            assembled = Candidates(
                rows,
                self._decoded(store, segment, key_codec, store.key[rows], key[rows]),
                self._decoded(store, segment, value_codec, store.value[rows], value[rows]),
            )
            yield assembled
            self.ledger.give(assembled.key)
            self.ledger.give(assembled.value)
            del assembled

    def _decoded(self, store: Store, segment: Segment, codec: VectorCodec, packed: Tensor, current: Tensor) -> Tensor:
        """Coded history and the current segment in one tensor of the compute dtype."""
        plan, group, (rows, _, held, _) = self.plan, store.plan, packed.shape
        shape = (*current.shape[:2], held + current.shape[2], current.shape[3])
        assembled = self.ledger.take(torch.empty(shape, dtype=self.dtype, device=self.device))
        with self.ledger.scratch(decoding_scratch(plan, group, segment.index, codec, rows)):
            decode_tokens(codec, packed, assembled[:, :, :held], decoding_tokens(plan, group, codec, rows))
        assembled[:, :, held:] = current
        return assembled

    def _all(self, store: Store) -> Candidates:
        """The assembled candidates of all rows."""
        assert store.key is not None
        assert store.value is not None
        return Candidates(slice(0, store.key.shape[0]), store.key, store.value)

    def _read_rows(
        self,
        layer: int,
        segment: Segment,
        store: Store,
        query: Tensor,
        candidates: Candidates,
        chosen: Mapping[int, Tensor],
    ) -> Tensor:
        """Attention of some rows over what the plan lets ``store`` attend to."""
        attended, (_, _, tokens, _) = self.plan.attended(store.plan, segment.index), candidates.key.shape
        if attended == tokens:
            output = attention(query, candidates.key, candidates.value)
            self.watch(layer, segment, query, candidates.key, candidates.value)
            return output
        positions = self.ledger.take(chosen[attended][candidates.rows].clone())
        flat = flat_positions(positions, tokens)
        key = self.ledger.take(copy_rows(candidates.key, flat))
        value = self.ledger.take(copy_rows(candidates.value, flat))
        output = attention(query, key, value)
        for copied in (positions, key, value):
            self.ledger.give(copied)
        return output

    def _carry(self, store: Store, segment: Segment, key: Tensor, value: Tensor, chosen: Mapping[int, Tensor]) -> None:
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
            self._keep(store, flat, _MARKS)
        elif kept < candidates:
            self._keep_sources(store, segment, _MARKS)

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

    def _read(self, layer: int, segment: Segment, store: Store, query: Tensor, chosen: Mapping[int, Tensor]) -> Tensor:
        """Attention over what the plan lets ``store`` attend to; a set that is also carried is trimmed first."""
        plan, group, index = self.plan, store.plan, segment.index
        assert store.key is not None
        assert store.value is not None
        positions = chosen.get(plan.attended(group, index))
        if positions is None or plan.attended(group, index) == plan.candidates(group, index):
            output = attention(query, store.key, store.value)
            self.watch(layer, segment, query, store.key, store.value)
            return output
        if plan.views(group, index):
            key = self.ledger.take(copy_rows(store.key, positions))
            value = self.ledger.take(copy_rows(store.value, positions))
            output = attention(query, key, value)
            self.ledger.give(key)
            self.ledger.give(value)
            return output
        self._keep(store, positions)
        return attention(query, store.key, store.value)

    def _read_weighing(self, layer: int, segment: Segment, store: Store, query: Tensor) -> Tensor:
        """Attention over all candidates, which add up what it pays them: in one pass on a CPU, in two on a GPU."""
        geometry, candidates = self.plan.geometry, self._all(store)
        heads, tokens = candidates.key.shape[1:3]
        if query.is_cuda:
            output = attention(query, candidates.key, candidates.value)
        else:
            with self.ledger.scratch(weighing_scratch(geometry, heads, segment.tokens, tokens)):
                output, mass = attention_and_mass(query, candidates.key, candidates.value)
            candidates.mass = self.ledger.take(mass)
        self.watch(layer, segment, query, candidates.key, candidates.value)
        self._remember(layer, segment, store, candidates, query)
        self.ledger.give(candidates.mass)
        return output

    def watch(self, layer: int, segment: Segment, query: Tensor, key: Tensor, value: Tensor) -> None:
        """What attention has just read; a recording cache overrides this, the plain one does nothing.

        Args:
            layer: layer index.
            segment: the current segment.
            query: ``(rows, heads, segment.tokens, head_dim)``.
            key: ``(rows, heads, history + segment.tokens, head_dim)``.
            value: the same shape.

        Coded history comes some rows at a time, each with its queries.
        """

    def _assemble(self, store: Store, segment: Segment, key: Tensor, value: Tensor, marked: bool) -> None:
        """Grow the store by the current segment; each old tensor is freed before the next one grows."""
        self._assemble_marks(store, segment, key, marked)
        store.key = self._grow(store.key, key)
        store.value = self._grow(store.value, value)

    def _assemble_marks(self, store: Store, segment: Segment, key: Tensor, marked: bool) -> None:
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

    def _grow(self, old: Tensor | None, new: Tensor) -> Tensor:
        held = 0 if old is None else old.shape[2]
        shape = (*new.shape[:2], held + new.shape[2], *new.shape[3:])
        grown = self.ledger.take(torch.empty(shape, dtype=new.dtype, device=self.device))
        if old is not None:
            grown[:, :, :held] = old
        grown[:, :, held:] = new
        self.ledger.give(old)
        return grown

    def _keep(self, store: Store, positions: Tensor, names: tuple[str, ...] = _TENSORS) -> None:
        """Copy the survivors out, one tensor after the other, each freeing its source."""
        for name in names:
            candidates = getattr(store, name)
            if candidates is not None:
                setattr(store, name, self.ledger.take(copy_rows(candidates, positions)))
                self.ledger.give(candidates)
            del candidates

    def _keep_sources(self, store: Store, segment: Segment, names: tuple[str, ...] = _TENSORS) -> None:
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

    def _remember(
        self, layer: int, segment: Segment, store: Store, candidates: Candidates, observed: Tensor | None
    ) -> None:
        """Let every candidate add up what it was worth to this segment."""
        assert store.memory is not None
        for block, view in self._views(layer, segment, store, candidates, observed, capacity=0):
            store.memory[block] += self.policy.remember(view)

    def _positions(self, store: Store, segment: Segment) -> dict[int, Tensor]:
        """Room for the positions ``(rows, heads, size)`` of the sets that the plan asks for, by size."""
        rows, heads = self.plan.geometry.rows, len(store.plan.heads)
        sizes = self.plan.chosen(store.plan, segment.index) if self.plan.judges(store.plan, segment.index) else ()
        return {
            size: self.ledger.take(torch.empty((rows, heads, size), dtype=torch.int64, device=self.device))
            for size in sizes
        }

    def _choose(
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

    def _drop(self, store: Store) -> None:
        for name in _TENSORS:
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
