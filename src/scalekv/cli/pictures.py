"""PNG files that say how they were made, and two pictures side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from scalekv._version import __version__
from scalekv.cli.output import as_json
from scalekv.errors import InvalidInput
from scalekv.files import replacing

MARGIN = 8


@dataclass(frozen=True)
class Origin:
    """How one picture was made.

    Args:
        prompt: its text.
        negative: what it was steered away from.
        seed: of its own generator.
        settings: everything else, by name.
    """

    prompt: str
    negative: str | None
    seed: int
    settings: dict[str, Any]

    def parameters(self) -> str:
        """The text that image browsers of the AUTOMATIC1111 family read."""
        known = {
            "Steps": self.settings["segments"],
            "Sampler": "next-scale",
            "CFG scale": self.settings["guidance"],
            "Seed": self.seed,
            "Size": f"{self.settings['width']}x{self.settings['height']}",
            "Model": self.settings["model"],
            "KV method": self.settings["method"],
            "KV budget": self.settings["budget"],
            "Version": f"scalekv {__version__}",
        }
        lines = [self.prompt]
        if self.negative:
            lines.append(f"Negative prompt: {self.negative}")
        return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in known.items())])

    def chunks(self) -> PngInfo:
        """The text chunks ``parameters`` and ``scalekv`` (JSON)."""
        chunks = PngInfo()
        chunks.add_text("parameters", self.parameters())
        own = {"prompt": self.prompt, "negative_prompt": self.negative, "seed": self.seed, "version": __version__}
        chunks.add_text("scalekv", as_json({**own, **self.settings}))
        return chunks


def write_png(picture: Image.Image, path: Path, origin: Origin) -> None:
    """Write a PNG that appears whole or not at all.

    Raises:
        InvalidInput: the place cannot be written, or the disk is full.
    """
    with replacing(path) as temporary:
        try:
            picture.save(temporary, format="PNG", pnginfo=origin.chunks())
        except OSError as error:
            raise InvalidInput(f"Cannot write {path}: {error.strerror or error}; choose another --out.") from error


def psnr(picture: Image.Image, reference: Image.Image) -> float:
    """Peak signal-to-noise ratio in decibels; infinite for equal pictures."""
    import torch
    from torchmetrics.functional.image import peak_signal_noise_ratio

    first, second = (torch.from_numpy(np.asarray(one.convert("RGB")).astype("float32")) for one in (picture, reference))
    if torch.equal(first, second):
        return float("inf")
    return float(peak_signal_noise_ratio(first, second, data_range=255.0))


def side_by_side(panels: list[tuple[Image.Image, list[str]]]) -> Image.Image:
    """Pictures of one size next to each other, each under its lines of text."""
    width, height = panels[0][0].size
    lines = max(len(text) for _, text in panels)
    font = _font([line for _, text in panels for line in text], width)
    step = int(font.size * 1.35)
    top = MARGIN + step * lines + MARGIN // 2
    size = (MARGIN + len(panels) * (width + MARGIN), top + height + MARGIN)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for index, (picture, text) in enumerate(panels):
        left = MARGIN + index * (width + MARGIN)
        for number, line in enumerate(text):
            draw.text((left, MARGIN + number * step), line, fill="black", font=font)
        sheet.paste(picture.convert("RGB"), (left, top))
    return sheet


def _font(lines: list[str], width: int) -> ImageFont.FreeTypeFont:
    """The largest font up to 1/40 of the picture in which every line fits over it."""
    size = max(12, width // 40)
    while True:
        font = ImageFont.load_default(size=size)
        assert isinstance(font, ImageFont.FreeTypeFont)
        if size <= 8 or max(font.getlength(line) for line in lines) <= width:
            return font
        size -= 1
