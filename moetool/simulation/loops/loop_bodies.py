"""Bodies of loops over numbers, each iteration of which does the same to tensors of the same shapes."""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass
from types import CodeType

from moetool.simulation.loops.straight_lines import StraightLine, parse


@dataclass(frozen=True)
class LoopBody:
    """The body of a loop over numbers: a straight line of operations on tensors.

    The loop's number only chooses one position of a tensor.

    Attributes:
        names: The variables that it reads or sets, in order, except lists that it only appends to.
        indexed: Those of which the loop's number chooses a position: they have to be tensors.
        appended: The lists that it only appends to.
        changed: The variables that it sets or writes to.
    """

    names: tuple[str, ...]
    indexed: frozenset[str]
    appended: frozenset[str]
    changed: frozenset[str]


@functools.cache
def find_loop_body(code: CodeType, line: int) -> LoopBody | None:
    """Return the body of the loop over `range` that begins in a line; None if it may do anything else.

    Args:
        code: The code of the function that the loop is in.
        line: The line of its file.
    """
    source = parse(code)
    if source is None:
        return None
    calls = [
        node
        for node in ast.walk(source)
        if isinstance(node, ast.Call) and _is_range(node) and node.lineno == line
    ]
    loops = [node for node in ast.walk(source) if isinstance(node, ast.For) and node.iter in calls]
    if len(calls) != 1 or len(loops) != 1 or loops[0].orelse:
        return None
    number = loops[0].target
    if not isinstance(number, ast.Name):
        return None
    reading = StraightLine(number.id)
    if not all(map(reading.read_statement, loops[0].body)):
        return None
    # A list that is also used otherwise may decide on what is done.
    if reading.appended & {*reading.names}:
        return None
    return LoopBody(
        names=reading.names,
        indexed=reading.indexed,
        appended=frozenset(reading.appended),
        changed=frozenset(reading.changed),
    )


def _is_range(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Name) and node.func.id == "range"
