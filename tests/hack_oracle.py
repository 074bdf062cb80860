"""The synthetic attention of ``data/hack_vectors.json``: two layers of four heads on segments of 1, 4, 9, 16 tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from scalekv.planning import Schedule

VECTORS = json.loads((Path(__file__).parent / "data" / "hack_vectors.json").read_text())
SCHEDULE = Schedule.from_sides([1, 2, 3, 4])
LAYERS, HEADS = VECTORS["inputs"]["L"], VECTORS["inputs"]["H"]


def logits(layer: int, head: int, segment: int) -> np.ndarray:
    """Logits (queries, candidates) of a segment; the file counts segments from 1."""
    queries, candidates = np.mgrid[: SCHEDULE[segment].tokens, : SCHEDULE.start(segment + 1)]
    phase = 0.7 * (layer + 1) + 0.9 * head + 0.31 * candidates + 0.17 * queries + 0.53 * (segment + 1)
    return (1 + 0.5 * head) * np.sin(phase)


def attention(layer: int, head: int, segment: int) -> np.ndarray:
    """Softmax of :func:`logits`."""
    weights = np.exp(logits(layer, head, segment))
    return weights / weights.sum(-1, keepdims=True)


def mass() -> tuple:
    """Attention from segment to source, ``[segment][source][layer][head]``, queries averaged."""

    def cell(segment: int, source: int) -> tuple:
        columns = slice(SCHEDULE.start(source), SCHEDULE.start(source + 1))
        return tuple(
            tuple(float(attention(layer, head, segment)[:, columns].sum(-1).mean()) for head in range(HEADS))
            for layer in range(LAYERS)
        )

    return tuple(tuple(cell(segment, source) for source in range(segment + 1)) for segment in range(len(SCHEDULE)))


def sigma() -> tuple:
    """Variance over queries, summed over candidates, ``[segment][layer][head]``."""
    return tuple(
        tuple(
            tuple(float(attention(layer, head, segment).var(0).sum()) for head in range(HEADS))
            for layer in range(LAYERS)
        )
        for segment in range(len(SCHEDULE))
    )
