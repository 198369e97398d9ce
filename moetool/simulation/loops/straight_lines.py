"""Statements that do nothing except operations on tensors, one after the other."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from types import CodeType
from typing import Any

import torch
from torch import nn

# Names under which models import what makes tensors of tensors.
TORCH_NAMES = frozenset({"torch", "F", "nn"})
_TORCHS = (torch, nn, nn.functional)
_OPERATIONS = (ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.expr_context)
_PLAIN = (ast.Constant, ast.Tuple, ast.Slice, ast.keyword)


def parse(code: CodeType) -> ast.Module | None:
    """Return the source of a function, the lines of which are those of its file; None without one."""
    try:
        source = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, SyntaxError):
        return None
    return ast.increment_lineno(source, code.co_firstlineno - 1)


def means_torch(code: CodeType, namespace: Mapping[str, Any]) -> bool:
    """Return whether the names in a function that look like torch's can't be anything else."""
    return not TORCH_NAMES & {*code.co_varnames} and all(
        namespace.get(name) in (None, *_TORCHS) for name in TORCH_NAMES
    )


class StraightLine:
    """Reads statements, and says of each whether it is of the known kinds.

    Those contain nothing that decides, and no calls except those of torch's functions and of methods
    of values.

    Attributes:
        appended: The lists that the statements append to.
        changed: The variables that they set, or write to themselves.

    Args:
        number: A variable that may only choose one position of a tensor; None for no variable.
    """

    def __init__(self, number: str | None = None) -> None:
        self._number = number
        self._names: dict[str, None] = {}
        self._indexed: set[str] = set()
        self.appended: set[str] = set()
        self.changed: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """The variables that are read or set, in order, except lists that are only appended to."""
        return tuple(self._names)

    @property
    def indexed(self) -> frozenset[str]:
        """Those of which the number chooses a position."""
        return frozenset(self._indexed)

    def read_statement(self, node: ast.stmt) -> bool:
        """Return whether a statement is of the known kinds, and note what it uses."""
        if isinstance(node, ast.Assign):
            return all(map(self._read_target, node.targets)) and self._read(node.value)
        if isinstance(node, ast.AugAssign | ast.AnnAssign) and node.value is not None:
            return self._read_target(node.target) and self._read(node.value)
        return isinstance(node, ast.Expr) and self._read_expression(node.value)

    def read_value(self, node: ast.expr) -> bool:
        """Return whether an expression whose value is used is of the known kinds."""
        return self._read(node)

    def _read_expression(self, node: ast.expr) -> bool:
        """Return whether an expression whose value is not used is of the known kinds."""
        return self._read_append(node)

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
        self.appended.add(node.func.value.id)
        return self._read(node.args[0])

    def _read_target(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Tuple):
            return all(map(self._read_target, node.elts))
        written = node.value if isinstance(node, ast.Subscript) else node
        if not isinstance(written, ast.Name):
            return False
        self.changed.add(written.id)
        return self._read(node)

    def _read(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Name):
            if node.id not in TORCH_NAMES:
                self._names[node.id] = None
            return node.id != self._number
        if isinstance(node, ast.Subscript):
            return self._read_subscript(node)
        if isinstance(node, ast.Call):
            return self._read_call(node)
        if isinstance(node, ast.Attribute):
            return isinstance(node.ctx, ast.Load) and self._read(node.value)
        is_known = isinstance(node, (*_OPERATIONS, *_PLAIN))
        return is_known and all(map(self._read, ast.iter_child_nodes(node)))

    def _read_call(self, node: ast.Call) -> bool:
        # A function of the model's own might do anything.
        return isinstance(node.func, ast.Attribute) and all(
            map(self._read, ast.iter_child_nodes(node))
        )

    def _read_subscript(self, node: ast.Subscript) -> bool:
        places = list_places(node)
        others = [each for each in places if not self._is_number(each)]
        if len(others) < len(places):
            if not isinstance(node.value, ast.Name):
                return False
            self._indexed.add(node.value.id)
        return self._read(node.value) and all(map(self._read, others))

    def _is_number(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and node.id == self._number


def list_places(node: ast.Subscript) -> list[ast.expr]:
    """Return what stands between the brackets of a subscript."""
    return node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
