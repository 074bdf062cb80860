"""PNG files that say how they were made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from scalekv._version import __version__
from scalekv.cli.output import as_json
from scalekv.errors import InvalidInput
from scalekv.files import replacing


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
