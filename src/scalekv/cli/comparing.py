"""Drawing one prompt under many policies, and what comes of it: a sheet, a table, single pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalekv._version import __version__
from scalekv.cli.drawing import Run, budget_of, method_of, policy_settings, quality_text, short_name
from scalekv.errors import BudgetError, InvalidInput, ProfileError
from scalekv.planning import format_bytes
from scalekv.policies import Full, Policy
from scalekv.policies.specs import file_name

if TYPE_CHECKING:
    from PIL.Image import Image

    from scalekv.cache import CacheReport
    from scalekv.evaluation.report.sheet import Tile


@dataclass(frozen=True)
class Entry:
    """One method at one budget.

    Args:
        policy: the method.
        picture: what it drew; ``None`` if it could not be planned.
        cache: what that took; ``None`` with ``picture``.
        psnr_db: against the full cache, infinite for the same picture; ``None`` with ``picture``.
        error: why there is no picture.
    """

    policy: Policy
    picture: Image | None = None
    cache: CacheReport | None = None
    psnr_db: float | None = None
    error: str | None = None

    @property
    def budget(self) -> str:
        """As text."""
        return budget_of(self.policy)

    @property
    def file_name(self) -> str:
        """Of the single picture."""
        budget = self.budget.replace("%", "percent").replace(" ", "")
        return f"{file_name(short_name(self.policy))}-{budget}.png"

    def tile(self) -> Tile:
        """The place of this entry on the sheet."""
        from scalekv.evaluation.report.sheet import Tile

        if self.cache is None or self.psnr_db is None:
            return Tile(None, ("no plan",), self.error or "")
        return Tile(self.picture, (quality_text(self.psnr_db), _kept(self.cache)))

    def cells(self) -> list[str]:
        """The line of this entry in a table."""
        if self.cache is None or self.psnr_db is None:
            return [method_of(self.policy), self.budget, "no plan", "", "", "", ""]
        quality = "identical" if self.psnr_db == float("inf") else f"{self.psnr_db:.2f}"
        kept, peak = format_bytes(self.cache.kept_bytes), format_bytes(self.cache.measured_peak_bytes)
        share, seconds = f"{100 * self.cache.kept_share:.2f}%", f"{self.cache.seconds or 0:.1f}"
        return [method_of(self.policy), self.budget, quality, kept, share, peak, seconds]

    def to_dict(self, folder: Path | None) -> dict[str, Any]:
        """Ready for JSON."""
        drawn = self.picture is not None
        return {
            **policy_settings(self.policy),
            "psnr_db": self.psnr_db,
            "identical": self.psnr_db == float("inf") if drawn else None,
            "cache": None if self.cache is None else self.cache.to_dict(),
            "path": str(folder / self.file_name) if folder is not None and drawn else None,
            "error": self.error,
        }


class Contest:
    """One prompt, drawn with the full cache and then by every policy.

    Args:
        run: the request, of one image.
        rows: policies of one method side by side.
    """

    def __init__(self, run: Run, rows: Sequence[Sequence[Policy]]) -> None:
        self.run, self.rows = run, rows

    def draw(self) -> Comparison:
        """Draw everything.

        Raises:
            InvalidInput: no policy at all can be planned.
        """
        drawn = self.run.pictures(Full())
        full = Entry(Full(), drawn.images[0], drawn.cache, float("inf"))
        rows = [[self._entry(policy, drawn.images[0]) for policy in row] for row in self.rows]
        errors = [entry.error for row in rows for entry in row]
        if all(errors):
            raise InvalidInput(f"None of the methods can be planned at these budgets: {errors[0]}")
        return Comparison(self.run, self.run.settings(drawn), full, rows)

    def _entry(self, policy: Policy, reference: Image) -> Entry:
        from scalekv.evaluation.metrics import psnr

        try:
            drawn = self.run.pictures(policy)
        except (BudgetError, ProfileError) as error:
            return Entry(policy, error=str(error))
        return Entry(policy, drawn.images[0], drawn.cache, psnr(drawn.images[0], reference))


@dataclass(frozen=True)
class Comparison:
    """The pictures of one prompt.

    Args:
        run: the request.
        settings: what all were drawn with.
        full: with the full cache.
        rows: entries of one method side by side.
    """

    run: Run
    settings: dict[str, Any]
    full: Entry
    rows: list[list[Entry]]

    @property
    def entries(self) -> list[Entry]:
        """All but the full cache, row by row."""
        return [entry for row in self.rows for entry in row]

    @property
    def title(self) -> str:
        """What was drawn, in a few words."""
        settings = self.settings
        size = f"{settings['width']}x{settings['height']}"
        dtype, held = settings["dtype"], settings["cache_dtype"]
        types = dtype if dtype == held else f"{dtype} with a cache in {held}"
        return f"{settings['model']}, {size}, {types}, seed {self.run.request.seed}"

    def table(self) -> list[list[str]]:
        """Lines for people, the full cache first."""
        return [entry.cells() for entry in (self.full, *self.entries)]

    def sheet(self) -> Image:
        """The contact sheet."""
        from scalekv.evaluation.report.sheet import Row, Sheet, Tile

        assert self.full.cache is not None
        rows = tuple(Row(tuple(entry.tile() for entry in row), method_of(row[0].policy)) for row in self.rows)
        columns = tuple(f"budget {entry.budget}" for entry in self.rows[0])
        head = Tile(self.full.picture, ("full cache", f"lossless: {format_bytes(self.full.cache.kept_bytes)}"))
        note = "Under each picture: PSNR against the full cache, and the history it kept."
        return Sheet(rows, columns, head, (self.run.request.prompt_of(0), self.title, note)).draw()

    def write(self, sheet: Path, folder: Path | None) -> None:
        """Write the sheet, and single pictures into ``folder`` if there is one.

        Raises:
            InvalidInput: a place cannot be written.
        """
        from scalekv.cli.pictures import write_png

        for entry in (self.full, *self.entries) if folder is not None else ():
            if folder is not None and entry.picture is not None:
                name = "full.png" if entry is self.full else entry.file_name
                origin = self.run.origin(0, {**self.settings, **policy_settings(entry.policy)})
                write_png(entry.picture, folder / name, origin)
        methods = ", ".join(method_of(row[0].policy) for row in self.rows)
        budgets = ", ".join(entry.budget for entry in self.rows[0])
        origin = self.run.origin(0, {**self.settings, "method": methods, "budget": budgets})
        write_png(self.sheet(), sheet, origin)

    def to_dict(self, sheet: Path, folder: Path | None) -> dict[str, Any]:
        """Ready for JSON."""
        assert self.full.cache is not None
        request = self.run.request
        return {
            "sheet": str(sheet),
            "prompt": request.prompt_of(0),
            "seed": request.seed,
            "full_cache": self.full.cache.to_dict(),
            "full_path": None if folder is None else str(folder / "full.png"),
            "entries": [entry.to_dict(folder) for entry in self.entries],
            "version": __version__,
            **self.settings,
        }


def _kept(cache: CacheReport) -> str:
    return f"{format_bytes(cache.kept_bytes)}, {100 * cache.kept_share:.3g}%"
