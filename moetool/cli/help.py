"""Lay out the text of `--help`: paragraphs as wide as the terminal, then examples."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

_MARGIN = 1
_INDENT = "  "
# Typer's own style for what matters less, such as defaults.
_MUTED = "dim"


def unwrap(docstring: str | None) -> str:
    """Return a docstring with each paragraph on one line.

    Typer keeps the line breaks of all paragraphs except the first, whatever the terminal's width.
    """
    paragraphs = inspect.cleandoc(docstring or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def list_examples(commands: Sequence[str]) -> str:
    """Return the end of a help text: commands to copy, each on its own line."""
    return _list("Examples:", commands)


def list_exit_codes(codes: Iterable[tuple[int, str]]) -> str:
    """Return the end of a help text: exit codes and their meanings."""
    return _list("Exit codes:", (f"{code:<3}  {meaning}" for code, meaning in codes))


def _list(title: str, lines: Iterable[str]) -> str:
    return "\n".join((title, *(f"{_INDENT}{line}" for line in lines)))


class _EndsInLines:
    """Lays out the help of a command: flags without a type, and in the end a line each.

    Mixed into Typer's classes, whose methods it extends.
    """

    epilog: str | None

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, flags without a type."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        return _hide_flag_types(params)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help with rich, or write it to the formatter where Typer doesn't use rich."""
        with _ending_in_lines(self, formatter):
            super().format_help(ctx, formatter)  # type: ignore[misc]


class ExampleCommand(_EndsInLines, TyperCommand):
    """A command whose help ends in examples, a line each."""


class ExampleGroup(_EndsInLines, TyperGroup):
    """A group of commands whose help ends in examples, a line each."""


# A command's name, its function, the module with its summary and examples, and its panel.
CommandEntry = tuple[str, Callable[..., object], Any, str]


def add_commands(group: typer.Typer, commands: Iterable[CommandEntry]) -> None:
    """Add commands to a group, each with the help of its function and its module."""
    for name, command, module, panel in commands:
        group.command(
            name,
            cls=ExampleCommand,
            help=unwrap(command.__doc__),
            short_help=module.SUMMARY,
            epilog=list_examples(module.EXAMPLES),
            rich_help_panel=panel,
        )(command)


def _hide_flag_types(params: Sequence[Any]) -> list[Any]:
    """Return parameters. Typer would show a flag as if it took a value."""
    for param in params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""
    return list(params)


@contextmanager
def _ending_in_lines(command: _EndsInLines, formatter: Any) -> Iterator[None]:
    """Print a command's epilog line by line, after the help that the block prints.

    Some versions of Typer join the lines of an epilog, and others put blank lines between them.
    """
    end, command.epilog = command.epilog, None
    try:
        yield
    finally:
        command.epilog = end
    if end is not None:
        if formatter.getvalue():
            formatter.write(f"\n{end}\n")
        else:
            _print_end(end)


def _print_end(end: str) -> None:
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    console.print()
    for line in end.splitlines():
        words = line.lstrip()
        is_item = line.startswith(_INDENT)
        left = _MARGIN + len(line) - len(words)
        text = Text(words, style=_MUTED if is_item else "")
        console.print(Padding(text, (0, _MARGIN, 0, left)))
