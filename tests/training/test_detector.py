"""The shipped detector reads what was rendered, and its targets are where things are."""

import numpy as np
import torch
from training.detector import STRIDE, targets, worn
from training.measuring import accuracy, pairs

from scalekv.scenes import Placed, render, sample_scene
from scalekv.scenes.camera import project
from scalekv.scenes.detection import Detector


def test_the_shipped_detector_reads_held_out_scenes():
    scenes = [sample_scene(seed, "heldout", kind) for seed in range(2000, 2016) for kind in ("single", "pair")]
    table = accuracy(Detector.load(), np.stack([render(scene) for scene in scenes]), scenes)
    assert set(table) == {"all", "single", "pair"}
    for name in ("count", "found", "shape", "colour", "pattern", "size", "relations"):
        assert table["all"][name] >= 0.97, name


def test_a_batch_reads_as_its_pictures_alone():
    scenes = [sample_scene(seed) for seed in range(3)]
    pictures, detector = [render(scene) for scene in scenes], Detector.load()
    together = detector(pictures)
    for picture, found in zip(pictures, together, strict=True):
        assert [one.thing for one in detector([picture])[0]] == [one.thing for one in found]
    assert detector([]) == []


def test_targets_are_at_the_centres():
    scene = sample_scene(4, kind="mixed")
    heat, listed = targets([scene])
    assert len(listed) == len(scene.placed)
    for row, placed in zip(listed, scene.placed, strict=True):
        column, line, _ = project(placed.x, placed.y, placed.z)
        assert abs((row[2] + row[7]) * STRIDE - column) < 1e-4
        assert abs((row[1] + row[8]) * STRIDE - line) < 1e-4
        assert heat[0, int(row[1]), int(row[2])] == 1


def test_worn_pictures_stay_pictures():
    torch.manual_seed(0)
    images = torch.rand(4, 3, 128, 128)
    out = worn(images)
    assert out.shape == images.shape
    assert 0 <= out.min() <= out.max() <= 1
    assert not torch.equal(out, images)


def test_found_things_are_matched_by_place():
    scene = sample_scene(1, kind="pair")
    moved = [Placed(one.thing, one.x + 0.05, one.y, one.z) for one in scene.placed[::-1]]
    assert sorted(pairs(scene, moved)) == [(0, 1), (1, 0)]
    assert pairs(scene, []) == []
