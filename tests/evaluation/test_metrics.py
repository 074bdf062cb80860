"""Distances of pictures, and what is said of those that cannot be measured here."""

from __future__ import annotations

import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scalekv.errors import InvalidInput
from scalekv.evaluation import distance, metrics
from scalekv.evaluation.agreement import agreement
from scalekv.evaluation.metrics import compare
from scalekv.evaluation.plugins import load_scorer


def picture(side: int = 64, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def brighter(image: Image.Image, by: int) -> Image.Image:
    return Image.fromarray(np.clip(np.asarray(image).astype(int) + by, 0, 255).astype(np.uint8))


def test_psnr_is_that_of_the_squared_error() -> None:
    flat = Image.fromarray(np.full((32, 48, 3), 100, np.uint8))
    found = compare(brighter(flat, 5), flat)
    assert found["mse"] == pytest.approx((5 / 255) ** 2)
    assert found["psnr"] == pytest.approx(20 * math.log10(255 / 5))
    assert not found["identical"]


def test_identical_pictures_have_no_finite_psnr() -> None:
    found = compare(picture(), picture())
    assert (found["identical"], found["psnr"], found["mse"], found["ssim"]) == (True, None, 0, 1)


def test_ssim_is_one_minus_what_noise_takes() -> None:
    near, far = (compare(brighter(picture(), by), picture())["ssim"] for by in (3, 60))
    assert 1 > near > far > 0
    assert abs(compare(picture(), picture(seed=1))["ssim"]) < 0.1


def test_small_pictures_are_left_out() -> None:
    assert "ms_ssim" not in compare(picture(175), picture(175, 1))
    assert 0 < compare(brighter(picture(176), 9), picture(176))["ms_ssim"] < 1
    tiny = compare(picture(8), picture(8, 1))
    assert "ssim" not in tiny
    assert tiny["psnr"] > 0


def test_other_sizes_are_refused() -> None:
    with pytest.raises(InvalidInput, match="cannot be compared"):
        compare(picture(16), picture(32))


def test_agreement() -> None:
    first = [np.zeros((2, 2, 4), np.uint8), np.ones((1, 1), np.int64)]
    other = [first[0].copy(), np.zeros((1, 1), np.int64)]
    other[0][0, 0] = 1
    assert agreement(first, first) == [1, 1]
    assert agreement(other, first) == [0.75, 0]
    with pytest.raises(InvalidInput, match="other segments"):
        agreement(first, first[:1])


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of downloaded weights."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.mark.parametrize(
    ("package", "missing", "load", "file"),
    [
        ("torchvision", metrics.missing_lpips, metrics.load_lpips, metrics.ALEXNET),
        ("torch_fidelity", distance.missing_fid, lambda: distance.fid([], []), distance.INCEPTION),
    ],
    ids=["lpips", "fid"],
)
def test_what_is_missing_is_said(
    hub: Path, monkeypatch: pytest.MonkeyPatch, package: str, missing: Any, load: Any, file: str
) -> None:
    def with_package(there: bool) -> None:
        monkeypatch.setattr(metrics, "find_spec", lambda name: types.SimpleNamespace() if there else None)

    with_package(False)
    assert f"needs {package}, which is not installed" in missing()
    with pytest.raises(InvalidInput, match="scalekv\\[perceptual\\]"):
        load()
    with_package(True)
    assert f"put {file} into {hub}" in missing()
    with pytest.raises(InvalidInput, match="are not here"):
        load()
    (hub / file).write_bytes(b"")
    assert missing() is None


def test_lpips_sees_both_pictures_on_its_own_scale(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stand:
        def __init__(self, **settings: Any) -> None:
            assert settings == {"net_type": "alex", "normalize": True}

        def __call__(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            assert first.dtype == torch.float32
            return (first - second).mean()

    monkeypatch.setattr(metrics, "find_spec", lambda name: object())
    monkeypatch.setitem(
        sys.modules, "torchmetrics.image.lpip", types.SimpleNamespace(LearnedPerceptualImagePatchSimilarity=Stand)
    )
    (hub / metrics.ALEXNET).write_bytes(b"")
    flat = Image.fromarray(np.full((8, 8, 3), 100, np.uint8))
    assert metrics.load_lpips()(brighter(flat, 51), flat) == pytest.approx(0.2)


def test_fid_is_fed_all_pictures(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[bool, list[tuple[int, ...]]] = {True: [], False: []}

    class Stand:
        def __init__(self, feature: int) -> None:
            assert feature == 2048

        def to(self, device: Any) -> Stand:
            return self

        def update(self, batch: torch.Tensor, real: bool) -> None:
            assert batch.dtype == torch.uint8
            seen[real].append(tuple(batch.shape))

        def compute(self) -> float:
            return 3.5

    monkeypatch.setattr(metrics, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", types.SimpleNamespace(FrechetInceptionDistance=Stand))
    (hub / distance.INCEPTION).write_bytes(b"")
    assert distance.fid([picture(8)] * 40, [picture(8)] * 33) == 3.5
    assert seen == {True: [(32, 3, 8, 8), (1, 3, 8, 8)], False: [(32, 3, 8, 8), (8, 3, 8, 8)]}
    with pytest.raises(InvalidInput, match="at least 2 pictures"):
        distance.fid([picture(8)], [picture(8)] * 2)


SCORERS = """
class Model:
    def __call__(self, picture, reference, prompt):
        return {"a": 1, "b": len(prompt)}

class Home:
    size = staticmethod(lambda picture, reference, prompt: picture.width)

number = 3

def nothing(picture, reference, prompt):
    return None
"""


def test_scorers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(SCORERS)
    some = picture(8)
    assert load_scorer("mine.py:Model")(some, some, "xy") == {"Model.a": 1, "Model.b": 2}
    assert load_scorer("mine:Home.size")(some, some, "") == {"Home.size": 8}
    assert load_scorer("math:hypot").name == "hypot"
    with pytest.raises(InvalidInput, match="expected a number"):
        load_scorer("mine:nothing")(some, some, "")
    for spec, said in (
        ("mine", "Cannot read the metric"),
        ("mine:", "Cannot read the metric"),
        ("mine:number", "cannot be called"),
        ("mine:other", "There is no other in mine"),
        ("none:x", "There is no module none"),
        ("none.py:x", "There is no file none.py"),
    ):
        with pytest.raises(InvalidInput, match=said):
            load_scorer(spec)
