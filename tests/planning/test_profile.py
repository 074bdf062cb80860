import json

import pytest

from scalekv.errors import InvalidInput, ProfileError
from scalekv.planning import CacheGeometry, Profile, Schedule
from scalekv.planning.curves import curve_ranks

SCHEDULE = Schedule.from_sides([1, 2, 3])


def profile(**changes) -> Profile:
    fields = {"model": "m", "layers": 2, "heads": 4, "schedule": SCHEDULE, "statistics": {"asi": ((0.0, 0.0),) * 3}}
    return Profile(**{**fields, **changes})


def filled(shape, start: float = 0.0):
    """Nested tuples of different numbers."""
    if not shape:
        return start
    return tuple(filled(shape[1:], 10 * start + index) for index in range(shape[0]))


def tables(schedule: Schedule = SCHEDULE) -> dict:
    """One table of every kind; a number tells its place."""
    points = [len(curve_ranks(schedule.start(index + 1))) for index in range(len(schedule))]
    return {
        "statistics": {"asi": filled((len(schedule), 2))},
        "head_statistics": {"sigma": filled((len(schedule), 2, 4))},
        "source_statistics": {"mass": tuple(filled((index + 1, 2, 4), index) for index in range(len(schedule)))},
        "curves": {"snapkv": tuple(filled((2, 4, count), index + 1) for index, count in enumerate(points))},
    }


def measured(texts, seed=0, add=0.0, **changes) -> Profile:
    """A profile of some prompts, every number of it raised by ``add``."""

    def raised(value):
        return tuple(map(raised, value)) if isinstance(value, tuple) else value + add

    found = {kind: {name: raised(table) for name, table in named.items()} for kind, named in tables().items()}
    details = {"prompts": len(texts), "runs": [{"seed": seed, "prompts": list(texts)}], "queries": 256}
    return profile(**{**found, "details": details, **changes})


def test_round_trip(tmp_path):
    saved = profile(roles={2: (0, 1)}, details={"prompts": 10}, **tables())
    saved.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == saved
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


def test_numbers_in_the_file_are_short(tmp_path):
    profile(statistics={"asi": ((1 / 3, 2e-9 / 3),) * 3}).save(tmp_path / "p.json")
    assert "0.333333, 6.66667e-10" in (tmp_path / "p.json").read_text()


def test_files_of_version_one_are_read(tmp_path):
    data = profile(roles={2: (1,)}).to_dict()
    for name in ("head_statistics", "source_statistics", "curves"):
        del data[name]
    (tmp_path / "old.json").write_text(json.dumps({**data, "format_version": 1}))
    assert Profile.load(tmp_path / "old.json") == profile(roles={2: (1,)})


def test_a_missing_table_is_named():
    for read in (Profile.layer_table, Profile.head_table, Profile.source_table, Profile.curve_table):
        with pytest.raises(ProfileError, match="no table 'colour'.*scalekv calibrate"):
            read(profile(), "colour")


@pytest.mark.parametrize("name", ["infinity-2b", "infinity-8b"])
def test_shipped_profiles_carry_the_published_roles(name, published):
    found = Profile.builtin(name)
    expected = {int(k) - 1: tuple(v["drafter_layers"]) for k, v in published["models"][name]["scales"].items()}
    assert found is not None
    assert found.roles == expected
    assert found.schedule.tokens == tuple(published["schedule"]["scale_tokens"])


def test_no_profile_is_shipped_for_unknown_models():
    assert Profile.builtin("no-such-model") is None


def test_adapted_matches_segments_from_the_last():
    asi = tuple((float(index), -1.0) for index in range(3))
    source = profile(roles={1: (0,), 2: (1,)}, statistics={"asi": asi})
    shorter = source.adapted_to(Schedule.from_sides([5, 6]))
    assert shorter.roles == {0: (0,), 1: (1,)}
    assert [row[0] for row in shorter.statistics["asi"]] == [1.0, 2.0]
    longer = source.adapted_to(Schedule.from_sides([1, 1, 2, 2]))
    assert longer.roles == {2: (0,), 3: (1,)}
    assert [row[0] for row in longer.statistics["asi"]] == [0.0, 0.0, 1.0, 2.0]


def test_adapted_moves_sources_with_their_segments():
    source = profile(**tables())
    shorter = source.adapted_to(Schedule.from_sides([5, 6]))
    assert shorter.head_statistics["sigma"] == source.head_statistics["sigma"][1:]
    mass = source.source_statistics["mass"]
    assert shorter.source_statistics["mass"] == ((mass[1][1],), (mass[2][1], mass[2][2]))
    longer = source.adapted_to(Schedule.from_sides([1, 1, 2, 3]))
    assert longer.source_statistics["mass"] == (
        (mass[0][0],),
        (mass[0][0], mass[0][0]),
        (mass[1][0], mass[1][0], mass[1][1]),
        (mass[2][0], mass[2][0], mass[2][1], mass[2][2]),
    )


def test_adapted_stretches_curves_over_the_tokens_there_are():
    curve = source_curve = profile(**tables()).curves["snapkv"]
    same_counts = profile(**tables()).adapted_to(Schedule.from_shapes([(1, 1), (1, 4), (9, 1)]))
    assert same_counts.curves["snapkv"] == source_curve
    other = profile(**tables()).adapted_to(Schedule.from_sides([7, 8])).curves["snapkv"]
    assert [len(cell[0][0]) for cell in other] == [len(curve_ranks(49)), len(curve_ranks(113))]
    assert other[1][1][3][-1] == pytest.approx(curve[2][1][3][-1] * 14 / 113)


def test_merged_is_the_mean_over_prompts():
    both = Profile.merged(measured(["a", "b", "c"]), measured(["d"], seed=3, add=1.0))
    flat = both.statistics["asi"][2], both.head_statistics["sigma"][1][1], both.source_statistics["mass"][2][0][1]
    assert flat == ((20.25, 21.25), (110.25, 111.25, 112.25, 113.25), (2010.25, 2011.25, 2012.25, 2013.25))
    assert both.curves["snapkv"][0][1][2] == (1120.25,)
    assert both.details["prompts"] == 4
    assert both.details["runs"] == [{"seed": 0, "prompts": ["a", "b", "c"]}, {"seed": 3, "prompts": ["d"]}]
    assert Profile.merged(both).statistics == both.statistics
    again = Profile.merged(both, measured(["e"], add=-1.0))
    assert again.statistics["asi"][2] == (20.0, 21.0)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (measured(["b"], model="n"), "differ in model"),
        (measured(["b"], roles={2: (0,)}), "differ in roles"),
        (measured(["b"], curves={}), "differ in tables"),
        (measured(["b"]).adapted_to(Schedule.from_sides([2, 2, 3])), "differ in schedule"),
        (measured(["b"], details={"prompts": 1, "runs": [{"seed": 0, "prompts": ["b"]}], "queries": 9}), "queries"),
        (measured(["b"], details={"prompts": 1, "queries": 256}), "does not tell which prompts"),
        (measured(["b"], details={"runs": [{"seed": "x", "prompts": "b"}], "queries": 256}), "does not tell"),
        (measured(["b", "a"], seed=-1), "'a' was drawn with seed 0 in two runs"),
    ],
)
def test_what_does_not_add_up(other, message):
    with pytest.raises(ProfileError, match=message):
        Profile.merged(measured(["a"]), other)


def test_one_prompt_with_two_seeds_adds_up():
    assert Profile.merged(measured(["a"]), measured(["a"], seed=1)).details["prompts"] == 2


def test_merging_nothing():
    with pytest.raises(ProfileError, match="no profile"):
        Profile.merged()


@pytest.mark.parametrize(("name", "value"), [("layers", 3), ("heads", 5), ("schedule", Schedule.from_sides([1, 2]))])
def test_another_model_or_schedule_is_refused(name, value):
    sizes = {"layers": 2, "heads": 4, "schedule": SCHEDULE, name: value}
    with pytest.raises(ProfileError, match="calibrate"):
        profile().check(CacheGeometry(head_dim=8, **sizes))


def damage(tmp_path, change) -> str:
    data = profile(roles={2: (1,)}, **tables()).to_dict()
    change(data)
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(data))
    return str(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(format="something"),
        lambda data: data.update(format_version=99),
        lambda data: data.pop("layers"),
        lambda data: data.pop("schedule"),
        lambda data: data.update(schedule=[[1, 0]]),
        lambda data: data.update(layers="many"),
        lambda data: data.update(roles={"2": [7]}),
        lambda data: data.update(roles={"2": [0, 0]}),
        lambda data: data.update(roles={"9": [0]}),
        lambda data: data.update(roles=[1]),
        lambda data: data["statistics"].update(asi=[[0, 0]]),
        lambda data: data["statistics"].update(asi=[[0], [0], [0]]),
        lambda data: data["statistics"].update(asi=[["x", 0]] * 3),
        lambda data: data.update(statistics=None),
        lambda data: data.pop("curves"),
        lambda data: data.update(head_statistics=[1]),
        lambda data: data["head_statistics"]["sigma"][1].pop(),
        lambda data: data["head_statistics"].update(sigma=[[0, 0]] * 3),
        lambda data: data["source_statistics"]["mass"][2].pop(),
        lambda data: data["source_statistics"].update(mass=[[[[0] * 4] * 2] * 3] * 3),
        lambda data: data["source_statistics"]["mass"][1][0][0].append(1.0),
        lambda data: data["source_statistics"]["mass"][1][0][0].__setitem__(0, float("inf")),
        lambda data: data["curves"]["snapkv"][2][0][0].pop(),
        lambda data: data["curves"]["snapkv"][2][0].__setitem__(0, "abc"),
        lambda data: data.update(layers=float("inf")),
        lambda data: data.update(schedule=[[1, float("inf")]]),
        lambda data: data["statistics"].update(asi=[[float("nan"), 0]] * 3),
    ],
)
def test_damaged_profiles_are_refused_in_one_sentence(tmp_path, change):
    path = damage(tmp_path, change)
    with pytest.raises(InvalidInput) as caught:
        Profile.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not json", b"[]", b"\xff\xfe\x00", b"3", b"[" * 100_000])
def test_files_that_are_no_profiles(tmp_path, content):
    path = tmp_path / "p.json"
    path.write_bytes(content)
    with pytest.raises(ProfileError, match=r"p\.json"):
        Profile.load(path)


def test_missing_file(tmp_path):
    with pytest.raises(ProfileError, match="Cannot read"):
        Profile.load(tmp_path / "none.json")
