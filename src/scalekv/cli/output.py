"""What every command prints through: text for people, one JSON object for programs, one sentence for errors."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from scalekv.errors import InvalidInput

OK, BUG, INVALID, OUT_OF_MEMORY, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes. Memory has its own, so that a script can try again with a smaller budget."""

WIDE = 1000
"""Characters of a line where no person reads: lines of a file or a pipe are never broken."""

SPEED_PERIOD = 1800
"""Seconds of the past from which the time left is told: single steps may take minutes."""

_CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}

_CANNOT_USE = {errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EIO}

_CLICK_ERRORS = tuple(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class Interrupted(Exception):
    """The user pressed Ctrl-C."""


def as_json(value: Any) -> str:
    """One JSON text; numbers that JSON does not know become ``null``."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def write_json(stream: TextIO, value: Any) -> None:
    """``value`` as one line of JSON, in the characters that ``stream`` can take."""
    text = as_json(value)
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(_finite(value), allow_nan=False)
    stream.write(text + "\n")
    stream.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value


@dataclass
class Output:
    """Where a command's words go: its result to standard output, everything said on the way to standard error.

    Args:
        json: print one JSON value instead of text.
        quiet: print neither progress nor report, only warnings and errors.
    """

    json: bool = False
    quiet: bool = False
    stdout: TextIO = field(default_factory=lambda: sys.stdout)
    stderr: TextIO = field(default_factory=lambda: sys.stderr)
    _live: Console | None = None

    def say(self, text: str = "", style: str | None = None) -> None:
        """One line of the result for people; broken into several only where a person reads, on a terminal."""
        if not (self.json or self.quiet):
            _print_line(Console(file=self.stdout), text, style)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> None:
        """A table; numbers to the right, the columns listed in ``left`` to the left."""
        if self.json or self.quiet:
            return
        console = Console(file=self.stdout, highlight=False)
        if not self.stdout.isatty():
            console.width = WIDE
        table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, padding=(0, 2, 0, 0))
        for index, name in enumerate(columns):
            side: Any = "left" if index in left else "right"
            table.add_column(Text(name), justify=side, header_style="bold", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        with console.capture() as captured:
            console.print(table)
        for line in captured.get().splitlines():
            self.stdout.write(line.rstrip() + "\n")

    def note(self, text: str) -> None:
        """One line on standard error about what is going on."""
        if not self.quiet:
            self._error_line(text)

    def warn(self, text: str) -> None:
        """One line on standard error that the user should not miss."""
        self._error_line(f"Warning: {text}")

    def _error_line(self, text: str) -> None:
        # A line past a live bar has to go through the bar's own console, or both are garbled.
        _print_line(self._live or Console(file=self.stderr), " ".join(text.split()))

    def result(self, value: Any) -> None:
        """The result for programs, in JSON mode."""
        if self.json:
            write_json(self.stdout, value)

    @contextlib.contextmanager
    def progress(self, description: str, total: int | None = None, time_left: bool = False) -> Iterator[Steps]:
        """A progress bar on standard error that vanishes at the end; nothing at all if that is no terminal.

        Args:
            description: what goes on.
            total: steps in all.
            time_left: also tell hours, minutes and seconds to go.
        """
        console = Console(file=self.stderr)
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            *([TimeRemainingColumn()] if time_left else []),
            TextColumn("{task.fields[note]}", markup=False),
        ]
        hidden = self.quiet or not console.is_terminal
        settings: Any = {"transient": True, "disable": hidden, "speed_estimate_period": SPEED_PERIOD}
        with Progress(*columns, console=console, **settings) as bar:
            self._live = None if hidden else bar.console
            try:
                yield Steps(bar, bar.add_task(description, total=total, note=""))
            finally:
                self._live = None

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Run the body so that nothing but :meth:`say` and :meth:`result` reaches standard output.

        Libraries that print end up on standard error, and warnings become one plain line each, shown once.
        """
        seen: set[str] = set()

        def once(text: str) -> None:
            if text not in seen:
                seen.add(text)
                self.warn(text)

        def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
            # Subclasses (deprecations, numerical notes of libraries) are not meant for whoever types a command.
            if category is UserWarning:
                once(str(message))

        handler = _Handler(once)
        logger = logging.getLogger("scalekv")
        with contextlib.redirect_stdout(self.stderr), warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = show
            logger.addHandler(handler)
            try:
                yield
            finally:
                logger.removeHandler(handler)


def _print_line(console: Console, text: str, style: str | None = None) -> None:
    # Not `is_terminal`: colours may be forced into a pipe, but its lines stay whole.
    console.print(Text(text, style or ""), soft_wrap=not console.file.isatty())


class _Handler(logging.Handler):
    """Hands warnings of our own log to ``tell``."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """One line of the log."""
        self._tell(record.getMessage())


class Steps:
    """The one bar of a progress display."""

    def __init__(self, bar: Progress, task: Any) -> None:
        self._bar, self._task = bar, task

    def begin(self, total: int) -> None:
        """The number of steps has become known."""
        self._bar.update(self._task, total=total)

    def advance(self, note: str = "") -> None:
        """One step is done."""
        self._bar.update(self._task, advance=1, note=note)

    def reach(self, done: int, total: int, note: str = "") -> None:
        """``done`` steps of ``total`` are done."""
        self._bar.update(self._task, completed=done, total=total, note=note)


def quiet_libraries() -> None:
    """Keep the logs and bars of diffusers and transformers to errors; call it before they load anything."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)


def exit_code_of(error: BaseException) -> tuple[int, str] | None:
    """Exit code and sentence for an error that is not a bug of ours; ``None`` for a bug."""
    if isinstance(error, InvalidInput):
        return INVALID, str(error)
    if isinstance(error, _CLICK_ERRORS):
        sentence = str(error.format_message()).rstrip().rstrip(".")  # type: ignore[attr-defined]
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "scalekv"
        return INVALID, f"{sentence}. See '{path} --help'."
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        return INTERRUPTED, "Interrupted; nothing half-written is left behind."
    if isinstance(error, OSError) and error.errno in _CANNOT_WRITE:
        return (
            INVALID,
            f"Cannot write {error.filename or 'the output'}: {error.strerror}; make room or write elsewhere.",
        )
    if isinstance(error, OSError) and error.errno in _CANNOT_USE:
        return INVALID, f"Cannot use {error.filename or 'a file'}: {error.strerror}; choose another."
    if _is_out_of_memory(error):
        return OUT_OF_MEMORY, (
            "Out of memory; give a smaller --budget, --size or -n, and see what will be needed with 'scalekv plan'."
        )
    return None


def report(error: BaseException, wants_json: bool) -> int:
    """Print one sentence about ``error`` (and a JSON object if asked for); returns the exit code.

    Raises:
        BaseException: ``error`` itself, if it is a bug.
    """
    known = exit_code_of(error)
    if known is None:
        raise error
    code, sentence = known
    sentence = " ".join(sentence.split())
    if wants_json:
        with contextlib.suppress(OSError):
            write_json(sys.stdout, {"error": sentence})
    sys.stderr.write(f"{sentence if code == INTERRUPTED else 'Error: ' + sentence}\n")
    return code
