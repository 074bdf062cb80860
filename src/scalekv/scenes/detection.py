"""Reading things back from pictures: shapes, colours, patterns, sizes and places.

The detector is a small convolutional network trained on this world (``training.detector``). Torch is imported when a
detector is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scalekv.errors import CheckpointError, InvalidInput
from scalekv.scenes.camera import SIDE
from scalekv.scenes.graph import Placed

if TYPE_CHECKING:
    from PIL.Image import Image

    from scalekv.scenes.reader import SceneReader

WEIGHTS = "detector.safetensors"


def to_array(pictures: Sequence[NDArray[np.uint8] | Image] | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures as (n, 128, 128, 3) bytes.

    Args:
        pictures: arrays of bytes or PIL images, 128 x 128 RGB.

    Raises:
        InvalidInput: another size or kind.
    """
    arrays = [np.asarray(one) for one in pictures]
    for one in arrays:
        if one.shape != (SIDE, SIDE, 3) or one.dtype != np.uint8:
            raise InvalidInput(
                f"The detector reads {SIDE} x {SIDE} RGB pictures of bytes, got shape {one.shape} of {one.dtype}."
            )
    return np.stack(arrays) if arrays else np.zeros((0, SIDE, SIDE, 3), np.uint8)


class Detector:
    """Finds the things in pictures of this world.

    Args:
        network: the trained reader.
        threshold: certainty from which something is a thing.
    """

    def __init__(self, network: SceneReader, threshold: float = 0.35) -> None:
        self.network = network.eval()
        self.threshold = threshold

    @classmethod
    def load(cls, path: str | Path | None = None) -> Detector:
        """Read the weights; default those of the package.

        Raises:
            CheckpointError: no such file, or weights of another network.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        from scalekv.scenes.reader import SceneReader

        source: Any = files("scalekv.scenes") / WEIGHTS if path is None else Path(path)
        if not source.is_file():
            raise CheckpointError(f"{source} does not exist; train it with 'python -m training.detector'.")
        network = SceneReader()
        try:
            network.load_state_dict({name: tensor.float() for name, tensor in load(source.read_bytes()).items()})
        except (SafetensorError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{source} holds no detector ({str(error).splitlines()[0]}); train it.") from error
        return cls(network)

    def __call__(
        self, pictures: Sequence[NDArray[np.uint8] | Image] | NDArray[np.uint8], batch: int = 64
    ) -> list[list[Placed]]:
        """The things of every picture, the most certain first.

        Args:
            pictures: 128 x 128 RGB, as arrays of bytes or PIL images.
            batch: pictures per pass.

        Raises:
            InvalidInput: pictures of another size or kind.
        """
        array = to_array(pictures)
        found: list[list[Placed]] = []
        for start in range(0, len(array), batch):
            found += self.network.read(array[start : start + batch], self.threshold)
        return found
