"""What a token of history is worth to each head, from a profile, and how heads share a pool by it [ours].

Notation: head ``h`` of some layer, boundary ``k`` after segment ``k``. ``E[k][h](n)`` is the squared error of the
head's output at the next segment if only its best ``n`` candidates are carried over the boundary (curve ``"merging"``),
``S[k][h]`` the empirical Fisher information of the draws of segment ``k`` about that output (``"sensitivity"``),
``m[k][s][h]`` the attention mass that segment ``k`` pays to segment ``s`` and ``N_k`` its tokens. To second order the
distribution of the draws moves by half of

    J[k][h](n) = E[k][h](n) * sum over j > k of N_j * S[j][h] * (M_j / M_(k+1))^2,   M_j = m[j][0] + ... + m[j][k],

where the last factor says how much less later segments look at this history than the next one does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from scalekv.planning.curves import curve_ranks
from scalekv.planning.profile import Profile

if TYPE_CHECKING:
    from scalekv.planning.plan import CachePlan, HeadGroup

GUIDED, UNGUIDED = "sensitivity", "sensitivity_unguided"
"""Tables of the conditional rows, or of all where guidance is 1, and of the unconditional ones."""

STEPS = 4
"""Points of a loss curve between two measured ranks, which are powers of 2."""

_LEAST = 1e-30

Loss = tuple[tuple[float, float], ...]
"""Points (tokens kept, loss), both strictly monotonic and convex; the last point has loss 0."""


@dataclass(frozen=True, eq=False)
class _Known:
    """A profile as a key of the cache: the same object, not an equal one."""

    profile: Profile

    def __hash__(self) -> int:
        return id(self.profile)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Known) and other.profile is self.profile


def head_losses(profile: Profile, boundary: int, parts: int = 1) -> tuple[Loss, ...]:
    """The loss ``J`` of every head (``layer * heads + head``) by the tokens that it carries over a boundary.

    Args:
        profile: with the tables ``"merging"``, ``"sensitivity"`` and ``"mass"``; of two parts
            ``"sensitivity_unguided"`` too.
        boundary: index of the segment before it, not the last.
        parts: 2 where the unconditional rows of a layer's heads follow as heads of their own, see
            :meth:`CacheGeometry.apart`.

    Raises:
        ProfileError: a table is missing.
    """
    return _head_losses(_Known(profile), boundary, parts)


@lru_cache(maxsize=64)
def _head_losses(known: _Known, boundary: int, parts: int) -> tuple[Loss, ...]:
    profile = known.profile
    curves, tokens = profile.curve_table("merging")[boundary], profile.schedule.start(boundary + 1)
    weights = [_weights(profile, boundary, table) for table in (GUIDED, UNGUIDED)[:parts]]
    return tuple(
        _convex(_fine([weight * error for error in curve], tokens))
        for layer, curves_of_layer in enumerate(curves)
        for part in weights
        for curve, weight in zip(curves_of_layer, part[layer], strict=True)
    )


def _weights(profile: Profile, boundary: int, table: str) -> list[list[float]]:
    """What stands beside ``E`` in ``J``, ``[layer][head]``, by one table of sensitivities."""
    mass, sensitivity = profile.source_table("mass"), profile.head_table(table)
    tokens, heads = profile.schedule.tokens, range(profile.heads)

    def seen(segment: int, layer: int, head: int) -> float:
        return math.fsum(mass[segment][source][layer][head] for source in range(boundary + 1))

    def weight(layer: int, head: int) -> float:
        nearest = max(seen(boundary + 1, layer, head), _LEAST)
        return math.fsum(
            tokens[later] * sensitivity[later][layer][head] * (seen(later, layer, head) / nearest) ** 2
            for later in range(boundary + 1, len(tokens))
        )

    return [[weight(layer, head) for head in heads] for layer in range(profile.layers)]


def _fine(losses: Sequence[float], tokens: int) -> list[tuple[float, float]]:
    """A curve at powers of 2 with points between them: logarithms are straight lines, the last piece is one itself."""
    known = [(float(rank), max(loss, 0.0)) for rank, loss in zip(curve_ranks(tokens), losses, strict=True)]
    points = known[:1]
    for (low, more), (high, less) in pairwise(known):
        if less > _LEAST:
            slope = math.log(max(less, _LEAST) / max(more, _LEAST)) / math.log(high / low)
            inner = [low * (high / low) ** (step / STEPS) for step in range(1, STEPS)]
            points += [(rank, more * (rank / low) ** slope) for rank in inner]
        points.append((high, less))
    return points


def _convex(points: Sequence[tuple[float, float]]) -> Loss:
    """The lower convex hull of points with growing first coordinates, as far as it falls."""
    hull: list[tuple[float, float]] = []
    for point in points:
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], point):
            hull.pop()
        hull.append(point)
    while len(hull) > 1 and hull[-2][1] <= hull[-1][1]:
        hull.pop()
    return tuple(hull)


def _slope(one: tuple[float, float], other: tuple[float, float]) -> float:
    return (other[1] - one[1]) / (other[0] - one[0])


def predicted_damage(plan: CachePlan, profile: Profile) -> float:
    """By how much, to second order, a plan that merges moves the distribution of a picture's draws, in nats.

    ``1/2 * sum over segments, layers and heads of N * S * (E + error of the codec)``, as if every history had been
    merged and rounded once, at the boundary before its segment.

    Args:
        plan: of a policy that merges.
        profile: with the tables ``"merging"``, ``"sensitivity"`` and those of the codecs, such as ``"key_int6"``.

    Raises:
        ProfileError: a table is missing.
    """
    schedule = profile.schedule
    return 0.5 * math.fsum(
        segment.tokens * _group_damage(plan, profile, layer, group, segment.index)
        for layer, groups in enumerate(plan.layers)
        for group in groups
        for segment in schedule.segments[1:]
    )


def _group_damage(plan: CachePlan, profile: Profile, layer: int, group: HeadGroup, segment: int) -> float:
    history, kept = profile.schedule.start(segment), group.capacity[segment]
    curves = profile.curve_table("merging")[segment - 1][layer]
    tables = []
    if plan.reads_coded(group, segment):
        halves = zip(("key", "value"), group.halves_at(segment), strict=True)
        tables = [f"{half}_{codec.name}" for half, codec in halves if not codec.exact]
    total = 0.0
    for place in group.heads:
        part, head = divmod(place, profile.heads)
        error = _loss_at(_fine(curves[head], history), kept)
        error += math.fsum(profile.head_table(table)[segment][layer][head] for table in tables)
        kinds = (GUIDED, UNGUIDED)[part : part + 1] if plan.geometry.parts > 1 else _kinds(profile)
        total += error * math.fsum(profile.head_table(kind)[segment][layer][head] for kind in kinds)
    return total


def _kinds(profile: Profile) -> tuple[str, ...]:
    """The tables of sensitivities of all rows."""
    return (GUIDED, UNGUIDED) if UNGUIDED in profile.head_statistics else (GUIDED,)


def _loss_at(points: Sequence[tuple[float, float]], kept: int) -> float:
    """The loss at ``kept`` tokens, straight between points; that of the first below it."""
    for (low, more), (high, less) in pairwise(points):
        if low <= kept <= high:
            return more + (kept - low) / (high - low) * (less - more)
    return points[0][1] if kept < points[0][0] else points[-1][1]


class _Step(NamedTuple):
    """One piece of one head's curve."""

    slope: float
    head: int
    tokens: float


def shared_pool(losses: Sequence[Loss], pool: int, least: int, available: Sequence[int]) -> list[int]:
    """Tokens of every head that make the summed loss smallest: the steepest pieces of all curves first.

    Args:
        losses: of every head.
        pool: tokens of all heads together.
        least: tokens that every head gets in any case, as far as it has them.
        available: candidates of each head.

    Returns:
        One count per head, none above ``available``; together at most ``pool``, or all there is.
    """
    if sum(available) <= pool:
        return list(available)
    counts = [float(min(least, count)) for count in available]
    left = pool - sum(counts)
    for step in sorted(_steps(losses, counts, available)):
        taken = min(step.tokens, left)
        counts[step.head] += taken
        left -= taken
        if left <= 0:
            break
    found = [math.floor(count + 1e-9) for count in counts]
    return _filled(found, pool - sum(found), available)


def _steps(losses: Sequence[Loss], counts: Sequence[float], available: Sequence[int]) -> list[_Step]:
    """The pieces of all curves above what heads have already, and what no curve reaches, which is worth nothing."""
    steps = []
    for head, (curve, first, last) in enumerate(zip(losses, counts, available, strict=True)):
        reached = first
        for low, high in pairwise(curve):
            start, stop = max(low[0], reached), min(high[0], last)
            if stop > start:
                steps.append(_Step(_slope(low, high), head, stop - start))
                reached = stop
        if last > reached:
            steps.append(_Step(0.0, head, last - reached))
    return steps


def _filled(counts: list[int], left: int, available: Sequence[int]) -> list[int]:
    """Give what rounding left over to heads that have room, one token each, in order."""
    for head, most in enumerate(available):
        if left <= 0:
            break
        given = min(1, left, most - counts[head])
        counts[head] += given
        left -= given
    return counts
