"""Turn exceptions into sentences and exit codes; no other module does."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import typer

from moetool.cli.interrupts import (
    HINT,
    HINT_IF_NOTHING_LEFT,
    INTERRUPTED,
    MESSAGE,
    interruptible,
    say_once,
)
from moetool.cli.output import paint_label
from moetool.cli.usage.explain import explain
from moetool.errors import MoetoolError
from moetool.printable import printable
from moetool.tracing.processes.environment import is_first_of_host

DONE = 0
USAGE = 2

# Limits on what is shown, because text from inputs may have any length.
_LONGEST_LINE = 1_000
_MOST_FACTS = 20

# Errors that only an output can cause, and only after it was opened.
OUTPUT_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

EXIT_CODES = (
    (DONE, "done"),
    (1, "a bug in moetool"),
    (USAGE, "wrong usage, or an output that exists"),
    (3, "unusable input"),
    (4, "a dense model where routing is needed"),
    (5, "routing that can't be traced exactly"),
    (6, "out of memory"),
    (INTERRUPTED, "interrupted"),
)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def speaks_errors(command: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Return a command that ends with a sentence and an exit code instead of raising.

    Only errors that the user can act on get a sentence. Any other exception is a bug of ours and
    keeps its traceback; with `MOETOOL_DEBUG=1`, every exception does.
    """

    @wraps(command)
    def spoken(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            with interruptible():
                result = command(*args, **kwargs)
                # Flushed here, so that a closed pipe or a full disk is caught below.
                sys.stdout.flush()
            return result
        except MoetoolError as error:
            say_error(error)
            raise typer.Exit(error.exit_code) from error
        except MemoryError as error:
            _say("Out of memory.", hint="Use a machine with more memory.", notes=_notes(error))
            raise typer.Exit(6) from error
        except KeyboardInterrupt as error:
            if say_once():
                hint = getattr(error, "hint", None) or _choose_hint(error, kwargs.get("output"))
                _say(MESSAGE, hint=hint, notes=_notes(error))
            raise typer.Exit(INTERRUPTED) from error
        except BrokenPipeError as error:
            # The reader of our output, such as `head`, has closed the pipe.
            discard_stdout()
            raise typer.Exit(DONE) from error
        except OSError as error:
            if error.errno not in OUTPUT_ERRNOS:
                raise
            discard_stdout()
            sentence = f"Writing failed: {os.strerror(error.errno)}."
            _say(sentence, hint="Write to a disk with more free space.", notes=_notes(error))
            raise typer.Exit(USAGE) from error

    return spoken


def discard_stdout() -> None:
    """Discard what is still buffered for stdout; Python would complain about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say_error(error: MoetoolError) -> None:
    """Print an error that the user can act on, with its hint."""
    if os.environ.get("MOETOOL_DEBUG"):
        import traceback

        traceback.print_exception(error)
    _say(error.message, hint=error.hint, facts=error.facts, notes=_notes(error))


def say_usage_error(error: typer.TyperException) -> int:
    """Print what was wrong with the command line, once on a host, and return the exit code."""
    if is_first_of_host():
        message, hint = explain(error, sys.argv[1:])
        _say(message, hint=hint)
    return USAGE


def _say(
    message: str, *, hint: str, facts: tuple[str, ...] = (), notes: tuple[str, ...] = ()
) -> None:
    lines = [
        f"error: {message}",
        *(f"  {fact}" for fact in facts[:_MOST_FACTS]),
        f"hint: {hint}",
        *notes[:_MOST_FACTS],
    ]
    shown = [printable(line, max_length=_LONGEST_LINE) for line in lines]
    print("\n".join(map(paint_label, shown)), file=sys.stderr)  # noqa: T201


def _choose_hint(error: KeyboardInterrupt, output: object) -> str:
    """Return what to do after an interrupt, given the file that the command writes, if any."""
    is_left = output is not None and os.path.lexists(str(output))
    return HINT if is_left or _notes(error) else HINT_IF_NOTHING_LEFT


def _notes(error: BaseException) -> tuple[str, ...]:
    return tuple(getattr(error, "__notes__", ()))
