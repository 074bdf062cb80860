"""The work of ``scalekv evaluate``: loading, progress, and what is said at the end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalekv.cli.loading import TINY, TINY_CLASSES, check_subject, open_model
from scalekv.cli.output import Output, Steps
from scalekv.errors import InvalidInput
from scalekv.evaluation.jobs import Grid, Share
from scalekv.evaluation.subjects import Subject, class_subjects
from scalekv.planning import Profile

if TYPE_CHECKING:
    from scalekv.evaluation.request import Request
    from scalekv.evaluation.runner import Progress
    from scalekv.evaluation.store import RunFolder

LINE_SECONDS = 60.0
"""Between two lines about progress where there is no terminal for a bar."""

KNOWN = ("lpips", "fid")
"""Metrics by name; others are imported."""


@dataclass(frozen=True)
class Wanted:
    """What was typed, read and checked.

    Args:
        model: name or folder.
        dtype: of the model.
        cache_dtype: of its cache; default that of the model.
        device: where it runs; default this process's GPU, or the best there is.
        grid: methods, budgets and seeds.
        subjects: prompts; ``None`` for classes.
        classes: numbers or names of classes; ``None`` for all.
        per_class: pictures of each class.
        batch: pictures drawn together.
        generation: further arguments of the pipeline.
        profile: instead of the model's own.
        metrics: beside the usual ones.
        save_pictures: keep all pictures.
        sheet: prompts whose pictures are kept anyway.
        out: folder of the run.
        archives: folder for ``.npz`` files.
        command: what was typed.
    """

    model: str
    dtype: str | None
    cache_dtype: str | None
    device: str | None
    grid: Grid
    subjects: tuple[Subject, ...] | None
    classes: list[int | str] | None
    per_class: int
    batch: int
    generation: dict[str, Any]
    profile: Profile | None
    metrics: tuple[str, ...]
    save_pictures: bool
    sheet: int
    out: Path
    archives: Path | None
    command: str

    def request(self, pipeline: Any) -> Request:
        """What the library is asked for.

        Raises:
            InvalidInput: a class that the model does not know, or a metric that cannot be had here.
        """
        from scalekv.evaluation.plugins import load_scorer
        from scalekv.evaluation.request import Request

        subjects = self.subjects
        if subjects is None:
            subjects = class_subjects(self._class_numbers(pipeline), self.per_class, _classes_of(pipeline))
        return Request(
            self.grid,
            subjects,
            name=self.model,
            batch=self.batch,
            generation=self.generation,
            profile=self.profile,
            lpips="lpips" in self.metrics,
            fid="fid" in self.metrics,
            scorers=tuple(load_scorer(name) for name in dict.fromkeys(self.metrics) if name not in KNOWN),
            save_pictures=self.save_pictures or self.archives is not None,
            sheet=self.sheet,
            command=self.command,
        )

    def _class_numbers(self, pipeline: Any) -> list[int] | None:
        from scalekv.models.var.classes import class_id

        if self.classes is None:
            return None
        names, count = pipeline.class_names, _classes_of(pipeline)
        return [class_id(one, names, count) if isinstance(one, str) else one for one in self.classes]


def _classes_of(pipeline: Any) -> int:
    return int(pipeline.transformer.config.num_classes)


class Evaluation:
    """One process of one evaluation."""

    def __init__(self, output: Output, wanted: Wanted, share: Share) -> None:
        self.output, self.wanted, self.share = output, wanted, share

    def run(self) -> None:
        """Draw, write, and report when all is there."""
        begin = time.perf_counter()
        self._check_metrics()
        with self.output.guarded():
            from scalekv.evaluation.runner import evaluate, lacking

            wanted = self.wanted
            pipeline = open_model(wanted.model, wanted.dtype, self._device(), wanted.cache_dtype)
            check_subject(wanted.model, wanted.subjects is None, pipeline, option="--classes")
            request = wanted.request(pipeline)
            self._begin(request)
            with self._resumable(), self._progress() as progress:
                run = evaluate(pipeline, request, wanted.out, share=self.share, progress=progress)
            left = lacking(run, request)
            notes = [] if left else self._archives(run, request)
        self._report(run, request, left, notes, time.perf_counter() - begin)

    def _check_metrics(self) -> None:
        """Say what a metric lacks before a model is loaded."""
        for name in self.wanted.metrics:
            if name not in KNOWN and ":" not in name:
                raise InvalidInput(f"There is no metric {name!r}; choose lpips or fid, or write MODULE:NAME.")
        problem = None
        if "lpips" in self.wanted.metrics:
            from scalekv.evaluation.metrics import missing_lpips

            problem = missing_lpips()
        if "fid" in self.wanted.metrics and problem is None:
            from scalekv.evaluation.distance import missing_fid

            problem = missing_fid()
        if problem is not None:
            raise InvalidInput(problem)

    def _device(self) -> str | None:
        """The GPU of this process where a launcher started several; what was asked for goes first."""
        import torch

        if self.wanted.device is not None or self.share.count == 1 or not torch.cuda.is_available():
            return self.wanted.device
        return f"cuda:{self.share.device % torch.cuda.device_count()}"

    def _begin(self, request: Request) -> None:
        if self.share.rank:
            return
        grid, model = request.grid, self.wanted.model
        if model in (TINY, TINY_CLASSES):
            self.output.note(f"{model} has random weights: results tell how a method works, not how well.")
        pictures = len(request.subjects) * len(grid.seeds)
        parts = f" in {self.share.count} processes" if self.share.count > 1 else ""
        self.output.note(
            f"{_count(len(grid.cells), 'method and budget', 'methods and budgets')}, "
            f"{_count(pictures, 'picture', 'pictures')} of each{parts}."
        )

    @contextlib.contextmanager
    def _resumable(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            self.output.note(f"{self.wanted.out} holds all results so far; the same command goes on from here.")
            raise

    @contextlib.contextmanager
    def _progress(self) -> Iterator[Progress | None]:
        if self.share.rank:
            yield None
            return
        with self.output.progress("evaluating", time_left=True) as steps:
            yield _Told(self.output, steps)

    def _archives(self, run: RunFolder, request: Request) -> list[str]:
        if self.wanted.archives is None:
            return []
        from scalekv.evaluation.export import export
        from scalekv.evaluation.gallery import galleries

        chosen = [gallery for gallery in galleries(run) if gallery.cell in request.grid.cells]
        return export(run.info.subjects, chosen, "npz", self.wanted.archives)

    def _report(self, run: RunFolder, request: Request, left: int, notes: list[str], seconds: float) -> None:
        if left and self.share.rank:
            return
        output = self.output
        if left:
            output.note(f"This process is done; others still have {_count(left, 'picture', 'pictures')} to draw.")
            return
        from scalekv.evaluation.summary import summarize
        from scalekv.evaluation.tables import table

        records = run.records()
        rows = summarize(records, run.fids())
        output.table(*table(rows))
        output.say()
        output.say(
            f"{run.path / 'results.csv'}: {_count(len(records), 'result', 'results')} of "
            f"{_count(len(run.info.subjects), 'prompt', 'prompts')}, bytes of {request.batch} at once; "
            f"tables with intervals in {run.path / 'summary.md'}"
        )
        for note in notes:
            output.note(note)
        output.result(
            {"run": str(run.path), "results": len(records), "rows": [row.to_dict() for row in rows], "seconds": seconds}
        )


class _Told:
    """Progress as a bar, and where no terminal shows one, now and then as a line."""

    def __init__(self, output: Output, steps: Steps) -> None:
        self._output, self._steps = output, steps
        self._begin = self._last = time.monotonic()

    def __call__(self, done: int, total: int, what: str) -> None:
        """Tell how far the run is."""
        self._steps.reach(done, total, what)
        now = time.monotonic()
        if now - self._last < LINE_SECONDS or self._output.stderr.isatty():
            return
        self._last = now
        left = round((now - self._begin) / done * (total - done))
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        self._output.note(f"{done} of {total} pictures, {clock} to go")


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"
