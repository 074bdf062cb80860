"""The world of the built-in model: shaded solids in lit rooms, with captions and exact answers.

Every seed is one scene. Drawing and describing need numpy alone; only the detector loads torch.
"""

from __future__ import annotations

from scalekv.scenes.captions import caption
from scalekv.scenes.composing import sample_scene
from scalekv.scenes.graph import Placed, Scene, Surroundings, Thing, combinations, holds, split_of
from scalekv.scenes.render import render

__all__ = [
    "Placed",
    "Scene",
    "Surroundings",
    "Thing",
    "caption",
    "combinations",
    "holds",
    "render",
    "sample_scene",
    "split_of",
]
