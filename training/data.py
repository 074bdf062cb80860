"""Pictures of the world on disk, and the order in which training sees them.

``python -m training.data FOLDER`` draws them once. Seed ``i`` of a split is row ``i`` of its file, so that captions
need not be stored: they are made from the seed, in a new phrasing at every visit.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from scalekv.errors import InvalidInput
from scalekv.scenes import caption, render, sample_scene

HELD_OUT = 1024
"""Pictures that measure, never train."""

EXTRA, EXTRA_FIRST = 4096, 1_000_000
"""Pictures of held-out combinations from other seeds; only the detector, an instrument, is trained on them."""


def file_of(folder: Path, split: str) -> Path:
    """Where the pictures of a split are."""
    return folder / f"{split}.npy"


def _render(job: tuple[Path, str, int, range]) -> int:
    """Draw some rows of a file into it; returns how many."""
    path, split, first, rows = job
    pictures = np.load(path, mmap_mode="r+")
    for row in rows:
        pictures[row] = render(sample_scene(first + row, split))
    pictures.flush()
    return len(rows)


def draw(folder: Path, split: str, count: int, workers: int, name: str | None = None, first: int = 0) -> None:
    """Draw ``count`` scenes of a split into one file of (count, 128, 128, 3) bytes; keeps a finished one.

    Args:
        folder: where.
        split: of the scenes.
        count: how many.
        workers: processes; 0 draws in this one.
        name: of the file, without its ending; default the split's.
        first: seed of the first scene.
    """
    path = file_of(folder, name or split)
    if path.is_file() and len(np.load(path, mmap_mode="r")) == count:
        print(f"{path} is there already")
        return
    folder.mkdir(parents=True, exist_ok=True)
    started, temporary = time.perf_counter(), path.with_suffix(".part")
    np.lib.format.open_memmap(temporary, "w+", np.uint8, (count, 128, 128, 3)).flush()
    jobs = [(temporary, split, first, range(window.start, window.stop)) for window in batches(count, 256)]
    if workers:
        with get_context("spawn").Pool(workers) as pool:
            for _ in tqdm(pool.imap_unordered(_render, jobs), total=len(jobs), desc=name or split, mininterval=5):
                pass
    else:
        for job in jobs:
            _render(job)
    os.replace(temporary, path)
    print(f"{path}: {count} pictures in {time.perf_counter() - started:.0f} s")


def load(folder: Path, split: str) -> NDArray[Any]:
    """A file of rows, such as the pictures of a split (count, 128, 128, 3), read from disk as they are needed.

    Raises:
        InvalidInput: they have not been drawn.
    """
    path = file_of(folder, split)
    if not path.is_file():
        raise InvalidInput(f"{path} does not exist; draw it with 'python -m training.data', or encode it.")
    rows: NDArray[Any] = np.load(path, mmap_mode="r")
    return rows


def batch_indices(step: int, size: int, count: int, seed: int) -> NDArray[np.int64]:
    """Rows that batch ``step`` holds: every epoch visits all rows once, in an order of its own.

    A function of its arguments alone, so a resumed run goes on where the interrupted one stopped.
    """
    first = step * size
    rows: list[int] = []
    while len(rows) < size:
        epoch, offset = divmod(first + len(rows), count)
        order = np.random.default_rng((seed, epoch)).permutation(count)
        rows.extend(order[offset : offset + size - len(rows)])
    return np.array(rows, dtype=np.int64)


def captions(rows: NDArray[np.int64], split: str, phrasing: int) -> list[str]:
    """One caption for each row, in the phrasing of number ``phrasing``."""
    return [caption(sample_scene(int(row), split), phrasing * 1_000_003 + int(row)) for row in rows]


def batches(count: int, size: int) -> Iterator[slice]:
    """Consecutive windows that cover ``count`` rows."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def main() -> None:
    """Draw both splits."""
    parser = argparse.ArgumentParser(prog="python -m training.data", description="Draw the world once.")
    parser.add_argument("folder", type=Path, help="where the pictures go, outside of the repository")
    parser.add_argument("--count", type=int, default=30_000, help="training pictures (48 KiB each)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    chosen = parser.parse_args()
    draw(chosen.folder, "heldout", HELD_OUT, chosen.workers)
    draw(chosen.folder, "heldout", EXTRA, chosen.workers, name="extra", first=EXTRA_FIRST)
    draw(chosen.folder, "train", chosen.count, chosen.workers)


if __name__ == "__main__":
    main()
