"""The one place that turns exceptions into sentences and exit codes."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import typer

from moetool.cli.interrupts import HINT, INTERRUPTED, MESSAGE, interruptible, say_once
from moetool.errors import MoetoolError
from moetool.printable import printable

DONE = 0
USAGE = 2

# The most that is shown of a line, and of the lines between error and hint: what an input holds may
# be of any length.
_LONGEST_LINE = 1_000
_MOST_FACTS = 20

# What only an output can run into, and only after it was opened.
_OUTPUT_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

EXIT_CODES = (
    "Exit codes: 0 done; 1 a bug in moetool; 2 wrong usage, or an output that exists; 3 an input "
    "that can't be used; 4 a dense model where routing is asked for; 5 routing that can't be "
    "traced exactly; 6 out of memory; 130 interrupted."
)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def speaks_errors(command: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Return a command that ends in a sentence and an exit code where it would raise.

    Only what the user can act on is put into words; any other exception is a bug of ours and
    keeps its traceback, as does everything with `MOETOOL_DEBUG=1`.
    """

    @wraps(command)
    def spoken(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            with interruptible():
                result = command(*args, **kwargs)
                # Here, so that a closed pipe or a full disk is met where it can be put into words.
                sys.stdout.flush()
            return result
        except MoetoolError as error:
            _show_traceback_if_asked()
            _say(error.message, hint=error.hint, facts=error.facts, notes=_notes(error))
            raise typer.Exit(error.exit_code) from error
        except MemoryError as error:
            _say("Memory ran out.", hint="Use a machine with more of it.", notes=_notes(error))
            raise typer.Exit(6) from error
        except KeyboardInterrupt as error:
            if say_once():
                _say(MESSAGE, hint=HINT, notes=_notes(error))
            raise typer.Exit(INTERRUPTED) from error
        except BrokenPipeError as error:
            # Whoever read our output has had enough.
            discard_stdout()
            raise typer.Exit(DONE) from error
        except OSError as error:
            if error.errno not in _OUTPUT_ERRNOS:
                raise
            discard_stdout()
            sentence = f"Writing failed: {os.strerror(error.errno)}."
            _say(sentence, hint="Write to a place with room for it.", notes=_notes(error))
            raise typer.Exit(USAGE) from error

    return spoken


def discard_stdout() -> None:
    """Send what is still buffered for stdout nowhere; Python would complain of it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say_usage_error(message: str) -> int:
    """Say what was wrong with the command line; return the exit code."""
    sentence = " ".join(message.split())
    hint = "Run `moetool --help`, or `moetool COMMAND --help`."
    _say(sentence if sentence.endswith((".", "?", "!")) else f"{sentence}.", hint=hint)
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
    print("\n".join(shown), file=sys.stderr)  # noqa: T201


def _notes(error: BaseException) -> tuple[str, ...]:
    return tuple(getattr(error, "__notes__", ()))


def _show_traceback_if_asked() -> None:
    if os.environ.get("MOETOOL_DEBUG"):
        import traceback

        traceback.print_exc()
