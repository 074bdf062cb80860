"""How much of what two runs drew is the same: bits of Infinity, tokens of VAR."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scalekv.errors import InvalidInput

Drawn = Sequence[NDArray[np.integer]]
"""Per segment the whole numbers of one picture: bits (height, width, bits per place) or tokens (height, width)."""


def agreement(drawn: Drawn, reference: Drawn) -> list[float]:
    """Share of equal bits or tokens in every segment, 0 to 1.

    Two runs that agree on nothing share about half of their bits.

    Raises:
        InvalidInput: segments of other shapes.
    """
    shapes = [[one.shape for one in run] for run in (drawn, reference)]
    if shapes[0] != shapes[1]:
        raise InvalidInput(f"Runs of other segments cannot be compared: {shapes[0]} and {shapes[1]}.")
    return [float((one == other).mean()) for one, other in zip(drawn, reference, strict=True)]
