"""Pictures as one numpy archive, written picture by picture: 50,000 of them are 10 GB."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scalekv.errors import InvalidInput

if TYPE_CHECKING:
    from PIL.Image import Image


def write_npz(path: Path, pictures: Iterable[Image], count: int) -> None:
    """Write ``arr_0``, (pictures, height, width, 3) bytes, as ``numpy.savez`` does.

    Args:
        path: a new ``.npz``.
        pictures: RGB, all of one size.
        count: how many.

    Raises:
        InvalidInput: pictures of different sizes.
    """
    shape: tuple[int, ...] = ()
    with (
        zipfile.ZipFile(path, "w", allowZip64=True) as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as file,
    ):
        for picture in pictures:
            pixels = np.asarray(picture.convert("RGB"))
            if not shape:
                shape = pixels.shape
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
                np.lib.format.write_array_header_1_0(file, header)
            if pixels.shape != shape:
                raise InvalidInput(f"Pictures of different sizes ({shape} and {pixels.shape}) fit into no one array.")
            file.write(pixels.tobytes())
