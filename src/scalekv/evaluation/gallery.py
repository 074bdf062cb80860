"""The pictures that a run kept, by method and budget. Needs no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scalekv.errors import InvalidInput
from scalekv.evaluation.jobs import Cell
from scalekv.evaluation.store import RunFolder
from scalekv.policies.specs import PolicySpec

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Gallery:
    """The pictures of one method at one budget.

    Args:
        run: where they are.
        cell: the method and its budget.
        seeds: of the run.
    """

    run: RunFolder
    cell: Cell
    seeds: tuple[int, ...]

    def paths(self, index: int) -> list[Path]:
        """The pictures of a prompt, by seed."""
        return [self.run.picture_path(self.cell, index, seed) for seed in self.seeds]

    def pictures(self, index: int) -> Iterator[Image]:
        """The same, opened."""
        for seed in self.seeds:
            picture = self.run.picture(self.cell, index, seed)
            assert picture is not None
            yield picture

    def check(self, prompts: int) -> None:
        """Make sure that all pictures are there.

        Raises:
            InvalidInput: some were not kept.
        """
        missing = sum(not path.exists() for index in range(prompts) for path in self.paths(index))
        if missing:
            which = f"{self.cell.spec.label} at {self.cell.budget}"
            raise InvalidInput(
                f"{missing} of {prompts * len(self.seeds)} pictures of {which} were not kept; evaluate again with "
                "--save-pictures, which draws them."
            )


def galleries(run: RunFolder) -> list[Gallery]:
    """All methods and budgets of a run that have results."""
    seeds: dict[tuple[str, str], set[int]] = defaultdict(set)
    for record in run.records():
        if "infeasible" not in record:
            seeds[record["label"], record["budget"]].add(record["seed"])
    return [
        Gallery(run, Cell(PolicySpec.parse(label), budget), tuple(sorted(found)))
        for (label, budget), found in seeds.items()
    ]
