"""The vocabulary of the world: what things are called, and how large and how coloured they are.

Lengths are world units; a unit near the middle of the picture is 32 pixels of 128.
"""

from __future__ import annotations

SHAPES = ("sphere", "cube", "cylinder", "cone", "torus")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
PATTERNS = ("plain", "striped", "checkered", "dotted")
SIZES = ("small", "medium", "large")
RELATIONS = ("left of", "right of", "above", "below", "behind", "in front of")
FLOORS = ("wood", "tiles", "grass", "marble", "carpet")
WALLS = ("brick", "lines", "polka", "panels", "plaster")

INVERSE = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "behind": "in front of",
    "in front of": "behind",
}
"""The relation of the second thing to the first."""

RADII = {"small": 0.50, "medium": 0.66, "large": 0.88}
"""Radius of the ball that a thing of this size fits into, in world units."""

RGB: dict[str, tuple[float, float, float]] = {
    "red": (0.88, 0.10, 0.10),
    "orange": (1.00, 0.50, 0.04),
    "yellow": (0.99, 0.87, 0.08),
    "green": (0.10, 0.62, 0.17),
    "cyan": (0.08, 0.78, 0.82),
    "blue": (0.10, 0.22, 0.88),
    "purple": (0.52, 0.12, 0.68),
    "white": (0.96, 0.96, 0.96),
}
"""Colours in full light, 0 to 1."""

DARK_MARKS = ("yellow", "cyan", "white", "orange")
"""Colours whose stripes, checks and dots are dark; those of the others are white."""

SHAPE_NAMES: dict[str, tuple[str, ...]] = {
    "sphere": ("ball", "sphere"),
    "cube": ("cube", "box"),
    "cylinder": ("cylinder", "can"),
    "cone": ("cone",),
    "torus": ("ring", "donut", "torus"),
}
COLOUR_NAMES: dict[str, tuple[str, ...]] = {
    "cyan": ("cyan", "turquoise"),
    "purple": ("purple", "violet"),
    **{name: (name,) for name in ("red", "orange", "yellow", "green", "blue", "white")},
}
PATTERN_ADJECTIVES: dict[str, tuple[str, ...]] = {
    "plain": ("",),
    "striped": ("striped",),
    "checkered": ("checkered", "checked"),
    "dotted": ("dotted", "spotted"),
}
PATTERN_NOUNS = {"striped": "stripes", "checkered": "checks", "dotted": "dots"}
SIZE_NAMES: dict[str, tuple[str, ...]] = {
    "small": ("small", "little", "tiny"),
    "medium": ("",),
    "large": ("large", "big", "huge"),
}
RELATION_NAMES: dict[str, tuple[str, ...]] = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "behind": ("behind",),
    "in front of": ("in front of", "before"),
}
NUMBERS = ("no", "one", "two", "three", "four")
FLOOR_NAMES: dict[str, tuple[str, ...]] = {
    "wood": ("a wooden floor", "planks"),
    "tiles": ("tiles", "a tiled floor"),
    "grass": ("grass", "a lawn"),
    "marble": ("a marble floor", "marble"),
    "carpet": ("a carpet", "a woven carpet"),
}
WALL_NAMES: dict[str, tuple[str, ...]] = {
    "brick": ("a brick wall", "bricks"),
    "lines": ("lined wallpaper",),
    "polka": ("polka wallpaper",),
    "panels": ("a panelled wall", "panels"),
    "plaster": ("a bare wall",),
}
PLURALS = {
    "ball": "balls",
    "sphere": "spheres",
    "cube": "cubes",
    "box": "boxes",
    "cylinder": "cylinders",
    "can": "cans",
    "cone": "cones",
    "ring": "rings",
    "donut": "donuts",
    "torus": "tori",
}
