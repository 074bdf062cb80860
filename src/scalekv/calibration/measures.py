"""What is measured of one layer at one segment, for one row.

Everywhere ``query`` is ``(heads, tokens, head_dim)`` of the segment, ``key`` is ``(heads, candidates, head_dim)`` of
all tokens so far in float32, ``value`` likewise, and the softmax goes over all candidates. Attention exists for 64
queries at a time only.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from scalekv.cache.codecs import decode, encode
from scalekv.planning import Schedule, Segment
from scalekv.planning.codecs import VECTOR_CODECS, VectorCodec
from scalekv.planning.curves import curve_ranks
from scalekv.policies.grouping import group_means, nearest_groups
from scalekv.policies.observation import Observation
from scalekv.policies.scoring import pooled

QUERY_BLOCK = 64

WINDOW = Observation.parse("uniform:32")
"""Queries of the window statistics (HACK's rule)."""

WATCHERS = Observation.parse("uniform:64")
"""Queries whose outputs' loss is measured."""

POOL_WIDTH = 5
"""Of the average pool of SnapKV's score."""


def attention_rows(query: Tensor, key: Tensor) -> Iterator[Tensor]:
    """Attention of some queries at a time: ``(heads, at most 64, candidates)`` float32."""
    for block in query.split(QUERY_BLOCK, dim=1):
        yield torch.softmax(block.float() @ key.mT, dim=-1)


def selectivity(query: Tensor, key: Tensor, schedule: Schedule, segment: Segment, top: int) -> dict[str, Tensor]:
    """The Attention Selectivity Index (ScaleKV, arXiv 2505.19602, eq. 2) and where attention goes; means over heads.

    ``asi`` is per head ``mean_i(current) * mean_i(top-K' of history)``; ``current``, ``first``, ``previous`` and
    ``others`` are the mass on the current segment, the first one, the one before, and all else (a segment that is both
    first and previous counts as first).

    Args:
        query: of the sampled queries only, at least one.
        key: see above; with at least one token of history.
        schedule: of the run.
        segment: the current one.
        top: K', clamped to the history.
    """
    history, first_end = schedule.start(segment.index), schedule[0].tokens
    previous_start = max(schedule.start(segment.index - 1), first_end)
    total = torch.zeros((5, query.shape[0]), device=query.device)
    for weights in attention_rows(query, key):
        past, current = weights[..., :history], weights[..., history:].sum(-1)
        largest = past.topk(min(top, history), dim=-1).values.sum(-1)
        first, previous = past[..., :first_end].sum(-1), past[..., previous_start:].sum(-1)
        others = past.sum(-1) - first - previous
        total += torch.stack([current, largest, first, previous, others]).sum(-1)
    current, largest, first, previous, others = total / query.shape[1]
    table = {"asi": current * largest, "current": current, "first": first, "previous": previous, "others": others}
    return {name: value.mean() for name, value in table.items()}


def mass_and_sigma(query: Tensor, key: Tensor, schedule: Schedule, segment: Segment) -> tuple[Tensor, Tensor]:
    """Attention mass by source, and its variance over queries, from sums and sums of squares per column.

    Returns:
        ``mass`` ``(sources, heads)``: mean over all queries of the attention to all tokens of a source segment, the
        current one included; ``sigma`` ``(heads,)``: population variance over all queries, summed over candidates
        (HACK, arXiv 2504.09261).
    """
    # Not every accelerator computes in float64.
    wide = torch.float32 if key.device.type == "mps" else torch.float64
    sums = torch.zeros(key.shape[:2], dtype=wide, device=key.device)
    squares = torch.zeros_like(sums)
    for weights in attention_rows(query, key):
        exact = weights.to(wide)
        sums += exact.sum(1)
        squares += exact.square_().sum(1)
    mean = sums / query.shape[1]
    sigma = (squares / query.shape[1] - mean.square()).clamp_(min=0).sum(-1)
    sources = mean.split(schedule.tokens[: segment.index + 1], dim=-1)
    return torch.stack([source.sum(-1) for source in sources]), sigma


def window_statistics(query: Tensor, key: Tensor, segment: Segment) -> tuple[Tensor, Tensor, Tensor]:
    """What 32 evenly spaced queries see (all queries of a smaller segment).

    Returns:
        ``entropy`` and ``variance``, scalars of CAKE (arXiv 2503.12491) over all tokens that are no window queries,
        heads summed: ``-sum a log a``, and the population variance over queries, summed over tokens (the divisor
        cancels between layers); ``curve`` ``(heads, points)``: SnapKV's scores (arXiv 2404.14469), mean attention in an
        average pool of 5, by falling rank, at the ranks of :func:`~scalekv.planning.curves.curve_ranks`.
    """
    positions = torch.tensor(WINDOW.positions(segment), device=query.device)
    weights = next(attention_rows(query.index_select(1, positions), key))
    outside = torch.ones(key.shape[1], dtype=torch.bool, device=key.device)
    outside[positions + (key.shape[1] - segment.tokens)] = False
    seen = weights[..., outside]
    spread = (seen - seen.mean(1, keepdim=True)).square().mean(1).sum()
    scores = pooled(weights.mean(1)[None], "average", POOL_WIDTH)[0].sort(-1, descending=True).values
    ranks = torch.tensor(curve_ranks(key.shape[1]), device=key.device) - 1
    return torch.special.entr(seen).sum(), spread, scores.index_select(-1, ranks)


def scale_similarity(key: Tensor, schedule: Schedule, segment: Segment) -> Tensor:
    """How like the keys are to those of the segment before, 0 at most (AMS-KV; its measure is not printed in full).

    Minus the root of the mean over heads, tokens and channels of the squared difference to the keys of the segment
    before, resized linearly to the map of this one [inferred].

    Args:
        key: see above.
        schedule: of the run.
        segment: not the first.
    """
    before = schedule[segment.index - 1]
    maps = []
    for one in (before, segment):
        tokens = key[:, schedule.start(one.index) : schedule.start(one.index + 1)]
        maps.append(tokens.unflatten(1, (one.frames, one.height, one.width)).movedim(-1, 1))
    resized = F.interpolate(maps[0], size=maps[1].shape[2:], mode="trilinear")
    distance: Tensor = (maps[1] - resized).square().mean().sqrt()
    return -distance


def merging_loss(query: Tensor, key: Tensor, value: Tensor, segment: Segment, history: int) -> Tensor:
    """The squared error of attention's output if history had been merged to fewer tokens, as `Bytewise` does [ours].

    Args:
        query: see above.
        key: see above.
        value: see above.
        segment: the current one, whose watchers read.
        history: tokens, at least one.

    Returns:
        ``(heads, points)``: length of the error squared, mean over watchers, for as many tokens of history as
        :func:`~scalekv.planning.curves.curve_ranks` says; 0 at the last point.
    """
    watching = _watching(query, segment)
    exact = torch.softmax(watching @ key.mT, dim=-1) @ value
    errors = [
        (_read_merged(watching, key, value, history, kept) - exact).square().sum(-1).mean(-1)
        for kept in curve_ranks(history)[:-1]
    ]
    return torch.stack([*errors, torch.zeros_like(exact[:, 0, 0])], dim=-1)


def _read_merged(watching: Tensor, key: Tensor, value: Tensor, history: int, kept: int) -> Tensor:
    """Attention over ``kept`` groups of the history and the current segment."""
    one = torch.ones((1, len(key), history), device=key.device)
    past = [vectors[None, :, :history] for vectors in (key, value)]
    groups = nearest_groups(past[0], past[1], one, kept)
    counts = torch.zeros((1, len(key), kept), device=key.device).scatter_add_(2, groups, one)
    keys, values = (group_means(vectors, one, groups, counts)[0] for vectors in past)
    bias = torch.cat([counts[0].log(), torch.zeros_like(key[:, history:, 0])], dim=1)
    weights = torch.softmax(watching @ torch.cat([keys, key[:, history:]], 1).mT + bias[:, None], dim=-1)
    return weights @ torch.cat([values, value[:, history:]], 1)


def coding_loss(query: Tensor, key: Tensor, value: Tensor, segment: Segment, history: int) -> dict[str, Tensor]:
    """The squared error of attention's output if the history had been held in a codec [ours].

    Args:
        query: see above.
        key: see above.
        value: see above.
        segment: the current one, whose watchers read.
        history: tokens, at least one.

    Returns:
        ``(heads,)`` by ``"key_int8"``, ``"value_int8"`` and so on, for the codecs that suit the heads: length of the
        error squared, mean over watchers.
    """
    watching, losses = _watching(query, segment), {}
    exact = torch.softmax(watching @ key.mT, dim=-1)
    for codec in VECTOR_CODECS.values():
        if codec.exact or key.shape[-1] % codec.pack:
            continue
        keys, values = (_coded(codec, one, history) for one in (key, value))
        rounded = torch.softmax(watching @ keys.mT, dim=-1)
        losses[f"key_{codec.name}"] = ((rounded - exact) @ value).square().sum(-1).mean(-1)
        losses[f"value_{codec.name}"] = (exact @ (values - value)).square().sum(-1).mean(-1)
    return losses


def _watching(query: Tensor, segment: Segment) -> Tensor:
    positions = torch.tensor(WATCHERS.positions(segment), device=query.device)
    return query.index_select(1, positions).float()


def _coded(codec: VectorCodec, vectors: Tensor, history: int) -> Tensor:
    """``vectors`` with the first ``history`` tokens as they come back from ``codec``."""
    size = codec.vector_bytes(vectors.shape[-1], vectors.element_size())
    packed = torch.empty((len(vectors), history, size), dtype=torch.uint8, device=vectors.device)
    encode(codec, vectors[:, :history], packed)
    rounded = vectors.clone()
    decode(codec, packed, rounded[:, :history])
    return rounded
