"""Statements of methods: straight lines of operations, with modules and methods of `self`."""

from __future__ import annotations

import ast
import functools
import inspect
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import nn

from moetool.simulation.loops.straight_lines import (
    TORCH_NAMES,
    StraightLine,
    list_places,
    means_torch,
    parse,
)

_SELF = "self"
_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)
_MISSING = object()


@dataclass(frozen=True)
class SelfUse:
    """The attributes of `self` that statements use.

    Attributes:
        read: Those that they read.
        called: The methods and modules that they call.
    """

    read: frozenset[str]
    called: frozenset[str]

    def is_straight(self, module: nn.Module) -> bool:
        """Return whether what a module holds there is settled, and its calls are straight lines.

        A straight line sets no attributes, so what is settled once remains so.
        """
        return all(
            isinstance(_find_attribute(module, name), (torch.Tensor, *_PLAIN)) for name in self.read
        ) and all(_is_straight_call(module, name) for name in self.called)


class MethodLine(StraightLine):
    """Reads statements of a method, which may also use what `self` holds.

    Attributes:
        passed: The variables that modules and methods may write to.
        num_positions: The number of times that each variable alone chooses a position of a tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.passed: set[str] = set()
        self.num_positions: Counter[str] = Counter()
        self._attributes: set[str] = set()
        self._called: set[str] = set()

    @property
    def self_use(self) -> SelfUse:
        """Attributes of `self` that they use."""
        return SelfUse(frozenset(self._attributes), frozenset(self._called))

    def _read_expression(self, node: ast.expr) -> bool:
        is_in_place = (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr.endswith("_")
        )
        return self._read(node) if is_in_place else self._read_append(node)

    def _read(self, node: ast.AST) -> bool:
        if _is_self(node):
            return False
        if isinstance(node, ast.Attribute) and _is_self(node.value):
            self._attributes.add(node.attr)
            return isinstance(node.ctx, ast.Load)
        return super()._read(node)

    def _read_call(self, node: ast.Call) -> bool:
        function = node.func
        names = {keyword.arg for keyword in node.keywords}
        if not isinstance(function, ast.Attribute) or names & {"out", None}:
            return False
        is_own = _is_self(function.value)
        if is_own or "inplace" in names:
            self.passed |= _find_sources([*node.args, *node.keywords])
        if is_own:
            self._called.add(function.attr)
            return all(map(self._read, [*node.args, *node.keywords]))
        if function.attr.endswith("_"):
            written = function.value
            if not isinstance(written, ast.Name) or written.id in TORCH_NAMES:
                return False
            self.changed.add(written.id)
        return super()._read_call(node)

    def _read_subscript(self, node: ast.Subscript) -> bool:
        self.num_positions.update(
            place.id for place in list_places(node) if isinstance(place, ast.Name)
        )
        return super()._read_subscript(node)


def _find_sources(nodes: Iterable[ast.AST]) -> set[str]:
    """Return the variables whose memory the values of expressions may be in."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Name):
            found |= {node.id} - TORCH_NAMES - {_SELF}
        elif isinstance(node, ast.Subscript):
            found |= _find_sources([node.value])
        else:
            found |= _find_sources(ast.iter_child_nodes(node))
    return found


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == _SELF


def _find_attribute(module: nn.Module, name: str) -> Any:
    """Return what a module holds, or its class says, without running any code for it."""
    for held in (vars(module), module._parameters, module._buffers, module._modules):
        if name in held:
            return held[name]
    return inspect.getattr_static(type(module), name, _MISSING)


def _is_straight_call(module: nn.Module, name: str) -> bool:
    """Return whether a method or a module that a module holds is a straight line."""
    called = _find_attribute(module, name)
    if isinstance(called, nn.Module):
        kind = type(called)
        if (
            inspect.getattr_static(kind, "__call__") is not nn.Module.__call__
            or "forward" in vars(called)
            or called._forward_hooks
            or called._forward_pre_hooks
        ):
            return False
        module, called = called, inspect.getattr_static(kind, "forward", _MISSING)
    elif name in vars(module):
        return False
    if not isinstance(called, FunctionType):
        return False
    use = _find_straight_method(called.__code__)
    return (
        use is not None
        and means_torch(called.__code__, called.__globals__)
        and use.is_straight(module)
    )


@functools.cache
def _find_straight_method(code: CodeType) -> SelfUse | None:
    """Return what a method uses of `self`; None if it is not a straight line with one result."""
    source = parse(code)
    defined = None if source is None else source.body[0]
    if (
        not isinstance(defined, ast.FunctionDef)
        or defined.decorator_list
        or code.co_freevars
        or code.co_varnames[:1] != (_SELF,)
    ):
        return None
    statements = defined.body[ast.get_docstring(defined) is not None :]
    line = MethodLine()
    if not statements or not isinstance(statements[-1], ast.Return):
        return None
    result = statements[-1].value
    if (
        result is None
        or not all(map(line.read_statement, statements[:-1]))
        or not line.read_value(result)
    ):
        return None
    # Something global might be anything.
    return line.self_use if {*line.names} <= {*code.co_varnames} and not line.appended else None
