"""The world: the same on every run, split for good, and described truly."""

import numpy as np
import pytest

from scalekv.errors import InvalidInput
from scalekv.scenes import Placed, Thing, caption, combinations, holds, render, sample_scene, split_of, words
from scalekv.scenes.camera import SIDE, project, unproject
from scalekv.scenes.captions import MAX_WORDS
from scalekv.scenes.composing import KINDS

NAMES = {name: shape for shape, names in words.SHAPE_NAMES.items() for name in names}
NAMES |= {words.PLURALS[name]: shape for name, shape in NAMES.items()}
COLOURS = {name: colour for colour, names in words.COLOUR_NAMES.items() for name in names}
PATTERNS = {name: pattern for pattern, names in words.PATTERN_ADJECTIVES.items() for name in names if name}
PATTERNS |= {noun: pattern for pattern, noun in words.PATTERN_NOUNS.items()}


def scenes(count=60, split="train"):
    return [sample_scene(seed, split) for seed in range(count)]


def test_a_seed_is_one_scene_and_one_picture():
    for seed in range(5):
        first, second = sample_scene(seed), sample_scene(seed)
        assert first == second
        assert np.array_equal(render(first), render(second))
    assert sample_scene(0) != sample_scene(1)


def test_pictures_are_bytes_with_detail():
    for scene in scenes(8):
        picture = render(scene)
        assert picture.shape == (SIDE, SIDE, 3)
        assert picture.dtype == np.uint8
        assert picture.std() > 10


def test_the_split_is_disjoint_complete_and_fixed():
    train, heldout = set(combinations("train")), set(combinations("heldout"))
    assert not train & heldout
    assert len(train | heldout) == len(words.SHAPES) * len(words.COLOURS) * len(words.PATTERNS)
    assert len(heldout) == 22
    assert ("sphere", "green", "plain") in heldout
    assert ("cube", "red", "plain") in train


def test_training_scenes_never_show_held_out_combinations():
    seen = {thing.combination for scene in scenes(400) for thing in scene.things}
    assert {split_of(one) for one in seen} == {"train"}


def test_held_out_scenes_show_at_least_one():
    for scene in scenes(100, "heldout"):
        assert "heldout" in {split_of(thing.combination) for thing in scene.things}


@pytest.mark.parametrize("kind", KINDS)
def test_things_are_inside_of_the_picture_and_apart(kind):
    for seed in range(20):
        scene = sample_scene(seed, kind=kind)
        assert 1 <= len(scene.placed) <= 4
        places = [project(one.x, one.y, one.z) for one in scene.placed]
        for index, (column, row, _) in enumerate(places):
            assert 0 < column < SIDE
            assert 0 < row < SIDE
            for other, other_row, _ in places[:index]:
                assert np.hypot(column - other, row - other_row) > 15


def test_every_thing_is_seen():
    for scene in scenes(30):
        whole = render(scene).astype(int)
        for index in range(len(scene.placed)):
            rest = type(scene)(scene.placed[:index] + scene.placed[index + 1 :], scene.surroundings, scene.kind)
            assert (np.abs(render(rest).astype(int) - whole).max(-1) > 20).sum() > 120


def mentioned(text):
    """Things of a caption as (shape, colour or None, pattern or None), by reading it word for word."""
    listed, colour, pattern = [], None, None
    for word in text.replace(",", " ").split():
        if word in COLOURS:
            colour = COLOURS[word]
        elif word in PATTERNS and word not in words.PATTERN_NOUNS.values():
            pattern = PATTERNS[word]
        elif word in NAMES:
            listed.append([NAMES[word], colour, pattern])
            colour = pattern = None
        elif word in words.PATTERN_NOUNS.values() and listed:
            listed[-1][2] = PATTERNS[word]
    return listed


def fits(told, thing):
    shape, colour, pattern = told
    return thing.shape == shape and colour in (None, thing.colour) and (pattern or "plain") == thing.pattern


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_captions_tell_of_every_thing_and_of_nothing_else(split):
    for seed, scene in enumerate(scenes(150, split)):
        text = caption(scene, seed)
        assert len(text.split()) <= MAX_WORDS
        told = mentioned(text)
        if scene.kind == "count":
            assert words.NUMBERS[len(scene.placed)] in text.split()
            assert len(told) == 1
        else:
            assert len(told) == len(scene.placed), text
        for one in told:
            assert any(fits(one, thing) for thing in scene.things), (text, scene.things)


def test_relations_in_captions_hold():
    phrases = sorted(
        ((phrase, name) for name, all_ in words.RELATION_NAMES.items() for phrase in all_),
        key=lambda pair: -len(pair[0]),
    )
    checked = 0
    for seed in range(150):
        scene = sample_scene(seed, kind="pair")
        text = caption(scene, seed)
        for phrase, name in phrases:
            if f" {phrase} a" in text:
                first = mentioned(text)[0]
                order = scene.placed if fits(first, scene.things[0]) else scene.placed[::-1]
                if scene.things[0].shape != scene.things[1].shape:
                    assert holds(name, *order), text
                    checked += 1
                break
    assert checked > 50


def test_phrasings_differ_and_repeat():
    scene = sample_scene(3, kind="pair")
    texts = [caption(scene, seed) for seed in range(20)]
    assert texts == [caption(scene, seed) for seed in range(20)]
    assert len(set(texts)) > 8


def test_relations_are_inverse_to_each_other():
    red, blue = Placed(Thing("cube", "red"), -1, 0.5, 0), Placed(Thing("cube", "blue"), 1, 0.5, 1.0)
    for name, inverse in words.INVERSE.items():
        assert holds(name, red, blue) == holds(inverse, blue, red)
    assert holds("left of", red, blue)
    assert holds("in front of", red, blue)
    assert not holds("above", red, blue)


def test_projection_and_back():
    for point in ((0.3, 0.9, -1.0), (-1.2, 2.0, 1.1)):
        column, row, _ = project(*point)
        assert unproject(column, row, point[2]) == pytest.approx(point[:2])


def test_unknown_words_are_refused():
    with pytest.raises(InvalidInput, match="no colour 'mauve'"):
        Thing("cube", "mauve")
    with pytest.raises(InvalidInput, match="Unknown split"):
        combinations("test")
    with pytest.raises(InvalidInput, match="split 'test'"):
        sample_scene(0, "test")
    with pytest.raises(InvalidInput, match="Unknown relation"):
        holds("inside", *sample_scene(0, kind="pair").placed)


def test_things_without_a_relation_are_named_from_left_to_right():
    seen = 0
    for seed in range(120):
        scene = sample_scene(seed)
        if scene.kind != "mixed":
            continue
        named = [one[0] for one in mentioned(caption(scene, seed))]
        places = sorted(scene.placed, key=lambda one: one.x)
        assert named == [one.thing.shape for one in places]
        seen += 1
    assert seen > 10


def test_bare_captions_leave_out_colours_and_sizes():
    unsaid = {name for table in (words.COLOUR_NAMES, words.SIZE_NAMES) for names in table.values() for name in names}
    for seed in range(60):
        text = caption(sample_scene(seed), seed, 2.0)
        assert not unsaid & set(text.replace(",", "").split(" on ")[0].split())
