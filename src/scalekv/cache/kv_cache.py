"""The storage that executes a plan. Shapes are ``(rows, heads, tokens, head_dim)`` throughout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType

import torch
from torch import Tensor
from typing_extensions import Self

from scalekv.cache.attention import attention, attention_and_mass, attention_mass
from scalekv.cache.choosing import Chooser, ProjectedQuery
from scalekv.cache.codecs import decode_tokens
from scalekv.cache.keeping import Keeper
from scalekv.cache.ledger import Ledger
from scalekv.cache.merging import Merger
from scalekv.cache.report import CacheReport
from scalekv.cache.selection import copy_rows, flat_positions
from scalekv.cache.stores import Candidates, HeadIndex, Store
from scalekv.planning import CachePlan, HeadGroup, Segment, VectorCodec
from scalekv.planning.coding import decoded_rows, decoding_scratch, decoding_tokens
from scalekv.planning.token_merging import counting_scratch
from scalekv.planning.weighing import weighing_scratch
from scalekv.policies import Policy


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
        self._chooser = Chooser(plan, policy, self.ledger, self.device)
        self._keeper = Keeper(plan, policy, self.ledger, dtype, self.device)
        self._merger = Merger(plan, policy, self.ledger, dtype, self.device)
        self._stores = [[self._store(group) for group in groups] for groups in plan.layers]
        self._segment: Segment | None = None
        self._next_layer = plan.geometry.layers
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
                self._keeper.drop(store)
        self._chooser.close()
        self._segment = None

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
        self._chooser.begin(segment)

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
            observed = self._chooser.observe(query, projected_query)
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
        self._keeper.assemble(store, segment, key, value, marked=kept > 0 or judged)
        output = None
        if plan.weighs(group, index) and not self.policy.projected_observation:
            output = self._read_weighing(layer, segment, store, query)
        elif plan.remembers(index):
            self._chooser.remember(layer, segment, store, self._all(store), observed)
        chosen = self._chooser.room(store, segment)
        if judged:
            self._chooser.choose(layer, segment, store, self._all(store), observed, chosen)
            chosen = {size: flat_positions(positions, candidates) for size, positions in chosen.items()}
        if output is None:
            output = self._read(layer, segment, store, query, chosen)
        if not kept:
            self._keeper.drop(store)
        elif kept in chosen and kept != plan.attended(group, index):
            self._keeper.keep(store, chosen[kept])
        elif group.sources is not None and kept < candidates:
            self._keeper.keep_sources(store, segment)
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
            self._keeper.assemble_marks(store, segment, key, marked=kept > 0 or judged)
        else:
            self._keeper.assemble(store, segment, key, value, marked=kept > 0 or judged)
        chosen, output = self._chooser.room(store, segment), torch.empty_like(query)
        for candidates in self._candidates(store, segment, key, value):
            rows = candidates.rows
            if plan.remembers(index):
                self._chooser.remember(layer, segment, store, candidates, observed)
            if judged:
                self._chooser.choose(layer, segment, store, candidates, observed, chosen)
            output[rows] = self._read_rows(layer, segment, store, query[rows], candidates, chosen)
            del candidates
        if kept:
            self._keeper.carry(store, segment, key, value, chosen)
        else:
            self._keeper.drop(store)
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
            self._keeper.assemble(store, segment, key, value, marked=False)
        self._keeper.count_arrivals(store, segment)
        fresh, outputs = self._merger.room(store, segment) if merges else None, []
        for candidates in self._candidates(store, segment, key, value):
            outputs.append(self._read_counted(store, segment, query[candidates.rows], candidates))
            if fresh is not None:
                self._merger.merge(layer, segment, store, candidates, fresh)
            del candidates
        if fresh is not None:
            self._keeper.drop(store)
            store.key, store.value, store.count = fresh.key, fresh.value, fresh.count
        elif not plan.carried(group, index):
            self._keeper.drop(store)
        elif plan.codes(group, index):
            self._keeper.carry(store, segment, key, value, {})
        return _joined(outputs)

    def _read_counted(self, store: Store, segment: Segment, query: Tensor, candidates: Candidates) -> Tensor:
        """Attention in which a token weighs as much as all that it stands for."""
        assert store.count is not None
        with self.ledger.scratch(counting_scratch(self.plan, store.plan, segment.index, len(query))):
            bias = store.count[candidates.rows].log().to(self.dtype)
            return attention(query, candidates.key, candidates.value, bias)

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
        self._keeper.keep(store, positions)
        return attention(query, store.key, store.value)

    def _read_weighing(self, layer: int, segment: Segment, store: Store, query: Tensor) -> Tensor:
        """Attention over all candidates, which add up what it pays them.

        On a CPU in one pass, once tokens were dropped: it rounds otherwise than attention alone, and a bit that flips
        in an early segment changes all that is drawn after it. On a GPU the policy scores.
        """
        candidates = self._all(store)
        if query.is_cuda:
            output = attention(query, candidates.key, candidates.value)
        else:
            heads, tokens = candidates.key.shape[1:3]
            with self.ledger.scratch(weighing_scratch(self.plan.geometry, heads, segment.tokens, tokens)):
                if self.plan.whole(store.plan, segment.index):
                    output = attention(query, candidates.key, candidates.value)
                    mass = attention_mass(query, candidates.key)
                else:
                    output, mass = attention_and_mass(query, candidates.key, candidates.value)
                candidates.mass = self.ledger.take(mass)  # there while they are added up, beside the scratch
        self.watch(layer, segment, query, candidates.key, candidates.value)
        self._chooser.remember(layer, segment, store, candidates, query)
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


def _joined(rows: list[Tensor]) -> Tensor:
    """Some rows after the others."""
    return rows[0] if len(rows) == 1 else torch.cat(rows)
