"""What an evaluation has to do: methods x budgets x prompts x seeds, each with a key that never changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from scalekv.errors import InvalidInput
from scalekv.planning import Budget
from scalekv.policies import Policy
from scalekv.policies.specs import PolicySpec, file_name

SEED_STRIDE = 1_000_000
"""From one seed of a run to the next, so that no two of its pictures share their noise [ours]."""


@dataclass(frozen=True)
class Cell:
    """One method at one budget: a row of a table of results.

    Args:
        spec: the method.
        budget: as text, such as ``10%``.
    """

    spec: PolicySpec
    budget: str

    @property
    def policy(self) -> Policy:
        """The method, ready to plan."""
        return self.spec.policy(self.budget)

    @property
    def folder(self) -> str:
        """A relative path for files of this cell, two names deep."""
        return f"{file_name(self.spec.label)}/{file_name(self.budget)}"

    def key(self, prompt_index: int, seed: int) -> str:
        """What identifies the result of one picture within a run."""
        return f"{self.spec.label}/{self.budget}/{prompt_index}/{seed}"


FULL = Cell(PolicySpec("full"), "100%")
"""The full cache, against which everything is measured."""


@dataclass(frozen=True)
class Unit:
    """Pictures that one process draws one method after another: a batch of neighbouring prompts at one seed.

    Batches are the same whatever is drawn, resumed or split, so that equal jobs give equal bits.

    Args:
        start: index of the first prompt.
        stop: one past the last.
        seed: of the run; the picture of prompt i is drawn with ``seed + i``.
    """

    start: int
    stop: int
    seed: int

    @property
    def indices(self) -> range:
        """Indices of the prompts."""
        return range(self.start, self.stop)


@dataclass(frozen=True)
class Share:
    """Which part of the work is this process's.

    Args:
        rank: number of this process, from 0.
        count: processes in all.
        device: number of the GPU that is meant for it, where there are several.

    Raises:
        InvalidInput: no such rank.
    """

    rank: int = 0
    count: int = 1
    device: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.count:
            raise InvalidInput(f"Process {self.rank} of {self.count} does not exist; count processes from 0.")

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> Share:
        """What ``accelerate launch`` (or ``torchrun``) tells a process; the whole work without a launcher.

        Raises:
            InvalidInput: values that no launcher sets.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        values = [environment.get(name, default) for name, default in zip(names, ("0", "1", "0"), strict=True)]
        if not all(value.isdigit() for value in values):
            found = ", ".join(f"{name}={value!r}" for name, value in zip(names, values, strict=True))
            raise InvalidInput(f"{found}: expected the numbers that 'accelerate launch' sets.")
        rank, count, device = map(int, values)
        return cls(rank, count, device)

    def of(self, units: Sequence[Unit]) -> Iterator[Unit]:
        """The units of this process; every unit belongs to exactly one."""
        return iter(units[self.rank :: self.count])


@dataclass(frozen=True)
class Grid:
    """All that is asked for, but for the prompts.

    Args:
        specs: methods; the full cache is always measured and need not be among them.
        budgets: as text, each once.
        seeds: of the run.
    """

    specs: tuple[PolicySpec, ...]
    budgets: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    cells: tuple[Cell, ...] = field(init=False)

    def __post_init__(self) -> None:
        specs = [spec for spec in dict.fromkeys(self.specs) if spec != FULL.spec]
        budgets = dict.fromkeys(str(Budget.parse(budget)) for budget in self.budgets)
        object.__setattr__(self, "cells", (FULL, *(Cell(spec, budget) for spec in specs for budget in budgets)))

    def units(self, windows: Iterable[tuple[int, int]]) -> list[Unit]:
        """All units, in the order of work: prompt by prompt, so that a run that is cut short has compared all methods.

        Args:
            windows: first prompt and one past the last of every batch.
        """
        return [Unit(start, stop, seed) for seed in self.seeds for start, stop in windows]


def parse_budgets(texts: Sequence[str]) -> tuple[str, ...]:
    """Read lists of budgets separated by commas, in the words in which they are printed.

    Raises:
        BudgetError: one cannot be read.
        InvalidInput: none at all.
    """
    budgets = [str(Budget.parse(piece.strip())) for text in texts for piece in text.split(",") if piece.strip()]
    if not budgets:
        raise InvalidInput("There is no budget; give some, such as '50%,20%,10%'.")
    return tuple(dict.fromkeys(budgets))


def spaced_seeds(first: int, count: int) -> tuple[int, ...]:
    """``count`` seeds whose pictures never share their noise."""
    return tuple(first + SEED_STRIDE * number for number in range(count))
