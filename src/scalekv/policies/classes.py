"""Contextual and structural heads, the two classes of HACK and HACK++, as head groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from scalekv.planning import CacheGeometry, HeadGroup, Profile
from scalekv.planning.reliance import contextual_heads
from scalekv.policies.layers import Layers

CONTEXTUAL = "contextual"
"""Every query looks at the same few tokens."""

STRUCTURAL = "structural"
"""Each query looks at places related to its own."""


class HeadClass(NamedTuple):
    """The heads of one class in one layer."""

    layer: int
    role: str
    heads: tuple[int, ...]


def classified(geometry: CacheGeometry, profile: Profile, alpha: float) -> list[HeadClass]:
    """The heads of every layer by class, contextual ones first; empty classes are left out.

    Args:
        geometry: the shape of the run.
        profile: with the table ``"sigma"``.
        alpha: share of all heads that is contextual.

    Raises:
        ProfileError: no such table.
    """
    contextual = set(contextual_heads(profile, alpha))
    found = []
    for layer in range(geometry.layers):
        first = layer * geometry.heads
        for role in (CONTEXTUAL, STRUCTURAL):
            heads = tuple(
                head for head in range(geometry.heads) if (first + head in contextual) == (role == CONTEXTUAL)
            )
            if heads:
                found.append(HeadClass(layer, role, heads))
    return found


def unclassified(geometry: CacheGeometry, role: str) -> list[HeadClass]:
    """All heads in one class."""
    return [HeadClass(layer, role, tuple(range(geometry.heads))) for layer in range(geometry.layers)]


def grouped(geometry: CacheGeometry, classes: Sequence[HeadClass], capacities: Sequence[Sequence[int]]) -> Layers:
    """One head group per class; ``capacities[class][segment]``."""
    layers: list[list[HeadGroup]] = [[] for _ in range(geometry.layers)]
    for (layer, role, heads), capacity in zip(classes, capacities, strict=True):
        layers[layer].append(HeadGroup(heads, tuple(capacity), role=role))
    return tuple(tuple(groups) for groups in layers)
