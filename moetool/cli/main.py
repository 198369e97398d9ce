"""Define the `moetool` command."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

import moetool
from moetool.cli.commands.figures.plot import plots
from moetool.cli.commands.models import fits, gpus, inspect, memory_estimate, models, quantize
from moetool.cli.commands.questions import (
    balance,
    cache,
    coactivation,
    compare,
    place,
    report,
    select,
    specialize,
    tokens,
)
from moetool.cli.commands.traces import import_files, merge, route_trace, validate
from moetool.cli.errors import DONE, EXIT_CODES, discard_stdout, say_usage_error
from moetool.cli.help import ExampleGroup, add_commands, list_examples, list_exit_codes
from moetool.cli.interrupts import INTERRUPTED, catch_interrupts
from moetool.process.quiet import silence_process

_MODELS = "Models"
_TRACES = "Traces"
_QUESTIONS = "Questions to a trace"
_FIGURES = "Figures"

# In the order of a first hour.
_COMMANDS = (
    ("inspect", inspect.inspect, inspect, _MODELS),
    ("memory-estimate", memory_estimate.memory_estimate, memory_estimate, _MODELS),
    ("fits", fits.fits, fits, _MODELS),
    ("quantize", quantize.quantize, quantize, _MODELS),
    ("models", models.models, models, _MODELS),
    ("gpus", gpus.gpus, gpus, _MODELS),
    ("route-trace", route_trace.route_trace, route_trace, _TRACES),
    ("import", import_files.import_files, import_files, _TRACES),
    ("validate", validate.validate, validate, _TRACES),
    ("merge", merge.merge, merge, _TRACES),
    ("report", report.report, report, _QUESTIONS),
    ("balance", balance.balance, balance, _QUESTIONS),
    ("specialize", specialize.specialize, specialize, _QUESTIONS),
    ("coactivation", coactivation.coactivation, coactivation, _QUESTIONS),
    ("tokens", tokens.tokens, tokens, _QUESTIONS),
    ("compare", compare.compare, compare, _QUESTIONS),
    ("place", place.place, place, _QUESTIONS),
    ("select", select.select, select, _QUESTIONS),
    ("cache", cache.cache, cache, _QUESTIONS),
)

app = typer.Typer(
    name="moetool",
    cls=ExampleGroup,
    help="Tells the truth about Mixture-of-Experts models.",
    epilog="\n\n".join(
        (
            list_examples(
                (
                    "moetool inspect mixtral-8x7b",
                    "moetool memory-estimate mixtral-8x7b --gpu h200",
                    "moetool route-trace demo --prompts sample_prompts -o trace.parquet",
                )
            ),
            list_exit_codes(EXIT_CODES),
        )
    ),
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
add_commands(app, _COMMANDS)
app.add_typer(plots, rich_help_panel=_FIGURES)


def main() -> None:
    """Run the command line and exit with its code."""
    catch_interrupts()
    silence_process()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Data is UTF-8, whatever the terminal's locale. Bytes of file names that are not UTF-8 are
        # escaped, which JSON parsers can read.
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        code = app(prog_name="moetool", standalone_mode=False)
    except typer.TyperException as error:
        sys.exit(say_usage_error(error))
    except typer.Abort:
        sys.exit(INTERRUPTED)
    except SystemExit as ending:
        # Typer exits with 1 where whoever reads the help has closed the pipe.
        if not isinstance(ending.__context__, BrokenPipeError):
            raise
        discard_stdout()
        sys.exit(DONE)
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
        # Where rich lays it out, this prints the help itself and returns nothing.
        typer.echo(context.get_help(), nl=False)


root.__doc__ = app.info.help
