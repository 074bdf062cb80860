"""How plots look: one colour and marker per method, and figures that suit a light and a dark page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import cycle
from typing import TYPE_CHECKING, Any

from scalekv.errors import InvalidInput

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, SOFT, GRID, PAPER = "#1a1b1c", "#5b5c5d", "#dcdddf", "#fffffe"
"""Colours of a light page; an SVG trades them for those of `THEME` on a dark one."""

THEME = {INK: ("ink", "#e8e8ea"), SOFT: ("soft", "#a9abb0"), GRID: ("grid", "#3a3d43"), PAPER: ("paper", "#17191d")}

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b35c92", "#b8860b", "#3a9bdc", "#7f7f7f")
"""After Okabe and Ito's colour-blind-safe palette, the lightest darkened until they show on white and on black."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*", "d", "8")

MAP = "cividis"
"""Colours of heat maps: even in lightness, the same to colour-blind eyes."""

_SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": SOFT,
    "axes.facecolor": PAPER,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "figure.facecolor": PAPER,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.color": SOFT,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "svg.hashsalt": "scalekv",
}


@dataclass(frozen=True)
class Look:
    """How one method looks in every plot of a page.

    Args:
        colour: of lines and markers.
        marker: unique among the first 14 methods.
        line: dash pattern; the second seven methods, which share colours with the first, are dashed.
    """

    colour: str
    marker: str
    line: str

    @property
    def plot(self) -> dict[str, Any]:
        """Arguments of matplotlib's ``plot``."""
        return {"color": self.colour, "marker": self.marker, "linestyle": self.line}


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """A look for every method, by its place in ``labels``."""
    lines = [line for line in ("-", "--", ":") for _ in COLOURS]
    styles = zip(cycle(COLOURS), cycle(MARKERS), cycle(lines), strict=False)
    return {label: Look(*style) for label, style in zip(labels, styles, strict=False)}


def check_plotting() -> None:
    """Make sure that plots can be drawn.

    Raises:
        InvalidInput: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise InvalidInput("The report is drawn with matplotlib, which is not installed; pip install 'scalekv[plot]'.")


@contextmanager
def house_style() -> Iterator[None]:
    """Draw figures in this style inside the block; matplotlib's own settings are as before after it."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches; needs no display."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def marker_path(look: Look) -> str:
    """The marker as an SVG path around 0, about 1 across."""
    from matplotlib.markers import MarkerStyle

    style = MarkerStyle(look.marker)
    letters = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}
    pieces = []
    for points, code in style.get_path().transformed(style.get_transform()).iter_segments():
        pieces.append(letters[int(code)] + ("" if code == 79 else " ".join(f"{value:.3f}" for value in points)))
    return "".join(pieces)


def as_png(figure: Figure) -> bytes:
    """The figure on white."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=160, metadata={"Software": None})
    return stream.getvalue()


def as_svg(figure: Figure) -> str:
    """The figure as one SVG text that follows the colour scheme of whoever looks at it."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    for colour, (name, _) in THEME.items():
        text = text.replace(colour, f"var(--{name})")
    light = "".join(f"--{name}:{colour};" for colour, (name, _) in THEME.items())
    dark = "".join(f"--{name}:{shade};" for name, shade in THEME.values())
    style = f"<style>:root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    return re.sub(r"(<svg[^>]*>)", rf"\1{style}", text, count=1)
