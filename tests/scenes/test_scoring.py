"""The benchmark asks what it says, and answers are judged exactly."""

import numpy as np
import pytest

from scalekv.errors import CheckpointError, InvalidInput
from scalekv.scenes import Placed, Thing, split_of
from scalekv.scenes.detection import Detector, to_array
from scalekv.scenes.prompts import CATEGORIES, Prompt, Wanted, benchmark
from scalekv.scenes.scoring import is_right, score, score_pipeline


def at(shape, colour, x=0.0, pattern="plain", y=0.6, z=0.0):
    return Placed(Thing(shape, colour, pattern), x, y, z)


RED_BALL, BLUE_CUBE = at("sphere", "red", -1), at("cube", "blue", 1)


def test_the_benchmark_is_the_same_every_time_and_has_every_category():
    prompts = benchmark(10)
    assert prompts == benchmark(10)
    assert prompts != benchmark(10, seed=1)
    assert {prompt.category for prompt in prompts} == set(CATEGORIES)
    assert len({prompt.text for prompt in prompts}) == len(prompts) == 70


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_combinations_come_from_the_split(split):
    for prompt in benchmark(15, split=split):
        kinds = [
            split_of((one.shape, one.colour, one.pattern or "plain")) for one in prompt.wanted if one.colour is not None
        ]
        assert not kinds or split in kinds


def test_two_things_and_their_relation():
    pair = (Wanted("sphere", "red"), Wanted("cube", "blue"))
    prompt = Prompt("", "position", pair, "left of")
    assert is_right(prompt, [BLUE_CUBE, RED_BALL])
    assert not is_right(prompt, [at("sphere", "red", 1), at("cube", "blue", -1)])
    assert not is_right(prompt, [at("sphere", "blue", -1), at("cube", "red", 1)])
    assert not is_right(prompt, [RED_BALL])


def test_one_thing_cannot_be_two():
    pair = (Wanted("sphere"), Wanted("sphere"))
    assert not is_right(Prompt("", "two objects", pair), [RED_BALL])
    assert is_right(Prompt("", "two objects", pair), [RED_BALL, at("sphere", "blue", 1)])


def test_counts_are_exact_and_other_things_do_not_matter():
    prompt = Prompt("", "counting", (Wanted("sphere", "red", count=2),))
    assert is_right(prompt, [RED_BALL, at("sphere", "red", 1), BLUE_CUBE])
    assert not is_right(prompt, [RED_BALL])
    assert not is_right(prompt, [RED_BALL] * 3)


def test_what_is_not_asked_may_be_anything():
    striped = at("sphere", "red", pattern="striped")
    assert is_right(Prompt("", "colours", (Wanted("sphere", "red"),)), [striped])
    assert not is_right(Prompt("", "patterns", (Wanted("sphere", "red", "dotted"),)), [striped])


class Reads:
    """Stands in for a detector."""

    def __init__(self, *answers):
        self.answers = answers

    def __call__(self, pictures):
        return [list(one) for one in self.answers]


def test_scores_are_means_by_category():
    prompts = [
        Prompt("a", "colours", (Wanted("sphere", "red"),)),
        Prompt("b", "colours", (Wanted("sphere", "blue"),)),
        Prompt("c", "counting", (Wanted("cube", count=1),)),
    ]
    scores = score(prompts, [None] * 3, Reads([RED_BALL], [RED_BALL], [BLUE_CUBE]))
    assert scores.categories == {"counting": 1.0, "colours": 0.5}
    assert scores.overall == 0.75
    assert scores.to_dict()["verdicts"][1]["right"] is False


class Draws:
    """Stands in for a pipeline; remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompts, generator, **options):
        self.asked += [(text, one.initial_seed(), options) for text, one in zip(prompts, generator, strict=True)]
        return type("Output", (), {"images": [np.zeros((128, 128, 3), np.uint8)] * len(prompts)})


def test_a_pipeline_is_asked_with_one_seed_per_prompt():
    prompts = benchmark(1)
    draws = Draws()
    done = []
    score_pipeline(
        draws,
        prompts,
        seed=5,
        batch=3,
        detector=Reads(*[[]] * 7),
        progress=lambda *numbers: done.append(numbers),
        kv_cache="any",
    )
    assert [seed for _, seed, _ in draws.asked] == list(range(5, 12))
    assert [text for text, _, _ in draws.asked] == [prompt.text for prompt in prompts]
    assert draws.asked[0][2] == {"kv_cache": "any"}
    assert done[-1] == (7, 7)


def test_wrong_input_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="2 pictures for 1 prompts"):
        score(benchmark(1)[:1], [None, None], Reads())
    with pytest.raises(InvalidInput, match="at least 1 prompt"):
        benchmark(0)
    with pytest.raises(InvalidInput, match="batch must be"):
        score_pipeline(Draws(), benchmark(1), batch=0)
    with pytest.raises(InvalidInput, match="128 x 128"):
        to_array([np.zeros((64, 64, 3), np.uint8)])
    with pytest.raises(CheckpointError, match="does not exist"):
        Detector.load(tmp_path / "none.safetensors")
    (tmp_path / "wrong.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="holds no detector"):
        Detector.load(tmp_path / "wrong.safetensors")
