"""What methods derive from the head tables, against published formulas on synthetic attention."""

from __future__ import annotations

import numpy as np
import pytest

from hack_oracle import HEADS, LAYERS, SCHEDULE, VECTORS, attention, mass, sigma
from scalekv.errors import InvalidInput, ProfileError
from scalekv.planning import Profile, Schedule
from scalekv.planning.reliance import contextual_heads, future_reliance, removal_orders, scale_prior, scas

PROFILE = Profile(
    "synthetic",
    LAYERS,
    HEADS,
    SCHEDULE,
    head_statistics={"sigma": sigma()},
    source_statistics={"mass": mass()},
)


def test_the_oracle_is_the_file():
    np.testing.assert_allclose(PROFILE.head_table("sigma")[-1], VECTORS["sigma"], atol=1e-11)


def test_scale_prior():
    np.testing.assert_allclose(scale_prior(PROFILE)[2], VECTORS["phi_k3"], atol=1e-11)


def test_future_reliance():
    expected = [VECTORS["gamma"][str(scale)] for scale in (1, 2, 3)]
    np.testing.assert_allclose(future_reliance(PROFILE), expected, atol=1e-11)


@pytest.mark.parametrize("sink", [0, 1, 2])
def test_scas_is_the_mean_over_later_segments(sink):
    found = scas(PROFILE, sink)
    assert list(found) == list(range(sink, 3))
    for source, scores in found.items():
        columns = slice(SCHEDULE.start(source), SCHEDULE.start(source + 1))
        for layer, head in np.ndindex(LAYERS, HEADS):
            paid = [attention(layer, head, later)[:, columns].sum(-1).mean() for later in range(source + 1, 4)]
            assert scores[layer][head] == pytest.approx(np.mean(paid), rel=1e-12)


def test_orders_remove_the_least_attended_first():
    orders = removal_orders(PROFILE, 1)
    for source, order in orders.items():
        scores = np.ravel(scas(PROFILE, 1)[source])
        assert sorted(order) == list(range(LAYERS * HEADS))
        assert (np.diff(scores[list(order)]) >= 0).all()


def test_equal_scores_go_by_head_then_layer():
    flat = tuple(tuple(((0.5,) * 3,) * 2 for _ in range(segment + 1)) for segment in range(3))
    profile = Profile("flat", 2, 3, Schedule.from_sides([1, 2, 3]), source_statistics={"mass": flat})
    assert removal_orders(profile, 1) == {1: (0, 3, 1, 4, 2, 5)}


def test_contextual_heads():
    assert list(contextual_heads(PROFILE, VECTORS["alpha"])) == VECTORS["contextual_slot_ids"]
    assert contextual_heads(PROFILE, 0) == ()
    assert contextual_heads(PROFILE, 1) == tuple(range(8))
    even = Profile("even", 2, 2, SCHEDULE, head_statistics={"sigma": (((1.0, 1.0),) * 2,) * 4})
    assert contextual_heads(even, 0.125) == (0,)


@pytest.mark.parametrize("derive", [scale_prior, future_reliance, lambda profile: scas(profile, 3)])
def test_a_profile_without_the_table_is_refused(derive):
    with pytest.raises(ProfileError, match=r"no table 'mass'.*scalekv calibrate"):
        derive(Profile("old", LAYERS, HEADS, SCHEDULE))


def test_segments_kept_are_counted_from_zero():
    with pytest.raises(InvalidInput, match="sink=-1"):
        scas(PROFILE, -1)
