"""Text on pictures: a font that has the characters, and lines that fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SYSTEM_FONTS = ("DejaVuSans.ttf", "Arial.ttf", "arial.ttf", "NotoSansCJK-Regular.ttc", "msgothic.ttc", "PingFang.ttc")
"""Asked for where pillow's own font lacks a character: it has little beside ASCII."""

_MISSING = "\U0010ffff"


@dataclass(frozen=True)
class Lettering:
    """One font at one size.

    Args:
        font: from :func:`font_for`.
        fill: colour of the text.
    """

    font: ImageFont.FreeTypeFont
    fill: str

    def width(self, texts: Iterable[str]) -> int:
        """Pixels of the widest of ``texts``, each on one line; 0 for none."""
        return max((int(self.font.getlength(text)) + 1 for text in texts), default=0)

    def block(self, paragraphs: Sequence[str], width: int, paper: str = "white") -> Image.Image:
        """Paragraphs on ``paper``, ``width`` pixels wide and as high as their broken lines need."""
        lines = [line for text in paragraphs for line in self.lines(text, width)]
        step = round(self.font.size * 1.35)
        picture = Image.new("RGB", (width, step * len(lines)), paper)
        draw = ImageDraw.Draw(picture)
        for number, line in enumerate(lines):
            draw.text((0, number * step), line, fill=self.fill, font=self.font)
        return picture

    def lines(self, text: str, width: int) -> Iterator[str]:
        """``text`` broken at spaces, and inside words that are wider than a line."""
        line = ""
        for word in text.split():
            if line and self.width([f"{line} {word}"]) > width:
                yield line
                line = ""
            line = f"{line} {word}" if line else word
            while self.width([line]) > width and len(line) > 1:
                fitting = max(1, sum(self.width([line[:end]]) <= width for end in range(1, len(line))))
                yield line[:fitting]
                line = line[fitting:]
        yield line


def font_for(texts: Iterable[str], size: int) -> ImageFont.FreeTypeFont:
    """The first font here, at ``size`` pixels, that has every character of ``texts``, or misses fewest."""
    characters = {character for text in texts for character in text if not character.isspace()}
    best, fewest = None, len(characters) + 1
    for font in _fonts(size):
        missing = sum(not _has(font, character) for character in characters)
        if missing < fewest:
            best, fewest = font, missing
        if not missing:
            break
    assert best is not None  # pillow's own font is always there
    return best


def _fonts(size: int) -> Iterator[ImageFont.FreeTypeFont]:
    own = ImageFont.load_default(size=size)
    assert isinstance(own, ImageFont.FreeTypeFont)
    yield own
    names = list(SYSTEM_FONTS)
    plotting = find_spec("matplotlib")
    if plotting is not None and plotting.origin is not None:
        names.insert(0, str(Path(plotting.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"))
    for name in names:
        font = _system_font(name, size)
        if font is not None:
            yield font


def _system_font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _has(font: ImageFont.FreeTypeFont, character: str) -> bool:
    """Whether ``font`` draws something else than the box for characters it lacks."""
    return bytes(font.getmask(character)) != bytes(font.getmask(_MISSING))
