import json

import pytest

from scalekv.errors import InvalidInput, ProfileError
from scalekv.planning import CacheGeometry, Profile, Schedule

SCHEDULE = Schedule.from_sides([1, 2, 3])


def profile(**changes) -> Profile:
    fields = {"model": "m", "layers": 2, "heads": 4, "schedule": SCHEDULE, "statistics": {"asi": ((0.0, 0.0),) * 3}}
    return Profile(**{**fields, **changes})


def test_round_trip(tmp_path):
    saved = profile(roles={2: (0, 1)}, details={"prompts": 10})
    saved.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == saved
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


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


@pytest.mark.parametrize(("name", "value"), [("layers", 3), ("heads", 5), ("schedule", Schedule.from_sides([1, 2]))])
def test_another_model_or_schedule_is_refused(name, value):
    sizes = {"layers": 2, "heads": 4, "schedule": SCHEDULE, name: value}
    with pytest.raises(ProfileError, match="calibrate"):
        profile().check(CacheGeometry(head_dim=8, **sizes))


def damage(tmp_path, change) -> str:
    data = profile(roles={2: (1,)}).to_dict()
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
