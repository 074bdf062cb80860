"""Contact sheets: pictures of one size in rows and columns, with their figures underneath."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from scalekv.evaluation.report.lettering import Lettering, font_for

MARGIN = 12
LEAST_PIXELS = 192
"""Smaller pictures are enlarged by a whole factor, without smoothing, so that their text has room."""

MOST_PIXELS = 512
"""Longest side of a picture on a sheet of many."""

_INK, _SOFT, _EMPTY, _LINE = "#1a1a1a", "#5a5a5a", "#f3f3f3", "#d0d0d0"


@dataclass(frozen=True)
class Tile:
    """One place on a sheet.

    Args:
        picture: what is shown; ``None`` leaves the place empty.
        caption: lines under it.
        reason: why it is empty, printed inside.
    """

    picture: Image.Image | None
    caption: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """Tiles side by side.

    Args:
        tiles: one per column.
        label: printed to the left.
    """

    tiles: tuple[Tile, ...]
    label: str = ""


@dataclass(frozen=True)
class Sheet:
    """Pictures of one size in rows and columns.

    Args:
        rows: from top to bottom.
        columns: headings of the columns; none for no line of headings.
        head: a tile above all others, such as the reference.
        text: paragraphs beside ``head``, the first one larger.
        most_pixels: pictures with a longer side are reduced to it; ``None`` for never.
    """

    rows: tuple[Row, ...]
    columns: tuple[str, ...] = ()
    head: Tile | None = None
    text: tuple[str, ...] = ()
    most_pixels: int | None = MOST_PIXELS

    def draw(self) -> Image.Image:
        """The sheet as a picture, on white."""
        style = _Style.of(self)
        gutter = style.gutter(self)
        lines: list[tuple[str, list[Image.Image]]] = []
        if self.head is not None:
            lines.append(("", self._heading(self.head, style)))
        if self.columns:
            lines.append(("", [style.ink.block([text], style.size[0]) for text in self.columns]))
        for row in self.rows:
            lines.append((row.label, [style.cell(tile) for tile in row.tiles]))
        labels = [[style.ink.block([label] if label else [], gutter)] if gutter else [] for label, _ in lines]
        return _stacked([_beside([*label, *cells]) for label, (_, cells) in zip(labels, lines, strict=True)])

    def _heading(self, head: Tile, style: _Style) -> list[Image.Image]:
        others = max([1, *(len(row.tiles) for row in self.rows)]) - 1
        width = max(others * (style.size[0] + MARGIN) - MARGIN, 2 * LEAST_PIXELS)
        text = [style.title.block(self.text[:1], width), style.soft.block(self.text[1:], width)]
        return [style.cell(head), _stacked(text, margin=0)]

    @property
    def tiles(self) -> Iterator[Tile]:
        """Every tile, the head first."""
        if self.head is not None:
            yield self.head
        for row in self.rows:
            yield from row.tiles


@dataclass(frozen=True)
class _Style:
    """Size of the pictures of one sheet, and the lettering that suits it."""

    size: tuple[int, int]
    title: Lettering
    ink: Lettering
    soft: Lettering

    @classmethod
    def of(cls, sheet: Sheet) -> _Style:
        sizes = [tile.picture.size for tile in sheet.tiles if tile.picture is not None]
        width, height = _shown(sizes[0], sheet.most_pixels) if sizes else (LEAST_PIXELS, LEAST_PIXELS)
        size = min(max(13, width // 20), 26)
        texts = [*sheet.text, *sheet.columns, *(row.label for row in sheet.rows)]
        texts += [text for tile in sheet.tiles for text in (*tile.caption, tile.reason)]
        font = font_for(texts, size)
        title = Lettering(font_for(texts, round(1.35 * size)), _INK)
        return cls((width, height), title, Lettering(font, _INK), Lettering(font, _SOFT))

    def gutter(self, sheet: Sheet) -> int:
        """Pixels for the labels of rows, which break into lines beyond two thirds of a picture."""
        labels = [row.label for row in sheet.rows if row.label]
        word = self.ink.width(word for label in labels for word in label.split())
        return min(self.ink.width(labels), max(self.size[0] * 2 // 3, min(word, self.size[0])))

    def cell(self, tile: Tile) -> Image.Image:
        """A tile and its caption."""
        first, rest = tile.caption[:1], tile.caption[1:]
        width = self.size[0]
        caption = [self.ink.block(first, width), self.soft.block(rest, width)]
        return _stacked([self._face(tile), _gap(width), *caption], margin=0)

    def _face(self, tile: Tile) -> Image.Image:
        width, height = self.size
        if tile.picture is not None:
            smooth = tile.picture.width > width
            method = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
            return tile.picture.convert("RGB").resize(self.size, method)
        reason = self.soft.block([tile.reason] if tile.reason else [], width - 2 * MARGIN, paper=_EMPTY)
        face = Image.new("RGB", (width, max(height, reason.height + 2 * MARGIN)), _EMPTY)
        ImageDraw.Draw(face).rectangle((0, 0, face.width - 1, face.height - 1), outline=_LINE)
        face.paste(reason, (MARGIN, (face.height - reason.height) // 2))
        return face


def _shown(size: tuple[int, int], most: int | None) -> tuple[int, int]:
    """The size at which a picture is shown."""
    width, height = size
    if most is not None and max(size) > most:
        scale = most / max(size)
        return max(1, round(width * scale)), max(1, round(height * scale))
    factor = max(1, -(-LEAST_PIXELS // width))
    return width * factor, height * factor


def _gap(width: int) -> Image.Image:
    return Image.new("RGB", (width, MARGIN // 3), "white")


def _beside(pictures: Sequence[Image.Image]) -> Image.Image:
    width = sum(picture.width + MARGIN for picture in pictures) - MARGIN
    line = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        line.paste(picture, (left, 0))
        left += picture.width + MARGIN
    return line


def _stacked(pictures: Sequence[Image.Image], margin: int = MARGIN) -> Image.Image:
    """Pictures below each other, ``margin`` around and between them."""
    width = max(picture.width for picture in pictures) + 2 * margin
    height = sum(picture.height + margin for picture in pictures) + margin
    sheet, top = Image.new("RGB", (width, height), "white"), margin
    for picture in pictures:
        sheet.paste(picture, (margin, top))
        top += picture.height + margin
    return sheet
