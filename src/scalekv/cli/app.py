"""The ``scalekv`` command. Heavy imports happen inside the commands, so that help is there at once."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from scalekv._version import __version__
from scalekv.cli.calibrate import calibrate
from scalekv.cli.compare import compare
from scalekv.cli.convert import convert
from scalekv.cli.env import env
from scalekv.cli.evaluate import evaluate
from scalekv.cli.export import export
from scalekv.cli.generate import generate
from scalekv.cli.info import info
from scalekv.cli.methods import methods
from scalekv.cli.output import Interrupted
from scalekv.cli.output import report as report_error
from scalekv.cli.plan import plan
from scalekv.cli.report import report
from scalekv.cli.stability import stability

HELP_WIDTH = 78
"""Characters of a line of help where no terminal says how wide it is."""


class Commands(TyperGroup):
    """The commands, with errors of the user's making turned into one sentence and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Commands in the order in which people meet them."""
        return list(self.commands)

    def invoke(self, ctx: Any) -> Any:
        """Run a command; Ctrl-C is told apart from an abort of typer's own."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted from error

    def main(  # type: ignore[override]  # the other arguments pass through
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> Any:
        """Run the command line and exit."""
        words = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        extra["obj"] = words
        try:
            code = super().main(words, prog_name, **extra)
        except Exception as error:
            sys.exit(report_error(error, "--json" in words))
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(
    name="scalekv",
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if sys.stdout.isatty() else None,
    context_settings={
        "help_option_names": ["-h", "--help"],
        **({} if sys.stdout.isatty() else {"terminal_width": HELP_WIDTH}),
    },
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"scalekv {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def scalekv(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Draw with visual autoregressive (next-scale) models in a tenth of the KV-cache memory.

    Try: scalekv generate "a lighthouse at dawn"

    Most options can be set in the environment: --budget as SCALEKV_BUDGET.

    Exit codes: 0 done, 2 input that cannot be used, 3 out of memory, 130 interrupted, 1 a bug.
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for _command in (
    generate,
    compare,
    evaluate,
    report,
    export,
    plan,
    calibrate,
    stability,
    convert,
    info,
    methods,
    env,
):
    app.command()(_command)


def main() -> None:
    """Entry point of the ``scalekv`` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may hold bytes that are no text
    app(prog_name="scalekv")
