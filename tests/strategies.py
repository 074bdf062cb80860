"""Hypothesis strategies for the nouns of planning, shared by all tests."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from scalekv.planning import CacheGeometry, Profile, Schedule
from scalekv.policies import Policy, Random, ScaleKV, SlidingWindow, StreamingLLM


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


@st.composite
def profiles(draw, geometry: CacheGeometry) -> Profile | None:
    """No profile, published roles, or an ASI table."""
    kind = draw(st.sampled_from(["none", "roles", "asi"]))
    if kind == "none":
        return None
    layers, segments = geometry.layers, len(geometry.schedule)
    common = {"model": "drawn", "layers": layers, "heads": geometry.heads, "schedule": geometry.schedule}
    if kind == "roles":
        subset = st.sets(st.integers(0, layers - 1)).map(lambda chosen: tuple(sorted(chosen)))
        return Profile(**common, roles={index: draw(subset) for index in range(segments)})
    row = st.tuples(*[st.floats(0, 1)] * layers)
    return Profile(**common, statistics={"asi": tuple(draw(row) for _ in range(segments))})


def policies(**settings) -> st.SearchStrategy[Policy]:
    """Every compressing method, with its options; ``settings`` are fixed."""
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
    return (scale | plain).map(lambda policy: _with(policy, settings))


def _with(policy: Policy, settings: dict) -> Policy:
    return replace(policy, **settings)
