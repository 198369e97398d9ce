"""Explain what is wrong with a command line, and what to write instead."""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import typer

from moetool.cli.usage.near_misses import find_instead, find_option
from moetool.cli.usage.values import explain_value, find_sizes
from moetool.wording import join_words

# Typer's own messages, with the words that they quote. Its exceptions are not public.
_UNKNOWN_COMMAND = re.compile(r"No such command ['\"](.*?)['\"]\.")
_EXTRA = re.compile(r"Got unexpected extra argument(?:s|\(s\))? \((.*)\)", re.S)

# Of files of prompts, whose reader takes long to import.
PROMPT_SUFFIXES = (".jsonl", ".csv", ".parquet", ".txt")


def explain(error: typer.TyperException, words: Sequence[str]) -> tuple[str, str]:
    """Return an error sentence and a hint.

    Args:
        error: What Typer raised.
        words: The command line, without the program's name.
    """
    context = getattr(error, "ctx", None)
    message = " ".join(error.format_message().split())
    path = context.command_path if context else _guess_path(words)
    look = f"run `{path} --help`."
    unknown = _UNKNOWN_COMMAND.match(message)
    if unknown and context:
        return _explain_command(unknown[1], context)
    option = getattr(error, "option_name", None)
    if option and context:
        return _explain_option(option, context)
    if option and "requires" in message:
        return f"{option} needs a value.", f"Write it after {option}, or {look}"
    if option and "not take a value" in message:
        return f"{option} takes no value.", f"Write {option} alone."
    extra = _EXTRA.search(error.format_message())
    if extra and context:
        return _explain_extra(extra[1], context, words)
    parameter = getattr(error, "param", None)
    if message.startswith("Missing argument") and parameter is not None:
        name = parameter.metavar or "argument"
        return f"`{path}` needs a {name.removesuffix('...')}.", f"Name one, or {look}"
    if message.startswith("Missing option") and parameter is not None:
        return f"`{path}` needs {_long_name(parameter)}.", f"Add it, or {look}"
    if parameter is not None:
        explained = explain_value(error.message, _long_name(parameter), words)
        if explained is not None:
            return explained
    sentence = message.replace("Value error, ", "")
    ended = sentence if sentence.endswith((".", "?", "!")) else f"{sentence}."
    return ended, f"R{look[1:]}"


def _guess_path(words: Sequence[str]) -> str:
    """Return the command that was typed, where Typer does not say; options come after it."""
    command = words and re.fullmatch(r"[a-z][a-z-]*", words[0])
    return f"moetool {words[0]}" if command else "moetool"


def _explain_command(name: str, context: Any) -> tuple[str, str]:
    if context.parent is not None:
        return _explain_figure(name, context)
    from moetool.catalogue.names import DEMO
    from moetool.catalogue.published import read_published_models

    message = f"There is no command '{name}'."
    close = difflib.get_close_matches(name.lower(), list(context.command.commands), n=1)
    if close:
        return message, f"Did you mean `moetool {close[0]}`?"
    if name.lower() in read_published_models() or name == DEMO or "/" in name:
        return message, f"A model comes after a command, as in `moetool inspect {name}`."
    if f"--{name}" in ("--help", "--version"):
        return message, f"Run `moetool --{name}`."
    return message, "Run `moetool --help` to list the commands."


def _explain_figure(name: str, context: Any) -> tuple[str, str]:
    path = context.command_path
    figures = list(context.command.commands)
    message = f"`{path}` has no figure '{name}'."
    if close := difflib.get_close_matches(name.lower(), figures, n=1):
        return message, f"Did you mean `{path} {close[0]}`?"
    if PurePath(name).suffix:
        return message, f"A figure comes first, as in `{path} {figures[0]} {name}`."
    return message, f"Choose {join_words(figures, last='or')}."


def _explain_option(option: str, context: Any) -> tuple[str, str]:
    path = context.command_path
    message = f"`{path}` has no option {option}."
    if instead := find_instead(context.info_name, option):
        return message, instead
    meant = find_option(option, _list_options(context.command))
    hints = [f"Did you mean {meant}?"] if meant else []
    root = context.find_root().command
    for name, command in getattr(root, "commands", {}).items():
        if command is not context.command and option in _list_options(command):
            hints.append(f"Use {option} with `moetool {name}`.")
            break
    return message, " ".join(hints) or f"Run `{path} --help` to list its options."


def _list_options(command: Any) -> list[str]:
    return [
        name
        for parameter in command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("-")
    ]


def _explain_extra(extra: str, context: Any, words: Sequence[str]) -> tuple[str, str]:
    """Explain words after the last argument that a command takes."""
    path = context.command_path
    sizes = find_sizes(words)
    if sizes is not None and sizes[1][-1] in extra:
        return (
            f"{sizes[0]} takes one number, not {len(sizes[1])}.",
            f"Give it one, or run `{path} --help`.",
        )
    options = _list_options(context.command)
    if "--prompts" not in options:
        arguments = [each for each in context.command.params if not each.opts[0].startswith("-")]
        takes = "one argument" if arguments else "no argument"
        message = f"`{path}` takes {takes}: '{extra}' is one too many."
        return message, f"Leave it out, or run `{path} --help`."
    message = f"`{path}` takes one model: '{extra}' is one too many."
    if any(context.params.get(name) is not None for name in ("prompt", "prompts")):
        return message, f"Leave it out, or run `{path} --help`."
    if os.path.exists(extra) or PurePath(extra).suffix in PROMPT_SUFFIXES:
        return message, f"Did you mean --prompts {shlex.quote(extra)}?"
    return message, f"Did you mean --prompt {shlex.quote(extra)}?"


def _long_name(parameter: Any) -> str:
    """Return how a message names an option or argument."""
    names = [name for name in parameter.opts if name.startswith("-")]
    return max(names, key=len) if names else str(parameter.metavar or parameter.name).upper()
