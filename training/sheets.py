"""Sheets of pictures to look at while a run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_LINE, _LINES, _LETTERS = 12, 3, 36


def save_pairs(above: NDArray[np.uint8], below: NDArray[np.uint8], path: Path, columns: int = 8) -> None:
    """Pictures (n, h, w, 3), each above its partner."""
    rows = []
    for start in range(0, len(above), columns):
        for pictures in (above, below):
            row = list(pictures[start : start + columns])
            row += [np.zeros_like(row[0])] * (columns - len(row))
            rows.append(np.concatenate(row, axis=1))
    Image.fromarray(np.concatenate(rows)).save(path)


def save_captioned(pictures: NDArray[np.uint8], captions: Sequence[str], path: Path, columns: int = 8) -> None:
    """Pictures (n, h, w, 3), enlarged, each with its caption below."""
    side = 224
    cell = side + _LINE * _LINES + 4
    sheet = Image.new("RGB", (columns * (side + 4), -(-len(pictures) // columns) * cell), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (picture, text) in enumerate(zip(pictures, captions, strict=True)):
        x, y = index % columns * (side + 4), index // columns * cell
        sheet.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC), (x, y))
        for line in range(_LINES):
            pen.text((x, y + side + _LINE * line), text[line * _LETTERS : (line + 1) * _LETTERS], fill="black")
    sheet.save(path)
