"""What the recording cache measures, against plain attention, and on a synthetic model with planted drafters."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hack_oracle import HEADS, LAYERS, SCHEDULE, VECTORS, logits, mass, sigma
from scalekv.cache import KVCache
from scalekv.calibration import AttentionStatistics, RecordingCache
from scalekv.planning import CacheGeometry, Profile, Schedule
from scalekv.planning.curves import curve_ranks
from scalekv.planning.reliance import contextual_heads, future_reliance, scale_prior
from scalekv.policies import Full, ScaleKV

GEOMETRY = CacheGeometry(4, 3, 8, Schedule.from_sides([1, 2, 4, 6, 8]), batch=2, guidance=2, element_bytes=4)
DIFFUSE = (1, 3)


def tensors(segment, layer: int, seed: int) -> list[torch.Tensor]:
    """Diffuse layers attend everywhere alike; the others look sharply at tokens like themselves."""
    generator = torch.Generator().manual_seed(997 * seed + 31 * segment.index + layer)
    shape = (3, GEOMETRY.rows, GEOMETRY.heads, segment.tokens, GEOMETRY.head_dim)
    query, key, value = torch.randn(shape, generator=generator)
    return [query * 0.05 if layer in DIFFUSE else key * 4, key, value]


def drive(cache: KVCache, seed: int = 0) -> list[torch.Tensor]:
    outputs = []
    with cache:
        for segment in GEOMETRY.schedule:
            cache.begin(segment)
            outputs += [cache.attend(layer, *tensors(segment, layer, seed)) for layer in range(GEOMETRY.layers)]
    return outputs


def record(statistics: AttentionStatistics, seed: int = 0, **settings) -> list[torch.Tensor]:
    return drive(RecordingCache(GEOMETRY, statistics, dtype=torch.float32, seed=seed, **settings), seed)


def measured(*seeds: int, **settings) -> Profile:
    statistics = AttentionStatistics(GEOMETRY)
    for seed in seeds:
        record(statistics, seed, **settings)
    return statistics.profile("synthetic")


def naive(seed: int, top: int) -> dict[str, torch.Tensor]:
    """The definitions, from the full attention matrix of the conditional rows; ``[segment][layer]``."""
    schedule = GEOMETRY.schedule
    tables = {name: torch.zeros(len(schedule), GEOMETRY.layers) for name in ("asi", "current", "first", "previous")}
    history: dict[int, torch.Tensor] = {}
    for segment in schedule:
        for layer in range(GEOMETRY.layers):
            query, key, _ = (tensor[: GEOMETRY.batch] for tensor in tensors(segment, layer, seed))
            history[layer] = torch.cat([history[layer], key], 2) if layer in history else key
            start = schedule.start(segment.index)
            if not start:
                continue
            weights = torch.softmax(query @ history[layer].mT, -1)
            current = weights[..., start:].sum(-1).mean(-1)
            largest = weights[..., :start].sort(-1, descending=True).values[..., :top].sum(-1).mean(-1)
            place = segment.index, layer
            tables["asi"][place] = (current * largest).mean()
            tables["current"][place] = current.mean()
            tables["first"][place] = weights[..., 0].mean()
            tables["previous"][place] = weights[..., max(schedule.start(segment.index - 1), 1) : start].sum(-1).mean()
    return tables


def close(found, expected, **tolerance) -> None:
    np.testing.assert_allclose(np.array(found), np.array(expected), **{"atol": 2e-6, "rtol": 1e-4, **tolerance})


def test_selectivity_is_the_definition():
    found = measured(0, queries=1000, top=7).statistics
    for name, expected in naive(0, 7).items():
        close(found[name], expected)
    total = sum(np.array(found[name]) for name in ("current", "first", "previous", "others"))
    close(total[1:], np.ones((4, 4)))


def attention_of(segment, layer: int, seed: int = 0) -> np.ndarray:
    """Attention ``(images, heads, queries, candidates)`` of the conditional rows in float64."""
    query = tensors(segment, layer, seed)[0][: GEOMETRY.batch].double()
    keys = torch.cat([tensors(one, layer, seed)[1][: GEOMETRY.batch] for one in GEOMETRY.schedule.segments], 2)
    return torch.softmax(query @ keys[:, :, : GEOMETRY.schedule.start(segment.index + 1)].double().mT, -1).numpy()


def test_mass_and_sigma_are_the_definitions():
    found, schedule = measured(0, queries=3), GEOMETRY.schedule
    for segment in schedule:
        for layer in range(GEOMETRY.layers):
            weights = attention_of(segment, layer)
            close(found.head_statistics["sigma"][segment.index][layer], weights.var(2).sum(-1).mean(0))
            columns = np.split(weights, np.cumsum(schedule.tokens)[: segment.index], axis=-1)
            cell = found.source_statistics["mass"][segment.index]
            for source, part in zip(cell, columns, strict=True):
                close(source[layer], part.sum(-1).mean((0, 2)))


def window(tokens: int) -> list[int]:
    return [(2 * index + 1) * tokens // 64 for index in range(32)] if tokens > 32 else list(range(tokens))


def test_window_statistics_are_the_definitions():
    found = measured(0).statistics
    for segment in GEOMETRY.schedule:
        observed = window(segment.tokens)
        for layer in range(GEOMETRY.layers):
            weights = attention_of(segment, layer)[:, :, observed]
            seen = np.delete(weights, GEOMETRY.schedule.start(segment.index) + np.array(observed), axis=-1)
            entropy = -(seen * np.log(seen)).sum((1, 2, 3)).mean()
            close(found["window_entropy"][segment.index][layer], entropy)
            close(found["window_variance"][segment.index][layer], seen.var(2).sum((1, 2)).mean())


def test_curves_are_sorted_scores_averaged_over_images():
    found = measured(0).curves["snapkv"]
    for segment in GEOMETRY.schedule:
        for layer in range(GEOMETRY.layers):
            scores = attention_of(segment, layer)[:, :, window(segment.tokens)].mean(2)
            padded = np.pad(scores, ((0, 0), (0, 0), (2, 2)))
            average = sum(padded[..., shift : shift + scores.shape[-1]] for shift in range(5)) / 5
            falling = -np.sort(-average, axis=-1)
            ranks = np.array(curve_ranks(scores.shape[-1]))
            close(found[segment.index][layer], falling.mean(0)[:, ranks - 1])


def test_scale_similarity_resizes_linearly():
    schedule = Schedule.from_shapes([(1, 2), (1, 4)])
    geometry = CacheGeometry(1, 1, 1, schedule, guidance=1, element_bytes=4)
    statistics = AttentionStatistics(geometry)
    with RecordingCache(geometry, statistics, dtype=torch.float32) as cache:
        for segment, keys in zip(schedule, ([0.0, 4.0], [0.0, 1.0, 3.0, 8.0]), strict=True):
            cache.begin(segment)
            tensor = torch.tensor(keys).reshape(1, 1, -1, 1)
            cache.attend(0, tensor, tensor, tensor)
    # 0 4 resized to four places, half a place apart from the ends: 0 1 3 4
    close(statistics.profile("m").statistics["scale_similarity"], [[0.0], [-2.0]])


def test_published_formulas_on_synthetic_attention():
    """Queries are the wanted logits, keys the unit vectors: attention is that of the check vectors."""
    geometry = CacheGeometry(LAYERS, HEADS, 32, SCHEDULE, guidance=2, element_bytes=4)
    statistics = AttentionStatistics(geometry)
    with RecordingCache(geometry, statistics, dtype=torch.float32) as cache:
        for segment in SCHEDULE:
            cache.begin(segment)
            start, end = SCHEDULE.start(segment.index), SCHEDULE.start(segment.index + 1)
            for layer in range(LAYERS):
                query = torch.zeros(2, HEADS, segment.tokens, 32)
                for head in range(HEADS):
                    query[0, head, :, :end] = torch.from_numpy(logits(layer, head, segment.index))
                key = torch.eye(32)[start:end].expand_as(query).contiguous()
                cache.attend(layer, query, key, key)
    profile = statistics.profile("synthetic")
    precise = {"atol": 1e-6, "rtol": 2e-6}
    close(profile.head_statistics["sigma"][-1], VECTORS["sigma"], **precise)
    close(profile.head_statistics["sigma"], sigma(), **precise)
    close(scale_prior(profile)[2], VECTORS["phi_k3"], **precise)
    close(future_reliance(profile), [VECTORS["gamma"][str(scale)] for scale in (1, 2, 3)], **precise)
    assert list(contextual_heads(profile, VECTORS["alpha"])) == VECTORS["contextual_slot_ids"]
    for cell, expected in zip(profile.source_statistics["mass"], mass(), strict=True):
        close(cell, expected, **precise)


def test_images_of_all_runs_are_averaged():
    both, first, second = measured(0, 1), measured(0), measured(1)
    for kind in ("statistics", "head_statistics", "source_statistics", "curves"):
        for name, table in getattr(both, kind).items():
            for cell, one, other in zip(table, getattr(first, kind)[name], getattr(second, kind)[name], strict=True):
                close(cell, (np.array(one) + np.array(other)) / 2, rtol=1e-5)


def test_recording_changes_nothing():
    plain = drive(KVCache(Full().plan(GEOMETRY), Full(), dtype=torch.float32))
    recorded = record(AttentionStatistics(GEOMETRY))
    assert all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True))


def test_recording_leaves_the_global_random_stream_alone():
    torch.manual_seed(5)
    record(AttentionStatistics(GEOMETRY))
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize("queries", [16, 256])
def test_planted_diffuse_layers_become_the_drafters(queries):
    profile = measured(0, 1, queries=queries, top=4)
    pool = int(0.3 * 4 * GEOMETRY.schedule.history_tokens)
    drafters = ScaleKV(drafter_share=0.5).drafters(GEOMETRY, pool, profile)
    assert drafters == dict.fromkeys(drafters, DIFFUSE)
    assert len(drafters) >= 2
