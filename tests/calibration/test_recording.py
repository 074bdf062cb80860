"""What the recording cache measures, against plain attention, and on a synthetic model with planted drafters."""

from __future__ import annotations

import pytest
import torch

from scalekv.cache import KVCache
from scalekv.calibration import AttentionStatistics, RecordingCache
from scalekv.planning import CacheGeometry, Profile, Schedule
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


def test_statistics_are_the_definitions():
    statistics = AttentionStatistics(5, 4)
    record(statistics, queries=1000, top=7)
    found = statistics.mean()
    for name, expected in naive(0, 7).items():
        torch.testing.assert_close(torch.tensor(found[name]), expected, atol=1e-5, rtol=1e-4)
    total = sum(torch.tensor(found[name]) for name in ("current", "first", "previous", "others"))
    torch.testing.assert_close(total[1:], torch.ones(4, 4), atol=1e-5, rtol=0)


def test_images_of_all_runs_are_averaged():
    both, first, second = (AttentionStatistics(5, 4) for _ in range(3))
    record(both, 0)
    record(both, 1)
    record(first, 0)
    record(second, 1)
    mean = (torch.tensor(first.mean()["asi"]) + torch.tensor(second.mean()["asi"])) / 2
    torch.testing.assert_close(torch.tensor(both.mean()["asi"]), mean)


def test_recording_changes_nothing():
    plain = drive(KVCache(Full().plan(GEOMETRY), Full(), dtype=torch.float32))
    recorded = record(AttentionStatistics(5, 4))
    assert all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True))


def test_recording_leaves_the_global_random_stream_alone():
    torch.manual_seed(5)
    record(AttentionStatistics(5, 4))
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize("queries", [16, 256])
def test_planted_diffuse_layers_become_the_drafters(queries):
    statistics = AttentionStatistics(5, 4)
    for seed in range(2):
        record(statistics, seed, queries=queries, top=4)
    profile = Profile("synthetic", 4, 3, GEOMETRY.schedule, statistics=statistics.mean())
    pool = int(0.3 * 4 * GEOMETRY.schedule.history_tokens)
    drafters = ScaleKV(drafter_share=0.5).drafters(GEOMETRY, pool, profile)
    assert drafters == dict.fromkeys(drafters, DIFFUSE)
    assert len(drafters) >= 2
