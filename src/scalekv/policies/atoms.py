"""HeatKV's schedule: which (source segment, head) cells are gone at which segment. Pure integer arithmetic.

A cell is called an atom; it holds all tokens of one source segment in one head of one layer. A slot number names the
head: ``layer * heads + head``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scalekv.planning import CacheGeometry, Schedule
from scalekv.planning.tables import Table

Atom = tuple[int, int]
"""Source segment, slot number."""

Orders = Mapping[int, Sequence[int]]
"""By source segment the slot numbers, those that go first in front."""


@dataclass(frozen=True)
class AtomPool:
    """What the atoms share.

    Args:
        schedule: the segments of the run.
        layers: number of layers.
        heads: heads per layer.
        sink: first segments that every head keeps.
        slots: the pool, at least the protected tokens of every head.
    """

    schedule: Schedule
    layers: int
    heads: int
    sink: int
    slots: int

    @classmethod
    def of(cls, geometry: CacheGeometry, sink: int, slots: int) -> AtomPool:
        """The pool of a run."""
        return cls(geometry.schedule, geometry.layers, geometry.heads, sink, slots)

    @property
    def cells(self) -> int:
        """Heads of all layers."""
        return self.layers * self.heads

    @property
    def protected(self) -> int:
        """Tokens that every head keeps."""
        return sum(self.schedule.tokens[: self.sink])

    def removal_counts(self) -> list[int]:
        """How many heads have lost each removable source when a segment is attended (HeatKV, code).

        ``x(t) = ceil(N (I(t) - b P) / (I(t) - R0))`` where the whole history ``I(t)`` of ``N`` heads exceeds the pool
        ``N b P``; exact, since the pool is whole slots.
        """
        starts = [self.schedule.start(target) for target in range(len(self.schedule))]
        over = [self.cells * start - self.slots for start in starts]
        return [
            min(self.cells, -(-excess // (start - self.protected))) if excess > 0 else 0
            for excess, start in zip(over, starts, strict=True)
        ]

    def uniform_removals(self, orders: Orders) -> list[set[Atom]]:
        """After each segment but the last, the atoms that are gone: equally many of every source (published)."""
        counts = self.removal_counts()
        return [
            {(source, slot) for source in range(self.sink, target + 1) for slot in orders[source][: counts[target + 1]]}
            for target in range(len(self.schedule) - 1)
        ]

    def density_removals(self, scores: Mapping[int, Table]) -> list[set[Atom]]:
        """The same where atoms of the largest score per token stay, as many as fit [inferred].

        An atom that does not fit is passed over for smaller ones, and what is gone stays gone.

        Args:
            scores: S-CAS, ``[layer][head]`` by source segment.
        """
        tokens = self.schedule.tokens
        densities = {
            (source, layer * self.heads + head): score / tokens[source]
            for source, table in scores.items()
            for layer, row in enumerate(table)
            for head, score in enumerate(row)
        }
        ranked = sorted(densities, key=lambda atom: (-densities[atom], -atom[0], atom[1]))
        removed: list[set[Atom]] = []
        gone: set[Atom] = set()
        for target in range(len(tokens) - 1):
            room = self.slots - self.cells * min(self.protected, self.schedule.start(target + 1))
            gone = set(gone)
            for atom in ranked:
                if atom[0] > target or atom in gone:
                    continue
                if tokens[atom[0]] <= room:
                    room -= tokens[atom[0]]
                else:
                    gone.add(atom)
            removed.append(gone)
        return removed

    def missing(self, removals: Sequence[set[Atom]], orders: Orders) -> list[set[Atom]]:
        """The atoms that are missing when each segment is attended, so that the pool holds inside segments too.

        While a segment is worked on, the layers that are done hold it already and the others have not yet dropped
        what must be gone after it. Where that exceeds the pool, atoms of those others are dropped sooner: last layer
        first, then the larger source segment, then by order (HeatKV's early activation, code). They are missing for
        the whole of the segment.

        Args:
            removals: of :meth:`uniform_removals` or :meth:`density_removals`.
            orders: the order of every source.
        """
        ranks = {(source, slot): rank for source, order in orders.items() for rank, slot in enumerate(order)}
        gone: set[Atom] = set()
        missing = []
        for target, required in enumerate(removals):
            missing.append(gone | self._early(target, gone, required, ranks))
            gone = required
        return [*missing, gone]

    def _early(self, target: int, gone: set[Atom], required: set[Atom], ranks: Mapping[Atom, int]) -> set[Atom]:
        tokens, heads = self.schedule.tokens, self.heads
        waiting = [atom for atom in required - gone if atom[0] < target]
        waiting.sort(key=lambda atom: (-(atom[1] // heads), -atom[0], ranks[atom]))
        held = self.cells * self.schedule.start(target) - sum(tokens[source] for source, _ in gone)
        early = 0
        for layer in range(self.layers):
            while len(waiting) > early and waiting[-1][1] // heads == layer:
                held -= tokens[waiting.pop()[0]]
            first = layer * heads
            held += tokens[target] * sum((target, slot) not in required for slot in range(first, first + heads))
            while held > self.slots and early < len(waiting):
                held -= tokens[waiting[early][0]]
                early += 1
        return set(waiting[:early])
