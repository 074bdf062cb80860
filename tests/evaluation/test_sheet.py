"""Contact sheets: everything shown, nothing cut off."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scalekv.evaluation.report.lettering import Lettering, font_for
from scalekv.evaluation.report.sheet import Row, Sheet, Tile


def picture(width: int, height: int, colour: str = "#2060c0") -> Image.Image:
    return Image.new("RGB", (width, height), colour)


@given(st.text(alphabet="ab _(),=", max_size=60), st.integers(20, 200))
def test_lines_fit_and_lose_nothing(text, width):
    letters = Lettering(font_for([text], 13), "black")
    lines = list(letters.lines(text, width))
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(letters.width([line]) <= width for line in lines)


def test_a_font_that_has_the_characters():
    pytest.importorskip("matplotlib")  # brings one
    text = "Wärter ĉŁ кот"
    font = font_for([text], 13)
    missing = bytes(font.getmask("\U0010ffff"))
    assert all(bytes(font.getmask(letter)) != missing for letter in text if letter != " ")


@pytest.mark.parametrize("size", [(16, 16), (256, 256), (1024, 512), (64, 256)])
def test_every_picture_is_on_the_sheet(size):
    colours = ["#ff0000", "#00ff00", "#0000ff"]
    rows = tuple(Row((Tile(picture(*size, colour), ("PSNR 30.0 dB", "219 KiB")),), colour) for colour in colours)
    sheet = Sheet(rows, ("10%",), Tile(picture(*size, "#ff00ff"), ("full cache",)), ("a prompt", "more")).draw()
    counts = {colour: count for count, colour in sheet.getcolors(1 << 24)}
    shown = [counts[colour] for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255))]
    assert len(set(shown)) == 1
    assert shown[0] >= min(size[0] * size[1], 512 * 256)


def test_the_background_goes_around():
    sheet = Sheet((Row((Tile(picture(200, 200), ("x" * 200,)),), "y" * 90),)).draw()
    edges = [sheet.crop(box) for box in ((0, 0, sheet.width, 12), (sheet.width - 12, 0, sheet.width, sheet.height))]
    assert all(edge.getcolors() == [(edge.width * edge.height, (255, 255, 255))] for edge in edges)


def test_a_long_reason_has_room():
    short, long = (
        Sheet((Row((Tile(None, reason=text), Tile(picture(192, 40))), "a"),)).draw() for text in ("", "w " * 200)
    )
    assert long.height > short.height + 100
