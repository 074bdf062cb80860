"""Compiled loops give the bits that PyTorch gives, on one thread and on several."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scalekv import kernels
from scalekv.cache import KVCache
from scalekv.cache.codecs import decode, encode, encode_means, has_loops
from scalekv.kernels import launch
from scalekv.planning import VECTOR_CODECS, CacheGeometry, Schedule
from scalekv.policies import Bytewise
from scalekv.policies.grouping import means_by_part, nearest_groups, search_for

pytest.importorskip("numba", reason="the loops need the extra scalekv[cpu]")

INTEGERS = [VECTOR_CODECS[name] for name in ("int8", "int6", "int4")]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def without_loops(monkeypatch):
    """Do without compiled loops from now on."""
    return lambda: monkeypatch.setattr(launch, "available", lambda: False)


def vectors(seed: int, head_dim: int, tokens: int, dtype: torch.dtype) -> torch.Tensor:
    """Of very different sizes, some of them zero, next to nothing, or of one number; seen through a transposition."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(2, tokens, 3, head_dim, generator=generator)
    drawn *= torch.rand(2, tokens, 3, 1, generator=generator).mul(30).exp()
    drawn[0, 0] = torch.tensor([0.0, 1e-33, 5.0])[:, None]
    return drawn.to(dtype).transpose(1, 2)


def coded(codec, source: torch.Tensor) -> torch.Tensor:
    """In a tensor with room to spare beside it."""
    size = codec.vector_bytes(source.shape[-1], source.element_size())
    out = torch.zeros((*source.shape[:2], source.shape[2] + 3, size), dtype=torch.uint8)
    encode(codec, source, out[:, :, 2:-1])
    return out


@pytest.mark.parametrize("codec", INTEGERS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "tokens"), [(4, 3), (16, 70), (64, 33), (128, 40)])
def test_codes_are_the_same(codec, dtype, head_dim, tokens, without_loops):
    source = vectors(1, head_dim, tokens, dtype)
    assert has_loops(codec, source)
    packed = coded(codec, source)
    found = torch.empty_like(source)
    decode(codec, packed[:, :, 2:-1], found)
    without_loops()
    assert torch.equal(coded(codec, source), packed)
    expected = torch.empty_like(source)
    decode(codec, packed[:, :, 2:-1], expected)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("codec", INTEGERS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_vectors_that_are_not_finite_stay_so(codec, number):
    source = torch.ones(1, 1, 3, 16)
    source[0, 0, 1, 5] = number
    packed = torch.empty((1, 1, 3, codec.vector_bytes(16, 4)), dtype=torch.uint8)
    encode(codec, source, packed)
    found = torch.empty_like(source)
    decode(codec, packed, found)
    assert found[0, 0, 1].isnan().all()
    assert found[0, 0, ::2].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 90), st.data())
def test_means_of_groups_are_the_same(dtype, seed, tokens, data):
    kept = data.draw(st.integers(1, tokens))
    pair, generator = [vectors(seed + half, 16, tokens, dtype) for half in (0, 1)], torch.Generator().manual_seed(seed)
    count = torch.randint(1, 9, (2, 3, tokens), generator=generator).float()
    groups = torch.randint(0, kept, (2, 3, tokens), generator=generator)
    codecs = [VECTOR_CODECS[name] for name in ("int6", "int4")]
    found = [torch.empty((2, 3, kept, codec.vector_bytes(16, 4)), dtype=torch.uint8) for codec in codecs]
    sums = torch.full((2, 3, kept), -7.0)
    encode_means(codecs, pair, count, groups, sums, found)
    assert torch.equal(sums, torch.zeros(2, 3, kept).scatter_add_(2, groups, count))
    for codec, source, out in zip(codecs, pair, found, strict=True):
        expected = torch.empty_like(out)
        for part, means in means_by_part(source, count, groups, sums):
            encode(codec, means, expected[part])
        assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1, 5, 24, 64]), st.integers(1, 150), st.integers(0, 1), st.data())
def test_groups_are_the_same(dtype, seed, head_dim, tokens, rounds, data):
    kept, generator = data.draw(st.integers(1, tokens)), torch.Generator().manual_seed(seed)
    pair = torch.randn(2, 2, tokens, 3, head_dim, generator=generator).to(dtype).transpose(2, 3)
    heights = torch.rand(tokens, generator=generator) if seed % 2 else None
    given_ = (*pair, torch.ones(2, 3, tokens), kept, rounds, heights, 2)
    found = nearest_groups(*given_)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "available", lambda: False)
        assert torch.equal(nearest_groups(*given_), found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "tokens"), [(1, 1), (5, 2), (24, 37), (64, 100)])
def test_centres_are_the_same(dtype, head_dim, tokens, without_loops):
    pair = [vectors(seed, head_dim, tokens, dtype) for seed in (3, 4)]
    places, groups = np.arange(0, tokens, 2), torch.empty((2, 3, tokens), dtype=torch.int64)

    def found() -> list[torch.Tensor]:
        search = search_for(*pair, groups, len(places))
        centres, spreads, lengths = search.centres(places)
        assert groups[:, :, places].flatten(0, 1).tolist() == [list(range(len(places)))] * 6
        assert torch.equal(lengths, search.lengths(centres))
        return [centres, spreads, lengths]

    in_loops = found()
    without_loops()
    assert all(map(torch.equal, found(), in_loops))


def test_the_first_of_equal_numbers_is_the_largest():
    near = torch.tensor([-1.0, -0.0, 0.0, 2.0, 3.0, 3.0, -5.0, -4.0, -4.0])
    found, pair = torch.full((1, 1, 5), -1), torch.zeros(2, 1, 1, 5, 4).unbind()
    kernels.Searching(pair, found, torch.empty(0), near).put_largest(np.array([4, 0, 2]), 3, 10)
    assert found.tolist() == [[[11, -1, 11, -1, 11]]]


def outputs(dtype: torch.dtype, budget: str) -> list[torch.Tensor]:
    """Of two layers that attend through a cache that merges and codes."""
    geometry = CacheGeometry(2, 2, 16, Schedule.from_sides([1, 2, 4, 6, 8, 9]), batch=2, element_bytes=dtype.itemsize)
    policy, generator, found = Bytewise(budget, allocation="uniform"), torch.Generator().manual_seed(5), []
    with KVCache(policy.plan(geometry), policy, dtype=dtype) as cache:
        for segment in geometry.schedule:
            cache.begin(segment)
            for layer in range(2):
                shape = (3, geometry.rows, 2, segment.tokens, 16)
                found.append(cache.attend(layer, *torch.randn(shape, generator=generator).to(dtype)))
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("budget", ["30%", "10%"])
def test_a_cache_reads_the_same(dtype, budget, without_loops):
    found = outputs(dtype, budget)
    without_loops()
    assert all(map(torch.equal, found, outputs(dtype, budget)))


def test_threads_change_nothing(monkeypatch):
    codec, source = VECTOR_CODECS["int4"], vectors(2, 64, 200, torch.float32)
    alone = coded(codec, source)
    monkeypatch.setattr(launch, "SHARE", 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(coded(codec, source), alone)


def test_a_compilation_holds_no_memory(monkeypatch):
    numba, loops = pytest.importorskip("numba"), pytest.importorskip("scalekv.kernels.loops")
    monkeypatch.setattr(loops, "encode", numba.njit(loops.encode.py_func))
    codec, source = VECTOR_CODECS["int8"], torch.ones(1, 1, 2, 16)
    packed, storage = torch.empty((1, 1, 2, 20), dtype=torch.uint8), weakref.ref(source.untyped_storage())
    gc.disable()
    try:
        encode(codec, source, packed)
        del source
        assert storage() is None
    finally:
        gc.enable()


def test_what_the_loops_cannot_do_is_left_to_pytorch():
    fits = torch.ones(1, 1, 2, 16)
    assert kernels.runs_on(fits)
    strided, flat, half = torch.ones(1, 1, 2, 32)[..., ::2], torch.ones(2, 16), fits.half()
    assert not any(map(kernels.runs_on, (strided, flat, half, fits[:, :, :0], fits.to("meta"))))
    assert not kernels.runs_on(fits, fits.clone().requires_grad_())
    assert not any(has_loops(VECTOR_CODECS["int8"], torch.ones(1, 1, 2, size)) for size in (24, 256))
    assert not any(has_loops(VECTOR_CODECS[name], fits) for name in ("none", "fp8"))
