"""Hypothesis strategies for the nouns of planning, shared by all tests."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from scalekv.planning import CacheGeometry, Profile, Schedule
from scalekv.planning.tables import cell_shape
from scalekv.policies import (
    AMSKV,
    CAKE,
    H2O,
    AdaKV,
    Bytewise,
    Hack,
    HackPP,
    HeatKV,
    Policy,
    PyramidKV,
    Random,
    ScaleKV,
    SlidingWindow,
    SnapKV,
    StreamingLLM,
)


@st.composite
def schedules(draw, longest: int = 8, side: int = 9) -> Schedule:
    shapes = draw(st.lists(st.tuples(st.integers(1, side), st.integers(1, side)), min_size=1, max_size=longest))
    return Schedule.from_shapes(shapes)


@st.composite
def geometries(draw, layers: int = 5, heads: int = 3, **sizes) -> CacheGeometry:
    return CacheGeometry(
        layers=draw(st.integers(1, layers)),
        heads=draw(st.integers(1, heads)),
        head_dim=4,
        schedule=draw(schedules(**sizes)),
        batch=draw(st.integers(1, 2)),
        guidance=draw(st.integers(1, 2)),
        element_bytes=4,
    )


MEASURED = {
    "statistics": ("asi", "window_entropy", "window_variance", "scale_similarity"),
    "head_statistics": ("sigma",),
    "source_statistics": ("mass",),
    "curves": ("snapkv",),
}
"""The tables that published methods ask for."""

MEASURED_FOR_MERGING = {
    "head_statistics": ("sensitivity", "sensitivity_unguided"),
    "source_statistics": ("mass",),
    "curves": ("merging",),
}
"""The tables that Bytewise asks for."""


def measured(geometry: CacheGeometry, seed: int, names: Mapping[str, tuple[str, ...]] = MEASURED) -> dict[str, Any]:
    """All tables of ``names``, with numbers in 0 .. 1 of very different size."""
    numbers, sides = random.Random(seed), (geometry.schedule, geometry.layers, geometry.heads)

    def cell(shape: tuple[int, ...]) -> Any:
        return tuple(cell(shape[1:]) for _ in range(shape[0])) if shape else numbers.random() ** 4

    return {
        kind: {
            name: tuple(cell(cell_shape(kind, *sides, segment)) for segment in range(len(geometry.schedule)))
            for name in tables
        }
        for kind, tables in names.items()
    }


@st.composite
def profiles(draw, geometry: CacheGeometry) -> Profile | None:
    """No profile, or all tables with or without published roles, with or without those for merging."""
    kind, merging = draw(st.sampled_from(["none", "roles", "tables"])), draw(st.booleans())
    if kind == "none":
        return None
    layers, segments = geometry.layers, len(geometry.schedule)
    subset = st.sets(st.integers(0, layers - 1)).map(lambda chosen: tuple(sorted(chosen)))
    roles = {index: draw(subset) for index in range(segments)} if kind == "roles" else None
    seed = draw(st.integers(0, 2**20))
    tables = measured(geometry, seed)
    if merging:
        extra = measured(geometry, seed, MEASURED_FOR_MERGING)
        tables = {kind: {**tables[kind], **extra.get(kind, {})} for kind in tables}
    return Profile("drawn", layers, geometry.heads, geometry.schedule, roles=roles, **tables)


def policies(**settings) -> st.SearchStrategy[Policy]:
    """Every compressing method, with its options and any codec; ``settings`` are fixed."""
    flags = st.booleans()
    scale = st.builds(
        ScaleKV,
        scorer=st.sampled_from(["attention", "projection"]),
        pooling=st.sampled_from(["average", "max", "none"]),
        exact_division=flags,
        centered=flags,
        refiner_floor=st.integers(0, 30),
        drafter_share=st.floats(0, 1),
    )
    plain = st.sampled_from([SlidingWindow(), StreamingLLM(), StreamingLLM(sink_segments=0), Random(), Random(seed=3)])
    every = scale | plain | _language_model_baselines() | next_scale_rivals()
    return st.builds(lambda policy, codec: replace(policy, **{"codec": codec, **settings}), every, codecs())


def codecs() -> st.SearchStrategy[str]:
    """Codecs by name, one for both or for keys and values apart; half of the time none."""
    names = st.sampled_from(["none", "int8", "int6", "int4", "fp8"])
    return st.just("none") | names | st.builds("{}/{}".format, names, names)


def _language_model_baselines() -> st.SearchStrategy[Policy]:
    share, times = st.floats(0, 1), st.sampled_from(["after", "before"])
    snap = {
        "timing": times,
        "queries": st.sampled_from(["uniform:32", "uniform:5", "last:8", "random:3", "centers", "all"]),
        "pooling": st.sampled_from(["average", "max", "none"]),
        "keep_window": st.booleans(),
    }
    return st.one_of(
        st.builds(SnapKV, **snap),
        st.builds(PyramidKV, **snap, beta=st.floats(1, 40)),
        st.builds(CAKE, **snap, tau1=st.floats(0.1, 10), tau2=st.floats(0.1, 10)),
        st.builds(AdaKV, **snap, alpha=share, groups=st.integers(1, 3)),
        st.builds(
            Bytewise,
            timing=times,
            reduction=st.sampled_from(["damage", "attention"]),
            queries=st.sampled_from(["uniform:64", "uniform:5", "all"]),
        ),
        st.builds(Bytewise, rounds=st.integers(0, 2), floor=share, groups=st.integers(1, 3)),
        st.builds(H2O, timing=times, recent_fraction=share, per_query=st.booleans()),
    )


def next_scale_rivals() -> st.SearchStrategy[Policy]:
    share, times, few = st.floats(0, 1), st.sampled_from(["after", "before"]), st.integers(1, 3)
    return st.one_of(
        st.builds(Hack, timing=times, alpha=share, contextual_share=share, init_segments=few),
        st.builds(HackPP, alpha=share, tau=st.floats(0, 3), attention_share=st.floats(0.05, 1), floor=few),
        st.builds(HeatKV, allocation=st.sampled_from(["uniform", "density"]), sink_scales=few),
        st.builds(AMSKV, expanding_share=share, condensed_scales=few),
    )
