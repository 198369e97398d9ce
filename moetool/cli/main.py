"""The `moetool` command."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from typing import Annotated

import typer

import moetool
from moetool.cli.commands.inspect import inspect
from moetool.cli.commands.memory_estimate import memory_estimate
from moetool.cli.commands.models import models
from moetool.cli.commands.route_trace import route_trace
from moetool.cli.commands.specialize import specialize
from moetool.cli.errors import DONE, EXIT_CODES, discard_stdout, say_usage_error
from moetool.cli.interrupts import INTERRUPTED, catch_interrupts

app = typer.Typer(
    name="moetool",
    help=f"Tells the truth about Mixture-of-Experts models.\n\n{EXIT_CODES}",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("route-trace")(route_trace)
app.command("specialize")(specialize)
app.command("inspect")(inspect)
app.command("memory-estimate")(memory_estimate)
app.command("models")(models)


def main() -> None:
    """Run the command line and exit with its code."""
    catch_interrupts()
    _quiet_libraries()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Data is UTF-8, whatever the terminal's locale. A file's name may hold bytes that are not:
        # as escapes they stay readable, also to readers of JSON.
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        code = app(prog_name="moetool", standalone_mode=False)
    except typer.TyperException as error:
        sys.exit(say_usage_error(error.format_message()))
    except typer.Abort:
        sys.exit(INTERRUPTED)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        discard_stdout()
    sys.exit(code if isinstance(code, int) else DONE)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"moetool {moetool.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Tells the truth about Mixture-of-Experts models."""
    del version
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


root.__doc__ = app.info.help


def _quiet_libraries() -> None:
    """Keep the libraries' own talk off the terminal; what matters, moetool says itself."""
    # Where it raises an error, it may first log the whole configuration as one.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # It tells of every request that it tries again.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not os.environ.get("MOETOOL_DEBUG"):
        warnings.simplefilter("ignore")
        # It says of every offloaded model that it is offloaded.
        logging.getLogger("accelerate").setLevel(logging.ERROR)
