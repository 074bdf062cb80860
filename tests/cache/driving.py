"""Drive a cache as a network would: seeded queries, keys and values for every layer of every segment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from live_bytes import LiveBytes
from scalekv.cache import KVCache
from scalekv.planning import CacheGeometry, HeadGroup, Moment, Profile, Segment
from scalekv.policies import Policy

SMALL = 2048  # bytes: index lists of a few entries per head


def tensors(geometry: CacheGeometry, segment: Segment, layer: int, dtype=torch.float32, device="cpu") -> list[Tensor]:
    """Query, key, value and the bare projection of one layer and segment; the same for every caller."""
    generator = torch.Generator().manual_seed(1000 * segment.index + layer)
    shape = (4, geometry.rows, geometry.heads, segment.tokens, geometry.head_dim)
    query, key, value, bare = torch.randn(shape, generator=generator)
    return [tensor.to(device, dtype) for tensor in (2 * query, key, value, bare)]


def run(
    policy: Policy, geometry: CacheGeometry, profile: Profile | None = None, dtype=torch.float32, device="cpu"
) -> tuple[dict[tuple[int, int], Tensor], KVCache]:
    """Outputs by (segment, layer) and the closed cache."""
    outputs = {}
    with KVCache(policy.plan(geometry, profile), policy, dtype=dtype, device=device) as cache:
        for segment, layer, output in steps(cache, geometry, dtype):
            outputs[segment.index, layer] = output
    return outputs, cache


def steps(cache: KVCache, geometry: CacheGeometry, dtype=torch.float32) -> Iterator[tuple[Segment, int, Tensor]]:
    for segment in geometry.schedule:
        cache.begin(segment)
        for layer in range(geometry.layers):
            query, key, value, bare = tensors(geometry, segment, layer, dtype, cache.device)
            output = cache.attend(
                layer, query, key, value, projected_query=lambda positions, bare=bare: bare[:, :, positions]
            )
            yield segment, layer, output


def reference(geometry: CacheGeometry) -> dict[tuple[int, int], Tensor]:
    """Plain softmax attention over everything seen so far, in float64."""
    outputs, history = {}, {}
    for segment in geometry.schedule:
        for layer in range(geometry.layers):
            query, key, value, _ = (tensor.double() for tensor in tensors(geometry, segment, layer))
            if layer in history:
                key = torch.cat([history[layer][0], key], dim=2)
                value = torch.cat([history[layer][1], value], dim=2)
            history[layer] = key, value
            outputs[segment.index, layer] = torch.softmax(query @ key.mT, -1) @ value
    return outputs


def moments(cache: KVCache) -> dict[tuple[int, int], Moment]:
    return {(moment.segment, moment.layer): moment for moment in cache.plan.moments()}


def compare_with_witness(witness: LiveBytes, cache: KVCache, ambient: int, segment, layer: int, moment: Moment) -> None:
    """One attention call: what lives after it is what is planned, and no more than planned lives inside it."""
    own = cache.plan.geometry
    network = replace(own, heads=own.network_heads, guidance=own.guidance * own.parts, parts=1)
    query, key, value, bare = tensors(network, segment, layer, cache.dtype)
    given = witness.live - ambient - moment.before
    witness.reset()
    output = cache.attend(layer, query, key, value, projected_query=lambda positions: bare[:, :, positions])
    assert witness.live - ambient - given - output.untyped_storage().nbytes() == moment.after
    statistics = output.numel() // output.shape[-1] * 4  # of the attention kernel
    groups = cache.plan.layers[layer]
    gathered = len(groups) > 1 or own.parts > 1
    by_rows = any(_by_rows(cache, group, segment.index) for group in groups)
    copies = 3 * output.nbytes if gathered else 2 * output.nbytes if by_rows else output.nbytes
    assert witness.peak - ambient - given <= moment.peak + copies + statistics + SMALL


def _by_rows(cache: KVCache, group: HeadGroup, segment: int) -> bool:
    """Whether some rows at a time are attended, each with an output of its own."""
    plan = cache.plan
    return plan.codes(group, segment) or plan.merges(group, segment) or plan.counted(group, segment)
