"""One voice for the processes of a run: one error, one hint, the same exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from enum import Enum
from functools import wraps
from typing import NoReturn, ParamSpec, TypeVar

import typer

from moetool.cli.errors import DONE, OUTPUT_ERRNOS
from moetool.cli.interrupts import INTERRUPTED, say_once
from moetool.cli.options.route_trace.several import check_copies
from moetool.errors import MoetoolError, OutOfMemoryError, UsageError
from moetool.process.quiet import hide_download_bars
from moetool.tracing.processes.processes import Processes, find_processes

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# Names on the command line, where they are not those of the command's parameters.
_NAMES = {"model": "the model", "output_format": "--format"}

_processes: ContextVar[Processes] = ContextVar("processes")
_arguments: ContextVar[Mapping[str, object]] = ContextVar("arguments")


def runs_together(command: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Return a command that torchrun may start several times, as one run.

    If one process fails, all end with its exit code, and only one of them raises. If none does, all
    end when the last has done its work.
    """

    @wraps(command)
    def together(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        processes = find_processes()
        _processes.set(processes)
        _arguments.set(kwargs)
        if not processes.is_first:
            hide_download_bars()
        try:
            result = command(*args, **kwargs)
            processes.barrier()
        except BaseException as error:
            if processes.are_several:
                _end_silently_unless_first(processes, error)
            raise
        finally:
            processes.close()
        return result

    return together


def current_processes() -> Processes:
    """Return the processes that run the current command."""
    return _processes.get()


def join_processes(step: Callable[[str], None], *, has_file: bool) -> None:
    """Wait for the other processes, if there are any, and check that they can work together.

    Args:
        step: Shows the current step.
        has_file: Whether the rows go to a file.

    Raises:
        UsageError: The processes were given different arguments, or some that don't fit several.
        LostProcessError: Another has failed.
    """
    processes, arguments = current_processes(), _arguments.get()
    if not processes.are_several:
        return
    if arguments["prompts"] == "-":
        raise UsageError(
            f"{processes.number} processes can't read the same prompts from stdin.",
            hint="Write them to a file, and name it with --prompts.",
        )
    if arguments["parallel"] is None:
        check_copies(arguments, number=f"{processes.number} processes", has_file=has_file)
    step("waiting for the other processes")
    processes.agree(
        {
            _NAMES.get(name, f"--{name.replace('_', '-')}"): _show(value)
            for name, value in arguments.items()
        }
    )


def _show(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    return [str(each) for each in value] if isinstance(value, list | tuple) else value


def _end_silently_unless_first(processes: Processes, error: BaseException) -> None:
    """End this process if another speaks; return if this one does."""
    code = _choose_code(error)
    if isinstance(error, KeyboardInterrupt) and not processes.have_met:
        # Nobody waits for others to come after a Ctrl-C.
        if not processes.is_first:
            _end_silently(code)
        return
    try:
        first = processes.claim_failure(
            exit_code=code,
            message=getattr(error, "message", None) or str(error) or type(error).__name__,
            hint=getattr(error, "hint", None) or "Read what that process printed.",
        )
    except MoetoolError:
        # The first process is gone: the second speaks for those that are left.
        if processes.rank > 1:
            _end_silently(code)
        return
    if first.rank != processes.rank:
        _end_silently(first.exit_code)
    if isinstance(error, KeyboardInterrupt):
        error.add_note("if a process has died, the launcher's report names it")


def _end_silently(code: int) -> NoReturn:
    say_once()
    sys.exit(code)


def _choose_code(error: BaseException) -> int:
    """Return the exit code of a command that ends with an error."""
    if isinstance(error, MoetoolError | typer.Exit):
        return error.exit_code
    if isinstance(error, MemoryError):
        return OutOfMemoryError.exit_code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return DONE
    is_of_output = isinstance(error, OSError) and error.errno in OUTPUT_ERRNOS
    return UsageError.exit_code if is_of_output else MoetoolError.exit_code
