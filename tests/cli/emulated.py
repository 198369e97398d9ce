"""A terminal that is emulated, to see what is left on its screen."""

from __future__ import annotations

import io
import re
import time

DEADLINE_S = 30
# A code that moves the cursor or erases, any other code, or a letter.
_PART = re.compile(r"\x1b\[(?P<number>\d*)(?P<move>[AK])|\x1b\[[?\d;]*[a-zA-Z]|(?P<letter>.)", re.S)


class Terminal(io.StringIO):
    """A terminal that only knows lines, returns, and how to go up and to erase a line."""

    def isatty(self) -> bool:
        return True

    def read_screen(self) -> str:
        """Return what is left on the screen."""
        lines, row, column = [""], 0, 0
        for part in _PART.finditer(self.getvalue()):
            letter = part["letter"]
            if part["move"] == "A":
                row -= int(part["number"] or 1)
            elif part["move"] == "K":
                lines[row] = ""
            elif letter == "\n":
                row, column = row + 1, 0
                lines += [""] * (row + 1 - len(lines))
            elif letter == "\r":
                column = 0
            elif letter is not None:
                lines[row] = lines[row][:column].ljust(column) + letter + lines[row][column + 1 :]
                column += 1
        return "\n".join(line.rstrip() for line in lines)


def wait_for(terminal: Terminal, words: str) -> str:
    """Return the screen once it shows words: it is drawn several times a second."""
    deadline = time.monotonic() + DEADLINE_S
    while words not in terminal.read_screen():
        assert time.monotonic() < deadline, terminal.getvalue()
        time.sleep(0.01)
    return terminal.read_screen()
