"""Agreement of profiles: arithmetic on made-up tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scalekv.calibration.stability import overlaps, rank_correlations, shared_pictures, spearman
from scalekv.errors import BudgetError, ProfileError
from scalekv.planning import Profile, Schedule
from scalekv.planning.curves import curve_ranks

SCHEDULE = Schedule.from_sides([1, 2, 3, 4, 5, 6])
LAYERS, HEADS = 4, 2


def nested(values):
    return tuple(map(nested, values)) if isinstance(values, np.ndarray) else float(values)


def noise(seed: int, shapes) -> tuple:
    random = np.random.default_rng(seed)
    return tuple(nested(random.random(shape)) for shape in shapes)


def profile(seed: int = 0, **changes) -> Profile:
    segments = range(len(SCHEDULE))
    points = [len(curve_ranks(SCHEDULE.start(index + 1))) for index in segments]
    fields = {
        "statistics": {"asi": noise(seed, [(LAYERS,)] * 6)},
        "head_statistics": {"sigma": noise(seed + 1, [(LAYERS, HEADS)] * 6)},
        "source_statistics": {"mass": noise(seed + 2, [(index + 1, LAYERS, HEADS) for index in segments])},
        "curves": {"snapkv": noise(seed + 3, [(LAYERS, HEADS, count) for count in points])},
    }
    return Profile("m", LAYERS, HEADS, SCHEDULE, **{**fields, **changes})


def test_rank_correlation_by_hand():
    assert spearman(np.array([1, 2, 3, 4, 5.0]), np.array([10, 20, 30, 50, 40.0])) == pytest.approx(0.9)
    # Two equal values share rank 2.5: ranks 1 2.5 2.5 4 against 1 2 3 4.
    assert spearman(np.array([1, 2, 2, 3.0]), np.array([1, 2, 3, 4.0])) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert spearman(np.array([1, 1.0]), np.array([1, 2.0])) is None


def test_a_profile_agrees_with_itself():
    names = ["asi", "sigma", "mass", "snapkv", "scas", "future_reliance"]
    assert rank_correlations(profile(), profile()) == pytest.approx(dict.fromkeys(names, 1.0))
    assert overlaps(profile(), profile()) == {"drafters": 1.0, "contextual_heads": 1.0, "heatkv_heads": 1.0}


def test_strangers_do_not_agree():
    found = rank_correlations(profile(0), profile(50))
    assert max(map(abs, found.values())) < 0.7
    assert abs(found["mass"]) < 0.3


def test_lists_are_ranked_one_by_one_and_averaged():
    """One of two lists with an order is turned round: the mean of 1 and -1. Equal values do not count."""
    even = ((0.0,) * LAYERS,) * 4
    one = profile(statistics={"asi": (*even, (1.0, 2.0, 3.0, 4.0), (4.0, 3.0, 2.0, 1.0))})
    other = profile(statistics={"asi": (*even, (2.0, 4.0, 6.0, 8.0), (1.0, 2.0, 3.0, 4.0))})
    assert rank_correlations(one, other)["asi"] == pytest.approx(0.0)
    flat = profile(statistics={"asi": ((0.0,) * LAYERS,) * 6})
    assert "asi" not in rank_correlations(one, flat)


def test_overlap_of_contextual_heads():
    falling = tuple(np.arange(8.0).reshape(LAYERS, HEADS).tolist())
    table = nested(np.array([falling] * 6))
    swapped = np.array(table)
    swapped[-1, 0, 0], swapped[-1, 3, 1] = 7.0, 0.0
    one = profile(head_statistics={"sigma": table})
    other = profile(head_statistics={"sigma": nested(swapped)})
    assert overlaps(one, other)["contextual_heads"] == 0.5
    changed_before_the_last = np.array(table)
    changed_before_the_last[:-1] *= -1
    same = profile(head_statistics={"sigma": nested(changed_before_the_last)})
    assert overlaps(one, same)["contextual_heads"] == 1.0


def test_overlap_of_drafters_depends_on_the_budget():
    """At 90 % only the last segment is trimmed, at 10 % all but the first few; the profiles differ before the last."""
    rows = [(9.0, 9.0, 9.0, 9.0), (8.0, 1.0, 8.0, 8.0)]
    one = profile(statistics={"asi": (*[rows[0]] * 2, *[(8.0, 8.0, 1.0, 8.0)] * 3, rows[1])})
    other = profile(statistics={"asi": (*[rows[0]] * 2, *[(1.0, 8.0, 8.0, 8.0)] * 3, rows[1])})
    assert overlaps(one, other, "90%")["drafters"] == 1.0
    assert overlaps(one, other, "10%")["drafters"] == 0.0


def test_published_roles_do_not_hide_the_tables():
    one, other = (profile(seed, roles={5: (0,)}) for seed in (0, 50))
    assert overlaps(one, other)["drafters"] < 1


def test_heads_that_are_attended_most():
    last = np.zeros((6, LAYERS, HEADS))
    last[:, 0, 0] = 0.5
    mass = tuple(noise(0, [(index + 1, LAYERS, HEADS)])[0] for index in range(5))
    one = profile(source_statistics={"mass": (*mass, nested(last + 1))})
    last[:, 0, 0], last[:, 1, 1] = 0.0, 99.0
    other = profile(source_statistics={"mass": (*mass, nested(last))})
    assert overlaps(one, other, "10%")["heatkv_heads"] < 1
    assert overlaps(one, other, "100%")["heatkv_heads"] == 1


def test_only_what_both_hold_is_compared():
    old = profile(head_statistics={}, source_statistics={}, curves={})
    assert list(rank_correlations(old, profile())) == ["asi"]
    assert list(overlaps(old, profile())) == ["drafters"]


def test_other_models_and_budgets_in_bytes_are_refused():
    with pytest.raises(ProfileError, match=r"differ in model \(m and n\)"):
        rank_correlations(profile(), replace(profile(), model="n"))
    with pytest.raises(ProfileError, match="differ in schedule"):
        overlaps(profile(), profile().adapted_to(Schedule.from_sides([1, 2, 3, 4, 5, 7])))
    with pytest.raises(BudgetError, match="tells no bytes"):
        overlaps(profile(), profile(), "5MiB")


def test_shared_pictures():
    def of(seed, *prompts):
        return profile(details={"runs": [{"seed": seed, "prompts": list(prompts)}]})

    assert shared_pictures(of(0, "a", "b"), of(0, "a", "c")) == 1
    assert shared_pictures(of(0, "a", "b"), of(5, "a", "b")) == 0
    assert shared_pictures(of(0, "a", "b"), of(1, "b")) == 1
    assert shared_pictures(profile(), of(0, "a")) == 0
