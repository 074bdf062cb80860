"""Head groups of all layers: equal ones, and changes that any method's plan can undergo [ours]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from scalekv.planning import CacheGeometry, Codec, HeadGroup, Schedule

Layers = tuple[tuple[HeadGroup, ...], ...]


def dense(geometry: CacheGeometry, capacities: Sequence[Sequence[int]]) -> Layers:
    """One head group per layer holding all heads; ``capacities[layer][segment]``."""
    heads = tuple(range(geometry.heads))
    return tuple((HeadGroup(heads, tuple(capacity)),) for capacity in capacities)


def uniform(geometry: CacheGeometry, slots: int) -> Layers:
    """The same capacity for every layer and head: what arrives is kept up to an equal share of the pool."""
    share = slots // (geometry.layers * geometry.heads)
    schedule = geometry.schedule
    capacity = tuple(min(share, schedule.start(index)) for index in range(len(schedule)))
    return dense(geometry, [capacity] * geometry.layers)


def over_segments(
    schedule: Schedule, parts: int, divide: Callable[[int, Sequence[int]], Sequence[int]]
) -> list[list[int]]:
    """Capacities ``[part][segment]``, decided at one boundary between segments after the other.

    Args:
        schedule: the segments of the run.
        parts: layers or heads.
        divide: ``divide(segment, available)`` says what each part holds for ``segment``, at most ``available``: what it
            held before, and the segment before.
    """
    capacities = [[0] for _ in range(parts)]
    for index in range(1, len(schedule)):
        available = [held[-1] + schedule[index - 1].tokens for held in capacities]
        for held, tokens in zip(capacities, divide(index, available), strict=True):
            held.append(tokens)
    return capacities


def of_whole_segments(heads: Sequence[int], sources: Sequence[Sequence[int]], schedule: Schedule) -> HeadGroup:
    """A head group that holds whole segments; ``sources`` says which, for every segment, ascending."""
    tokens = schedule.tokens
    capacity = tuple(sum(tokens[source] for source in held) for held in sources)
    return HeadGroup(tuple(heads), capacity, sources=tuple(tuple(held) for held in sources))


def quota_groups(quotas: Sequence[Sequence[int]], most: int) -> tuple[HeadGroup, ...]:
    """At most ``most`` groups of heads with like quotas, each with the mean of its heads, rounded down [ours].

    Heads in the order of their quotas over all segments are cut into parts of as equal a number as can be: what is
    copied for one call of attention, beside the cache, is then as small as can be.

    Args:
        quotas: ``[head][segment]``.
        most: at least 1.
    """
    order = sorted(range(len(quotas)), key=lambda head: (sum(quotas[head]), head))
    parts = min(most, len(order))
    edges = [part * len(order) // parts for part in range(parts + 1)]
    by_capacity: dict[tuple[int, ...], list[int]] = {}
    for heads in (order[start:end] for start, end in pairwise(edges)):
        columns = zip(*(quotas[head] for head in heads), strict=True)
        by_capacity.setdefault(tuple(sum(column) // len(heads) for column in columns), []).extend(heads)
    return tuple(HeadGroup(tuple(sorted(heads)), capacity) for capacity, heads in by_capacity.items())


def bounded(layers: Layers, slots: int) -> Layers:
    """Trim shrinking groups as little as needed a segment sooner, so that a pool holds at every moment.

    While a segment is worked on, the layers that are done hold what the next segment reads and the others what this
    one reads; where growing layers come before shrinking ones the sum exceeds both ends. HeatKV (arXiv 2605.14877)
    calls the remedy early activation and works on atoms; this is the same for capacities. Groups of whole segments
    stay as they are.

    Args:
        layers: head groups with capacities whose sum never exceeds ``slots`` between segments.
        slots: the pool.
    """
    groups = [group for layer in layers for group in layer]
    held = [list(group.capacity) for group in groups]
    for segment in range(len(held[0]) - 2, 0, -1):
        _bound_segment(groups, held, segment, slots)
    lists = iter(held)
    return tuple(tuple(replace(group, capacity=tuple(next(lists))) for group in layer) for layer in layers)


def _bound_segment(groups: Sequence[HeadGroup], held: list[list[int]], segment: int, slots: int) -> None:
    while True:
        now = sum(len(group.heads) * capacity[segment] for group, capacity in zip(groups, held, strict=True))
        worst, last_done = now, -1
        for index, (group, capacity) in enumerate(zip(groups, held, strict=True)):
            now += len(group.heads) * (capacity[segment + 1] - capacity[segment])
            if now > worst:
                worst, last_done = now, index
        if worst <= slots or not _take(groups, held, segment, last_done + 1, worst - slots):
            return


def _take(groups: Sequence[HeadGroup], held: list[list[int]], segment: int, first: int, excess: int) -> int:
    """Take ``excess`` slots from the groups from ``first`` on, in proportion to what they lose at the next segment."""
    rooms = {
        index: held[index][segment] - held[index][segment + 1]
        for index in range(first, len(groups))
        if groups[index].sources is None and held[index][segment] > held[index][segment + 1]
    }
    total = sum(len(groups[index].heads) * room for index, room in rooms.items())
    taken = 0
    for index, room in reversed(rooms.items()):
        if taken >= excess:
            break
        tokens = min(room, -(-excess * room // total))
        held[index][segment] -= tokens
        taken += tokens * len(groups[index].heads)
    return taken


def coded(layers: Layers, codec: Codec, start: int) -> Layers:
    """The same groups with history held in ``codec`` from segment ``start`` on."""
    return tuple(tuple(replace(group, codec=codec, coded_from=start) for group in groups) for groups in layers)


def finer_coded(layers: Layers, finer: tuple[tuple[int, Codec], ...], start: int) -> Layers:
    """The same coded groups, with history in finer codecs until segment ``start``."""
    return tuple(tuple(replace(group, finer=finer, coded_from=start) for group in groups) for groups in layers)


def dropped_before(layers: Layers, schedule: Schedule) -> Layers:
    """Let every group attend only to what it carries on, and at the last segment to as many as it ever holds."""
    return tuple(tuple(_dropped_before(group, schedule) for group in groups) for groups in layers)


def _dropped_before(group: HeadGroup, schedule: Schedule) -> HeadGroup:
    if group.attended is not None or group.sources is not None:
        return group
    tokens, capacity = schedule.tokens, group.capacity
    candidates = [held + arriving for held, arriving in zip(capacity, tokens, strict=True)]
    carried = [*capacity[1:], candidates[-1]]
    if carried[:-1] != candidates[:-1]:
        carried[-1] = min(candidates[-1], max(capacity))
    return replace(group, attended=tuple(max(1, count) for count in carried))
