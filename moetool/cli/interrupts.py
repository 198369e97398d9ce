"""Handle Ctrl-C and SIGTERM at any moment: one error, one hint, exit code 130.

Before a command runs there is nothing to save, so the first Ctrl-C ends the process at once. During
a command it raises KeyboardInterrupt, so that partial results are kept. A second Ctrl-C changes
nothing, and a third ends the process at once. After the command there is nothing to interrupt.
SIGTERM, by which schedulers and launchers end a process, is handled as a Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from moetool.process.reminders import is_on_its_way, remind
from moetool.tracing.processes.environment import is_first_of_host

INTERRUPTED = 130
MESSAGE = "Interrupted."
# Of a command that may have written something, and of one that hasn't.
HINT = "Run the same command again to start over, with --force if it left any output."
HINT_IF_NOTHING_LEFT = "Run the same command again; this one wrote no file."

# After this many, the user does not want to wait for anything to be saved.
_PATIENCE = 3


class _State:
    """State of the one command that a process runs."""

    num_received = 0
    is_reminder = False
    is_in_command = False
    is_over = False
    was_said = False


def catch_interrupts() -> None:
    """Make every Ctrl-C end this process with the message above. Call this before anything else.

    If the process was started with Ctrl-C ignored, as under `nohup`, it stays ignored. The same
    applies to SIGTERM.
    """
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _handle)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _handle)
        sys.unraisablehook = _ignore_interrupts


def was_interrupted() -> bool:
    """Return whether Ctrl-C was pressed."""
    return _State.num_received > 0


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C raise in the block, which can then keep what it has written.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, whatever exception a library turned it into.
    """
    _State.num_received, _State.is_over, _State.was_said = 0, False, False
    _State.is_in_command = True
    try:
        yield
    except Exception as error:
        if not was_interrupted():
            raise
        interrupt = KeyboardInterrupt()
        for note in getattr(error, "__notes__", ()):
            interrupt.add_note(note)
        raise interrupt from error
    finally:
        _State.is_in_command = False
        _State.is_over = True


def say_once() -> bool:
    """Return whether the message has yet to be printed, and mark it as printed."""
    was_said, _State.was_said = _State.was_said, True
    return not was_said


def end_interrupts() -> None:
    """Ignore Ctrl-C from now on; if it was pressed before, end the process.

    A Ctrl-C while Python shuts down would end in a traceback, with nothing left to interrupt. If a
    library was interrupted while being imported, a regular shutdown may fail.
    """
    if was_interrupted():
        _leave()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is _handle:
            signal.signal(number, signal.SIG_IGN)


def _handle(number: int, frame: FrameType | None) -> None:
    del number, frame
    if _State.is_reminder:
        _State.is_reminder = False
        if _State.is_in_command and not is_on_its_way(sys.exc_info()[1]):
            raise KeyboardInterrupt
        return
    if _State.is_over and not was_interrupted():
        return
    _State.num_received += 1
    if not (_State.is_in_command or _State.is_over) or _State.num_received >= _PATIENCE:
        _leave()
    if _State.num_received == 1:
        remind(_prepare_reminder)
        raise KeyboardInterrupt


def _leave() -> NoReturn:
    if say_once() and is_first_of_host():
        # Wipe the progress line, and show the cursor again.
        clear = "\r\x1b[2K\x1b[?25h" if os.isatty(2) else ""
        hint = HINT if _State.is_in_command or _State.is_over else HINT_IF_NOTHING_LEFT
        os.write(2, f"{clear}error: {MESSAGE}\nhint: {hint}\n".encode())
    os._exit(INTERRUPTED)


def _prepare_reminder() -> bool:
    """Mark the next signal as a reminder; return whether there is a command to interrupt."""
    if _State.is_in_command:
        _State.is_reminder = True
    return _State.is_in_command


def _ignore_interrupts(unraisable: sys.UnraisableHookArgs) -> None:
    """Hide an interrupt that can't be raised, as in a finalizer; the reminder repeats it."""
    if not (unraisable.exc_type is KeyboardInterrupt and was_interrupted()):
        sys.__unraisablehook__(unraisable)
