"""What methods derive from a profile's head tables: scores, priors, classes and orders. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scalekv.errors import InvalidInput
from scalekv.planning.profile import Profile
from scalekv.planning.tables import HeadTable, Table


def scas(profile: Profile, sink: int) -> dict[int, Table]:
    """The scale-dependent cumulative attention score (HeatKV, arXiv 2605.14877).

    ``1 / (K - 1 - s) * sum over segments t > s of mass[t][s]``: what a later segment pays, on average, to all of
    segment ``s``.

    Args:
        profile: with the table ``"mass"``.
        sink: first segments, which are always kept and not scored; 3 in the paper.

    Returns:
        ``[layer][head]`` by source segment, ``sink .. K-2``; the last segment is never stored.

    Raises:
        ProfileError: no such table.
        InvalidInput: ``sink`` below 0.
    """
    if sink < 0:
        raise InvalidInput(f"Segments that are always kept are counted from 0, got sink={sink}.")
    mass, last = profile.source_table("mass"), len(profile.schedule) - 1
    return {
        source: _scaled_sum([mass[target][source] for target in range(source + 1, last + 1)], 1 / (last - source))
        for source in range(sink, last)
    }


def removal_orders(profile: Profile, sink: int) -> dict[int, tuple[int, ...]]:
    """Slots (``layer * heads + head``) by source segment, the least attended first; ties by head, then layer (HeatKV).

    Args:
        profile: with the table ``"mass"``.
        sink: see :func:`scas`.
    """
    return {source: _ascending(scores) for source, scores in scas(profile, sink).items()}


def _ascending(scores: Table) -> tuple[int, ...]:
    heads = len(scores[0])
    ranked = sorted((score, head, layer) for layer, row in enumerate(scores) for head, score in enumerate(row))
    return tuple(layer * heads + head for _, head, layer in ranked)


def scale_prior(profile: Profile) -> tuple[HeadTable, ...]:
    """HACK++'s scale prior (arXiv 2606.08302), mean attention to one token of a source: ``mass[k][s] / n_s``.

    Returns:
        ``[segment][layer][head][source]``, the segment itself included.

    Raises:
        ProfileError: no table ``"mass"``.
    """
    layers, heads = range(profile.layers), range(profile.heads)
    return tuple(
        tuple(tuple(token_prior(profile, segment, layer, head) for head in heads) for layer in layers)
        for segment in range(len(profile.schedule))
    )


def token_prior(profile: Profile, segment: int, layer: int, head: int) -> tuple[float, ...]:
    """One head's row of :func:`scale_prior`, ``[source]``.

    Raises:
        ProfileError: no table ``"mass"``.
    """
    cell, tokens = profile.source_table("mass")[segment], profile.schedule.tokens
    return tuple(table[layer][head] / tokens[source] for source, table in enumerate(cell))


def future_reliance(profile: Profile) -> HeadTable:
    """HACK++'s future reliance (arXiv 2606.08302), how much later segments use a token of history.

    ``gamma[k] = sum over segments q > k of (sum over s < q of mass[q][s]) / (tokens before q)``.

    Returns:
        ``[segment][layer][head]``, without the last segment.

    Raises:
        ProfileError: no table ``"mass"``.
    """
    mass, schedule = profile.source_table("mass"), profile.schedule
    history = [_scaled_sum(mass[later][:later], 1 / schedule.start(later)) for later in range(1, len(schedule))]
    return tuple(_scaled_sum(history[segment:], 1.0) for segment in range(len(schedule) - 1))


def contextual_heads(profile: Profile, share: float) -> tuple[int, ...]:
    """The heads whose queries all look at the same tokens (HACK, arXiv 2504.09261).

    Those with the lowest ``"sigma"`` at the last segment over all layers; ``floor(share * slots + 0.5)`` of them, ties
    to the smaller slot [inferred].

    Args:
        profile: with the table ``"sigma"``.
        share: of all heads, 0 to 1.

    Returns:
        Slots (``layer * heads + head``), ascending.

    Raises:
        ProfileError: no such table.
    """
    sigma = [value for row in profile.head_table("sigma")[-1] for value in row]
    ranked = sorted(range(len(sigma)), key=lambda slot: (sigma[slot], slot))
    return tuple(sorted(ranked[: math.floor(share * len(sigma) + 0.5)]))


def _scaled_sum(tables: Sequence[Table], scale: float) -> Table:
    return tuple(
        tuple(scale * math.fsum(values) for values in zip(*rows, strict=True)) for rows in zip(*tables, strict=True)
    )


ATTENDED = ("current", "previous", "first", "others")
"""Where attention goes, as a share each: tables of a measured profile."""


def mean_attention(profile: Profile) -> dict[str, tuple[float, ...]] | None:
    """Shares of attention by layer, averaged over the segments that have all four of ``ATTENDED`` (the fourth on).

    Returns:
        For each of ``ATTENDED`` one share per layer; ``None`` without the tables, or without such segments.
    """
    tables = [profile.statistics.get(name) for name in ATTENDED]
    if len(profile.schedule) < 4 or any(table is None for table in tables):
        return None
    found = {}
    for name, table in zip(ATTENDED, tables, strict=True):
        assert table is not None
        columns = zip(*table[3:], strict=True)
        found[name] = tuple(sum(column) / len(column) for column in columns)
    return found
