"""Draws what an evaluation asks for, batch by batch, and writes one line for every result."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalekv.errors import BudgetError, InvalidInput
from scalekv.evaluation import identity
from scalekv.evaluation.agreement import agreement
from scalekv.evaluation.distance import fid, missing_fid
from scalekv.evaluation.drawing import Batch, Picture, Plans, draw
from scalekv.evaluation.following import Judge
from scalekv.evaluation.jobs import FULL, Cell, Share, Unit
from scalekv.evaluation.metrics import Distance, compare, load_lpips
from scalekv.evaluation.request import Request
from scalekv.evaluation.store import Record, RunFolder, Writer
from scalekv.evaluation.subjects import places
from scalekv.evaluation.summary import summarize
from scalekv.evaluation.tables import markdown
from scalekv.files import write_atomically
from scalekv.planning import Profile

if TYPE_CHECKING:
    from PIL.Image import Image

Progress = Callable[[int, int, str], None]
"""Called with (pictures done, pictures to do in this process, what is being drawn)."""


def evaluate(
    pipeline: Any,
    request: Request,
    folder: str | Path,
    *,
    share: Share | None = None,
    progress: Progress | None = None,
) -> RunFolder:
    """Run this process's share of an evaluation; what has a result already is not drawn again.

    Every result is paired: the picture of prompt i at seed s is drawn with seed ``s + i`` by all methods. Whoever
    completes the run writes ``results.csv``. Killed at any moment, the same call goes on where it stopped, and ends
    with the same results.

    Args:
        pipeline: an `InfinityPipeline` or a `VARPipeline`.
        request: what to evaluate.
        folder: of the run; a new one, or one with the same settings, to which it adds.
        share: this process's part; default all.
        progress: called after every batch.

    Returns:
        The run, with the prompts of this request; `lacking` tells what other processes still have to do.

    Raises:
        InvalidInput: a folder that is no such run or was made with other settings (names the first that differs), or
            an argument that the pipeline refuses.
        ProfileError: a method that needs a profile, and there is none.
    """
    if request.fid and (problem := missing_fid()) is not None:
        raise InvalidInput(problem)
    share, profile = share or Share(), identity.profile_of(pipeline, request.profile)
    fresh = not Path(folder).exists()
    run = RunFolder.begin_or_continue(
        Path(folder), request.settings(pipeline, profile), request.subjects, request.details(pipeline)
    )
    with _nothing_left_of_a_refused_run(run, fresh and share.count == 1), run.writer(share.rank) as writer:
        if share.rank == 0:
            run.save()
        run.save_profile(profile)
        _Runner(pipeline, request, run, profile, writer, progress).work(share)
    if not lacking(run, request):
        _finish(run, request, pipeline.device)
    return run


@contextlib.contextmanager
def _nothing_left_of_a_refused_run(run: RunFolder, fresh: bool) -> Iterator[None]:
    """Arguments that no picture can be drawn with are found out when the first is; then nobody resumes the run."""
    try:
        yield
    except InvalidInput:
        if fresh and not run.records():
            shutil.rmtree(run.path, ignore_errors=True)
        raise


def lacking(run: RunFolder, request: Request) -> int:
    """How many results of ``request`` are not there yet."""
    found = {record["key"] for record in run.records()}
    return sum(
        key not in found for unit in units_of(run, request) for cell in request.grid.cells for key in _keys(cell, unit)
    )


def _finish(run: RunFolder, request: Request, device: Any) -> None:
    """Write what needs all results."""
    run.write_csv()
    if request.fid:
        run.save_fids({**run.fids(), **_fids(run, request, device)})
    write_atomically(run.path / "summary.md", markdown(summarize(run.records(), run.fids())).encode())


def _fids(run: RunFolder, request: Request, device: Any) -> dict[str, float]:
    spots = [(index, unit.seed) for unit in units_of(run, request) for index in unit.indices]

    def pictures(cell: Cell) -> Iterator[Image]:
        return (picture for spot in spots if (picture := run.picture(cell, *spot)) is not None)

    cells = [cell for cell in request.grid.cells if cell != FULL and any(True for _ in pictures(cell))]
    return {f"{cell.spec.label}/{cell.budget}": fid(pictures(cell), pictures(FULL), device) for cell in cells}


def units_of(run: RunFolder, request: Request) -> list[Unit]:
    """The batches of ``request``, in the order of work."""
    return request.grid.units(run.info.windows_of(places(run.info.subjects, request.subjects)))


def _keys(cell: Cell, unit: Unit) -> list[str]:
    return [cell.key(index, unit.seed) for index in unit.indices]


class _Runner:
    """The work of one process."""

    def __init__(
        self,
        pipeline: Any,
        request: Request,
        run: RunFolder,
        profile: Profile | None,
        writer: Writer,
        progress: Progress | None,
    ) -> None:
        self.pipeline, self.request, self.run, self.writer = pipeline, request, run, writer
        self.plans = Plans(request.grid.cells, profile)
        self.judge, self.progress = Judge(), progress
        self.lpips: Distance | None = load_lpips() if request.lpips else None
        self.done = {record["key"]: "infeasible" in record for record in run.records()}

    def work(self, share: Share) -> None:
        """Draw all that lacks a result or a picture."""
        work = [(unit, self._lacking(unit)) for unit in share.of(units_of(self.run, self.request))]
        total = sum(len(unit.indices) * len(cells) for unit, cells in work)
        done = 0
        for unit, cells in work:
            for cell in self._drawn(unit, cells):
                done += len(unit.indices)
                if self.progress is not None:
                    self.progress(done, total, f"{cell.spec.label} {cell.budget}")

    def _lacking(self, unit: Unit) -> list[Cell]:
        return [
            cell for cell in self.request.grid.cells if any(self._lacks(cell, unit, index) for index in unit.indices)
        ]

    def _lacks(self, cell: Cell, unit: Unit, index: int) -> bool:
        key = cell.key(index, unit.seed)
        if key not in self.done:
            return True
        wanted = not self.done[key] and self._keeps(unit, index)
        return wanted and not self.run.picture_path(cell, index, unit.seed).exists()

    def _keeps(self, unit: Unit, index: int) -> bool:
        first = unit.seed == self.request.grid.seeds[0]
        return self.request.keeps_all or (first and index < self.request.sheet)

    def _drawn(self, unit: Unit, cells: Sequence[Cell]) -> Iterator[Cell]:
        """Draw and record a unit with several methods; yields each when it is done."""
        if not cells:
            return
        references = None if FULL in cells else self._stored(unit)
        if references is None:
            batch = self._draw(FULL, unit)
            references = batch.pictures
            for index, one in zip(unit.indices, references, strict=True):
                self.run.save_reference(index, unit.seed, one.image, one.drawn)
            self._record(FULL, unit, batch, references)
            if FULL in cells:
                yield FULL
        for cell in cells:
            if cell != FULL:
                self._compressed(cell, unit, references)
                yield cell

    def _stored(self, unit: Unit) -> list[Picture] | None:
        found = [self.run.reference(index, unit.seed) for index in unit.indices]
        whole = [Picture(*one) for one in found if one is not None]
        return whole if len(whole) == len(found) else None

    def _compressed(self, cell: Cell, unit: Unit, references: Sequence[Picture]) -> None:
        try:
            batch = self._draw(cell, unit)
        except BudgetError as error:
            self._append(cell, unit, [{"infeasible": str(error)}] * len(unit.indices))
            return
        for index, one in zip(unit.indices, batch.pictures, strict=True):
            if self._keeps(unit, index):
                self.run.save_picture(cell, index, unit.seed, one.image)
        self._record(cell, unit, batch, references)

    def _draw(self, cell: Cell, unit: Unit) -> Batch:
        texts = [self.run.info.subjects[index].text for index in unit.indices]
        seeds = [unit.seed + index for index in unit.indices]
        return draw(self.pipeline, texts, seeds, cell, self.plans, self.request.generation)

    def _record(self, cell: Cell, unit: Unit, batch: Batch, references: Sequence[Picture]) -> None:
        subjects = [self.run.info.subjects[index] for index in unit.indices]
        judged = self.judge(subjects, [one.image for one in batch.pictures])
        results = []
        for subject, one, reference, following in zip(subjects, batch.pictures, references, judged, strict=True):
            result = {**self._compared(one, reference, subject.text), **batch.figures()}
            results.append(result if following is None else {**result, "following": following})
        self._append(cell, unit, results)

    def _compared(self, one: Picture, reference: Picture, prompt: str) -> Record:
        found: Record = compare(one.image, reference.image)
        if self.lpips is not None:
            found["lpips"] = self.lpips(one.image, reference.image)
        found["agreement"] = agreement(one.drawn, reference.drawn)
        scores: dict[str, float] = {}
        for scorer in self.request.scorers:
            scores.update(scorer(one.image, reference.image, prompt))
        return {**found, "scores": scores} if scores else found

    def _append(self, cell: Cell, unit: Unit, results: Sequence[Record]) -> None:
        """Write the results of a unit that are not there yet."""
        records = []
        for index, result in zip(unit.indices, results, strict=True):
            key = cell.key(index, unit.seed)
            if key not in self.done:
                records.append({**self._head(cell, unit, index), **result})
                self.done[key] = "infeasible" in result
        self.writer.append(records)

    def _head(self, cell: Cell, unit: Unit, index: int) -> Record:
        return {
            "key": cell.key(index, unit.seed),
            "policy": cell.spec.name,
            "label": cell.spec.label,
            "settings": cell.policy.settings(),
            "budget": cell.budget,
            "prompt_index": index,
            "prompt": self.run.info.subjects[index].text,
            "seed": unit.seed,
            "picture_seed": unit.seed + index,
        }
