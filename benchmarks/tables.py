"""The tables of docs/results.md and README.md from a finished run of ``scalekv evaluate``, as Markdown.

python benchmarks/tables.py RUN [--into docs/results.md]
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from scalekv.evaluation import RunFolder, differences, summarize
from scalekv.evaluation.intervals import Interval, bootstrap
from scalekv.evaluation.jobs import FULL
from scalekv.evaluation.summary import Row
from scalekv.evaluation.tables import markdown
from scalekv.files import write_atomically

OURS, PAPER = "bytewise", "scalekv"
COUNTED = ("20%", "10%", "4%")
"""Budgets whose mean orders the methods."""


def half(interval: Interval) -> float:
    """Half the width of an interval."""
    return (interval.high - interval.low) / 2


def psnr(row: Row | None) -> str:
    """Mean and half an interval, or that the method refused."""
    if row is None or row.infeasible:
        return "refused"
    return f"{row.metrics['psnr'].mean:.2f} ±{half(row.metrics['psnr']):.2f}"


def lines(head: list[str], rows: list[list[str]], left: int = 1) -> list[str]:
    """A Markdown table, the first ``left`` columns to the left."""
    rule = ["---"] * left + ["--:"] * (len(head) - left)
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


class Tables:
    """What the documents show of one run.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        records = list(RunFolder.open(folder).records())
        self.records = records
        self.rows = summarize(records)
        self.full = next(row for row in self.rows if row.label == FULL.spec.label)
        self.cells = {(row.label, row.budget): row for row in self.rows if row is not self.full}
        self.budgets = list(dict.fromkeys(budget for _, budget in self.cells))
        self.labels = sorted(dict.fromkeys(label for label, _ in self.cells), key=self._order, reverse=True)
        self.pairs = {(one.label, one.other, one.budget): one.interval for one in differences(records)}

    def _order(self, label: str) -> float:
        rows = [self.cells.get((label, budget)) for budget in COUNTED]
        return sum(row.metrics["psnr"].mean for row in rows if row is not None and not row.infeasible)

    def matrix(self) -> list[str]:
        """PSNR of all methods and budgets."""
        rows = [[f"`{label}`", *(psnr(self.cells.get((label, one))) for one in self.budgets)] for label in self.labels]
        return lines(["method", *self.budgets], rows)

    def gain(self, other: str, budget: str) -> str:
        """The paired advantage of ours over another method."""
        forward = self.pairs.get((OURS, other, budget))
        backward = self.pairs.get((other, OURS, budget))
        if forward is not None:
            mean, low, high = forward.mean, forward.low, forward.high
        else:
            assert backward is not None
            mean, low, high = -backward.mean, -backward.high, -backward.low
        return f"{mean:+.1f} ({low:.1f} to {high:.1f})"

    def best(self, budget: str) -> str:
        """The best published method."""
        rows = {label: self.cells.get((label, budget)) for label in self.labels if label != OURS}
        means = {label: row.metrics["psnr"].mean for label, row in rows.items() if row is not None and row.metrics}
        return max(means, key=means.__getitem__)

    def advantages(self) -> list[str]:
        """Ours over the paper's method and over the best other."""
        rows = [
            [budget, self.gain(PAPER, budget), f"{self.gain(self.best(budget), budget)}, `{self.best(budget)}`"]
            for budget in self.budgets
        ]
        return lines(["budget", f"over `{PAPER}`", "over the best other published method"], rows)

    def readme(self) -> list[str]:
        """The few rows of the README."""
        budgets = [budget for budget in self.budgets if budget != "50%"]

        def short(label: str, budget: str) -> str:
            return f"{self.cells[label, budget].metrics['psnr'].mean:.1f}"

        rows = [[f"`{OURS}`", *(short(OURS, budget) for budget in budgets)]]
        rows.append(
            ["best published method", *(f"{short(self.best(one), one)} (`{self.best(one)}`)" for one in budgets)]
        )
        rows += [[f"`{label}`", *(short(label, budget) for budget in budgets)] for label in (PAPER, "random")]
        return lines(["", *budgets], rows)

    def work(self) -> list[str]:
        """Attention FLOPs over those of the full cache, seconds over its seconds, prompts followed, bits in percent."""
        rows = []
        for row in (self.full, *(self.cells[label, one] for label in self.labels for one in self.budgets)):
            if row.infeasible:
                continue
            flops, seconds = row.figures["attention_flops"] / self.full.figures["attention_flops"], self.seconds(row)
            cells = [f"`{row.label}`", row.budget, f"{100 * flops:.1f}"]
            cells += [f"{seconds.mean:.2f} ({seconds.low:.2f} to {seconds.high:.2f})"]
            told = row.following_overall
            cells += ["-" if told is None else f"{100 * told.mean:.1f} ({100 * told.low:.1f} to {100 * told.high:.1f})"]
            cells += [f"{100 * row.metrics['agreement'].mean:.2f}"]
            rows.append(cells)
        return lines(
            ["method", "budget", "attention FLOPs %", "seconds / full", "prompts followed %", "bits %"], rows, 1
        )

    def seconds(self, row: Row) -> Interval:
        """Seconds over those of the full cache for the same prompts, a mean over batches with its 95 % interval."""
        own, full = self._seconds(row), self._seconds(self.full)
        batches = sorted({(own[pictured], full[pictured]) for pictured in own})
        return bootstrap([one / other for one, other in batches])

    def _seconds(self, row: Row) -> dict[tuple[int, int], float]:
        """Of the batch that a prompt and seed were drawn in."""
        key = (row.label, row.budget)
        done = (one for one in self.records if (one["label"], one["budget"]) == key and "infeasible" not in one)
        return {(one["prompt_index"], one["seed"]): one["seconds"] for one in done}

    def everything(self) -> list[list[str]]:
        """All metrics, and the prompts followed by category where they were judged."""
        blocks = markdown(self.rows).split("\n\n")
        return [block.strip().splitlines() for block in blocks if block.startswith("|")]


def renewed(document: str, tables: dict[str, list[str]]) -> str:
    """``document`` with the first table below each of the headings replaced, all else as it was.

    Raises:
        ValueError: a heading is not there, or has no table.
    """
    before = document.splitlines()
    for heading, table in tables.items():
        start = before.index(f"## {heading}")
        first = next(row for row in range(start, len(before)) if before[row].startswith("|"))
        last = next((row for row in range(first, len(before)) if not before[row].startswith("|")), len(before))
        before[first:last] = table
    return "\n".join(before) + "\n"


def main() -> None:
    """Print everything, or put it into a document."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of scalekv evaluate")
    parser.add_argument("--into", type=Path, help="document whose tables are replaced, by their headings")
    chosen = parser.parse_args()
    tables = Tables(chosen.run)
    shown = {"PSNR against the full cache, dB": tables.matrix(), "Work, prompts and bits": tables.work()}
    if {OURS, PAPER, "random"} <= set(tables.labels):
        shown |= {"Who wins": tables.advantages()}
    shown |= dict(zip(("All figures", "Prompts followed, by category"), tables.everything(), strict=False))
    if chosen.into is not None:
        write_atomically(chosen.into, renewed(chosen.into.read_text(), shown).encode())
        return
    if {OURS, PAPER, "random"} <= set(tables.labels):
        shown |= {"README": tables.readme()}
    for title, table in shown.items():
        print(f"\n## {title}\n" + "\n".join(table))


if __name__ == "__main__":
    main()
