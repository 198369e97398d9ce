"""Define `moetool plot`: a group with a command for each figure."""

from __future__ import annotations

import typer

from moetool.cli.commands.figures import (
    capacity,
    coactivation,
    confidence,
    domains,
    load,
    memory,
    parameters,
    specialization,
)
from moetool.cli.help import ExampleGroup, add_commands, list_examples

SUMMARY = "Draw a figure for a paper."
EXAMPLES = (
    "moetool plot load trace.parquet -o load.svg",
    "moetool plot memory olmoe-1b-7b --gpu 24GiB -o memory.pdf",
)

_OF_A_TRACE, _OF_A_MODEL = "Of a trace", "Of a model"

COMMANDS = (
    ("load", load.load, load, _OF_A_TRACE),
    ("capacity", capacity.capacity, capacity, _OF_A_TRACE),
    ("confidence", confidence.confidence, confidence, _OF_A_TRACE),
    ("specialization", specialization.specialization, specialization, _OF_A_TRACE),
    ("domains", domains.domains, domains, _OF_A_TRACE),
    ("coactivation", coactivation.coactivation, coactivation, _OF_A_TRACE),
    ("parameters", parameters.parameters, parameters, _OF_A_MODEL),
    ("memory", memory.memory, memory, _OF_A_MODEL),
)

plots = typer.Typer(
    name="plot",
    cls=ExampleGroup,
    help="Draws a figure for a paper: .svg, .pdf or .png, as wide as a column.",
    short_help=SUMMARY,
    epilog=list_examples(EXAMPLES),
    rich_markup_mode="rich",
    subcommand_metavar="FIGURE [ARGS]...",
)
add_commands(plots, COMMANDS)


@plots.callback(invoke_without_command=True)
def plot(context: typer.Context) -> None:
    """Draw a figure."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)


plot.__doc__ = plots.info.help
