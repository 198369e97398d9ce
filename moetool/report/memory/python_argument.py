"""Lay out an argument of a Python function, to be copied as it is."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult

from moetool.report.text.lines import make_whole_lines

_INDENT = 2
_HANG = 4
# What can't be broken: anything but spaces, and strings with the spaces in them.
_PIECE = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^\s"]|")+')


@dataclass(frozen=True)
class PythonArgument:
    """An argument with brackets around it, broken where Python allows it: outside of strings.

    A piece that is longer than a line stays whole: folded, it could not be copied.

    Attributes:
        code: The argument, such as `device_map={"lm_head": 0}`.
    """

    code: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines: list[str] = []
        for piece in _PIECE.findall(self.code):
            if lines and len(lines[-1]) + 1 + len(piece) <= options.max_width:
                lines[-1] += f" {piece}"
            else:
                indent = _INDENT + (_HANG if lines else 0)
                lines.append(" " * indent + piece)
        yield from make_whole_lines(lines)
