"""Bytewise: bad settings, what a profile changes, and dropping instead of merging."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "cache"))
from driving import run

from scalekv.errors import BudgetError, InvalidInput
from scalekv.planning import CacheGeometry, Profile, Schedule
from scalekv.planning.worth import predicted_damage
from scalekv.policies import Bytewise, make_policy
from strategies import MEASURED, MEASURED_FOR_MERGING, measured

SCHEDULE = Schedule.from_sides([1, 2, 3, 5, 6])
GEOMETRY = CacheGeometry(3, 4, 16, SCHEDULE, guidance=2, element_bytes=4)
TABLES = measured(GEOMETRY, 1, MEASURED_FOR_MERGING)
PROFILE = Profile("drawn", 3, 4, SCHEDULE, **TABLES)


def capacities(plan) -> list[tuple[int, ...]]:
    """Of every head."""
    sizes = [{head: group.capacity for group in groups for head in group.heads} for groups in plan.layers]
    return [layer[head] for layer in sizes for head in sorted(layer)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"timing": "before"}, "merges tokens after attention only; use timing='after', or reduction='damage'"),
        ({"timing": "during"}, "timing must be one of 'after', 'before'; got 'during'"),
        ({"reduction": "sum"}, "reduction must be one of 'merge', 'damage', 'attention'; got 'sum'"),
        ({"precision": "never"}, "precision must be one of 'late', 'bound', 'first'; got 'never'"),
        ({"allocation": "mass"}, "allocation must be one of 'sensitivity', 'uniform'; got 'mass'"),
        ({"guidance": "alone"}, "guidance must be one of 'apart', 'together'; got 'alone'"),
        ({"floor": -0.1}, r"floor must be a number in 0\.\.1; got -0\.1"),
        ({"floor": 1.5}, r"floor must be a number in 0\.\.1; got 1\.5"),
        ({"floor": float("nan")}, r"floor must be a number in 0\.\.1; got nan"),
        ({"floor": "half"}, r"floor must be a number in 0\.\.1; got 'half'"),
        ({"groups": 0}, "groups must be a whole number, 1 or more; got 0"),
        ({"groups": 2.0}, r"groups must be a whole number, 1 or more; got 2\.0"),
        ({"rounds": -1}, "rounds must be a whole number, 0 or more; got -1"),
        ({"reach": -1}, "reach must be a whole number, 0 or more; got -1"),
        ({"rounds": True}, "rounds must be a whole number, 0 or more; got True"),
        ({"codec": "int5"}, "codec must be .*; got 'int5'"),
        ({"queries": "some"}, "queries must be .*; got 'some'"),
        ({"budget": "many"}, "many"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(changes, words):
    with pytest.raises(InvalidInput, match=words) as caught:
        make_policy("bytewise", **{"budget": "10%", **changes})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("profile", "state"),
    [
        (None, "runs without a profile"),
        (
            Profile("drawn", 3, 4, SCHEDULE, **measured(GEOMETRY, 1, MEASURED)),
            "finds none of its tables in the profile for",
        ),
    ],
    ids=["none", "others"],
)
def test_without_its_tables_heads_are_alike_with_a_warning(profile, state):
    with pytest.warns(UserWarning, match=f"Bytewise {state}.*, so every head gets the same capacity"):
        plan = Bytewise("10%").plan(GEOMETRY, profile)
    assert len(set(capacities(plan))) == 1


def test_nobody_is_warned_where_no_profile_is_needed():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Bytewise("10%", allocation="uniform").plan(GEOMETRY)
        Bytewise("100%").plan(GEOMETRY)
        Bytewise("10%").plan(GEOMETRY, PROFILE)


def test_a_profile_changes_capacities_and_uniform_ignores_it():
    even = Bytewise("10%", allocation="uniform")
    assert even.plan(GEOMETRY, PROFILE) == even.plan(GEOMETRY)
    found = capacities(Bytewise("10%", groups=4).plan(GEOMETRY, PROFILE))
    assert len(set(found)) > 4
    assert found != capacities(even.plan(GEOMETRY))


def test_the_heads_that_errors_matter_to_get_more():
    """One head a thousand times as sensitive as the others, which are all the same but for a piece of their curve."""
    alike = Profile("drawn", 3, 4, SCHEDULE, **{kind: levelled(kind) for kind in TABLES})
    plain = capacities(Bytewise("10%").plan(GEOMETRY, alike))
    assert max(one[-1] for one in plain) < 1.4 * min(one[-1] for one in plain)
    cells = tuple(
        tuple(tuple(1000.0 if (layer, head) == (1, 2) else 1.0 for head in range(4)) for layer in range(3))
        for _ in SCHEDULE
    )
    found = capacities(Bytewise("10%").plan(GEOMETRY, replace(alike, head_statistics={"sensitivity": cells})))
    assert found[4 + 2][-1] > 1.5 * found[0][-1]
    assert found[4 + 2][-1] == max(one[-1] for one in found)


def levelled(kind: str):
    """The tables of one kind, with the same falling curve, or 1, everywhere."""

    def level(cell):
        if isinstance(cell[0], tuple):
            return tuple(level(part) for part in cell)
        return tuple(1 / (1 + point) for point in range(len(cell))) if kind == "curves" else (1.0,) * len(cell)

    return {name: tuple(level(cell) for cell in table) for name, table in TABLES[kind].items()}


@pytest.mark.parametrize("floor", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_floor_and_groups(floor, groups):
    policy = Bytewise("20%", floor=floor, groups=groups, codec="none")
    plan, even = (replace(policy, allocation=rule).plan(GEOMETRY, PROFILE) for rule in ("sensitivity", "uniform"))
    assert max(len(layer) for layer in plan.layers) <= groups
    share = max(one[-1] for one in capacities(even))
    assert all(one[-1] >= max(1, int(floor * share)) for one in capacities(plan))
    if floor == 1:
        assert sum(one[-1] - share for one in capacities(plan)) < len(capacities(plan)), "what an even division leaves"


def test_more_is_kept_in_fewer_bits():
    tokens = [
        Bytewise("10%", codec=name, allocation="uniform").plan(GEOMETRY).mean_tokens
        for name in ("none", "int8", "int6", "int6/int4", "int4")
    ]
    assert tokens == sorted(tokens)
    assert tokens[-1] > 3 * tokens[0]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("codec", ["none", "int6/int4"])
@pytest.mark.parametrize("profile", [None, PROFILE], ids=["uniform", "profile"])
@pytest.mark.filterwarnings("ignore:Bytewise runs without a profile")
def test_a_refusal_names_a_budget_that_then_works(codec, strict, profile):
    policy = Bytewise(1, codec=codec, strict=strict)
    with pytest.raises(BudgetError, match="feasible one") as caught:
        policy.plan(GEOMETRY, profile)
    smallest = int(str(caught.value).split("batch is ")[1].split(" B")[0])
    plan = replace(policy, budget=smallest).plan(GEOMETRY, profile)
    assert (plan.peak_bytes if strict else plan.nominal_bytes) <= smallest
    if not strict:
        with pytest.raises(BudgetError):
            replace(policy, budget=smallest - 1).plan(GEOMETRY, profile)


@pytest.mark.parametrize("codec", ["none", "int8", "int6/int4"])
@pytest.mark.parametrize("reduction", ["damage", "attention"])
@pytest.mark.parametrize("timing", ["after", "before"])
def test_dropping_instead_of_merging_still_works(codec, reduction, timing):
    policy = Bytewise("20%", codec=codec, reduction=reduction, timing=timing)
    assert not policy.merges
    assert policy.finer_codecs == ()
    assert policy.observation(SCHEDULE[4]) == tuple(range(36))
    outputs, cache = run(policy, GEOMETRY, PROFILE)
    plan, report = cache.plan, cache.report()
    assert not plan.merging
    assert not any(plan.counted(group, 4) for groups in plan.layers for group in groups)
    assert all(torch.isfinite(output).all() for output in outputs.values())
    assert report.kept_bytes == plan.nominal_bytes <= plan.limit_bytes
    assert report.measured_peak_bytes == plan.peak_bytes


def parts_of(geometry=GEOMETRY, profile=PROFILE, budget="20%", **settings):
    return Bytewise(budget, **settings).plan(geometry, profile).geometry.parts


def test_conditional_and_unconditional_rows_hold_what_they_are_worth():
    faint = tuple(
        tuple(tuple(0.01 * one for one in heads) for heads in layers)
        for layers in TABLES["head_statistics"]["sensitivity"]
    )
    tables = {**TABLES, "head_statistics": {**TABLES["head_statistics"], "sensitivity_unguided": faint}}
    profile = Profile("drawn", 3, 4, SCHEDULE, **tables)
    plan = Bytewise("20%", codec="none", groups=8).plan(GEOMETRY, profile)
    assert plan.geometry.lossless_bytes == GEOMETRY.lossless_bytes
    assert plan.nominal_bytes <= plan.limit_bytes
    sizes = capacities(plan)
    assert len(sizes) == 3 * 8
    for layer in range(3):
        conditional, unconditional = sizes[8 * layer : 8 * layer + 4], sizes[8 * layer + 4 : 8 * layer + 8]
        assert all(one[-1] >= other[-1] for one, other in zip(conditional, unconditional, strict=True))
    assert sum(size[-1] for size in sizes[:4]) > sum(size[-1] for size in sizes[4:8])


def test_rows_are_apart_only_where_that_is_known_and_wanted():
    guided = {name: table for name, table in TABLES["head_statistics"].items() if name != "sensitivity_unguided"}
    without = Profile("drawn", 3, 4, SCHEDULE, **{**TABLES, "head_statistics": guided})
    assert parts_of() == 2
    assert parts_of(guidance="together") == 1
    assert parts_of(allocation="uniform") == 1
    assert parts_of(reduction="damage") == 1
    assert parts_of(budget="100%") == 1
    assert parts_of(replace(GEOMETRY, guidance=1)) == 1
    assert parts_of(profile=without) == 1


def test_predicted_damage_is_the_same_however_equal_rows_are_counted():
    together = Bytewise("20%", codec="none", guidance="together").plan(GEOMETRY, PROFILE)
    doubled = tuple(
        tuple(replace(group, heads=(*group.heads, *(head + 4 for head in group.heads))) for group in groups)
        for groups in together.layers
    )
    apart = replace(together, geometry=GEOMETRY.apart(), layers=doubled)
    assert apart.nominal_bytes == together.nominal_bytes
    assert predicted_damage(apart, PROFILE) == pytest.approx(predicted_damage(together, PROFILE))


@pytest.mark.parametrize("precision", ["late", "bound", "first"])
def test_precision_falls_when_it_is_told_to(precision):
    policy = Bytewise("20%", precision=precision)
    assert run(policy, GEOMETRY, PROFILE)[1].report().measured_peak_bytes
    plan, last = policy.plan(GEOMETRY, PROFILE), len(SCHEDULE) - 1
    (group, *_), *_ = plan.layers
    bits = [
        sum(half.bits for half in group.halves_at(segment)) if plan.holds_coded(group, segment) else 32
        for segment in range(1, last + 1)
    ]
    assert bits[-1] == 10
    if precision == "late":
        assert bits[0] == 32
        assert bits == sorted(bits, reverse=True)
        assert len(set(bits)) > 2
    elif precision == "bound":
        assert set(bits) == {32, 10}
        assert bits == sorted(bits, reverse=True)
    else:
        assert set(bits) == {10}
    whole = replace(policy, budget="100%").plan(GEOMETRY, PROFILE)
    assert not any(
        whole.holds_coded(group, segment) for layer in whole.layers for group in layer for segment in range(last)
    )


def test_damage_and_attention_and_merging_are_different():
    outputs = [
        run(Bytewise("20%", codec="none", reduction=one), GEOMETRY, PROFILE)[0][4, 2]
        for one in ("merge", "damage", "attention")
    ]
    assert not torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])
    assert not torch.equal(outputs[0], outputs[2])


def test_settings_tell_everything():
    assert Bytewise("10%").settings() == {
        "budget": "10%",
        "strict": False,
        "timing": "after",
        "codec": "int6/int4",
        "queries": "uniform:64",
        "precision": "late",
        "reduction": "merge",
        "rounds": 0,
        "reach": 32,
        "allocation": "sensitivity",
        "guidance": "apart",
        "floor": 0.25,
        "groups": 2,
    }
