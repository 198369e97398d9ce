"""Bodies of loops over numbers, each iteration of which does the same to tensors of the same shapes."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from dataclasses import dataclass
from types import CodeType

# Names under which models import what makes tensors of tensors.
TORCH_NAMES = frozenset({"torch", "F"})
_OPERATIONS = (ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.expr_context)
_PLAIN = (ast.Constant, ast.Tuple, ast.Slice, ast.keyword)


@dataclass(frozen=True)
class LoopBody:
    """The body of a loop over numbers: a straight line of operations on tensors.

    It contains nothing that decides, and no calls except those of torch's functions and of methods of
    values. The loop's number only chooses one position of a tensor.

    Attributes:
        names: The variables that it reads or sets, in order, except lists that it only appends to.
        indexed: Those of which the loop's number chooses a position: they have to be tensors.
        appended: The lists that it only appends to.
    """

    names: tuple[str, ...]
    indexed: frozenset[str]
    appended: frozenset[str]


@functools.cache
def find_loop_body(code: CodeType, line: int) -> LoopBody | None:
    """Return the body of the loop over `range` that begins in a line; None if it may do anything else.

    Args:
        code: The code of the function that the loop is in.
        line: The line of its file.
    """
    try:
        source = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, SyntaxError):
        return None
    line -= code.co_firstlineno - 1
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
    reading = _Reading(number.id)
    return reading.body if all(map(reading.read_statement, loops[0].body)) else None


def _is_range(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Name) and node.func.id == "range"


class _Reading:
    """Reads the statements of a loop's body, and says of each whether it is of the known kinds."""

    def __init__(self, number: str) -> None:
        self._number = number
        self._names: dict[str, None] = {}
        self._indexed: set[str] = set()
        self._appended: set[str] = set()

    @property
    def body(self) -> LoopBody | None:
        """The body so far; None if a list is also used otherwise."""
        if self._appended & self._names.keys():
            return None
        return LoopBody(tuple(self._names), frozenset(self._indexed), frozenset(self._appended))

    def read_statement(self, node: ast.stmt) -> bool:
        if isinstance(node, ast.Assign):
            return all(map(self._read_target, node.targets)) and self._read(node.value)
        if isinstance(node, ast.AugAssign):
            return self._read_target(node.target) and self._read(node.value)
        return isinstance(node, ast.Expr) and self._read_append(node.value)

    def _read_append(self, node: ast.expr) -> bool:
        if not (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.attr == "append"
            and len(node.args) == 1
            and not node.keywords
        ):
            return False
        self._appended.add(node.func.value.id)
        return self._read(node.args[0])

    def _read_target(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Tuple):
            return all(map(self._read_target, node.elts))
        return isinstance(node, ast.Name | ast.Subscript) and self._read(node)

    def _read(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Name):
            if node.id not in TORCH_NAMES:
                self._names[node.id] = None
            return node.id != self._number
        if isinstance(node, ast.Subscript):
            return self._read_subscript(node)
        if isinstance(node, ast.Call):
            # A function of the model's own might do anything.
            return isinstance(node.func, ast.Attribute) and all(
                map(self._read, ast.iter_child_nodes(node))
            )
        if isinstance(node, ast.Attribute):
            return isinstance(node.ctx, ast.Load) and self._read(node.value)
        is_known = isinstance(node, (*_OPERATIONS, *_PLAIN))
        return is_known and all(map(self._read, ast.iter_child_nodes(node)))

    def _read_subscript(self, node: ast.Subscript) -> bool:
        places = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        others = [each for each in places if not self._is_number(each)]
        if len(others) < len(places):
            if not isinstance(node.value, ast.Name):
                return False
            self._indexed.add(node.value.id)
        return self._read(node.value) and all(map(self._read, others))

    def _is_number(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and node.id == self._number
