"""Bodies of loops over the rows of a tensor, such as those over the experts that got any tokens.

A row chooses what an iteration works on. Such a body begins with statements that say what is chosen:

    for expert_idx in expert_hit:
        expert_idx = expert_idx[0]
        if expert_idx == self.num_experts:
            continue
        top_k_pos, token_idx = torch.where(expert_mask[expert_idx])

They depend on known values alone, so they can run by themselves, for each row. The rest of the body
is a straight line of operations, to which the layouts of what was chosen are all that matters.
"""

from __future__ import annotations

import ast
import copy
import functools
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any, NamedTuple

import torch
from torch import nn

from moetool.simulation.loops.loop_bodies import LoopBody
from moetool.simulation.loops.method_lines import MethodLine, SelfUse
from moetool.simulation.loops.straight_lines import TORCH_NAMES, parse


class Foretold(NamedTuple):
    """Facts about an iteration that are known before it runs.

    Attributes:
        chosen: The layouts of the tensors that it chooses; None if it chooses to do nothing.
        num_reads: The number of values that it reads, if it does anything.
    """

    chosen: tuple[Hashable, ...] | None
    num_reads: int


@dataclass(frozen=True)
class RowLoopBody(LoopBody):
    """The body of a loop over the rows of a tensor with known values.

    Attributes:
        rows: The variable that holds the tensor.
        given: The variables that the choices depend on, whose values have to be known.
        searched: Those of which nothing matters except where their values are not zero.
        chosen: The variables that hold what was chosen, the loop's own among them.
        choose: Runs the statements that choose, and returns the values of `chosen`; None if the
            iteration ends there. Its arguments are `self`, a row and the values of `given`.
        num_searches: The number of values that an iteration reads, except those that choose
            positions.
        num_positions: The number of times that each variable alone chooses a position.
        self_use: What it uses of `self`.
    """

    rows: str
    given: tuple[str, ...]
    searched: frozenset[str]
    chosen: tuple[str, ...]
    choose: Callable[..., tuple[Any, ...] | None]
    num_searches: int
    num_positions: Mapping[str, int]
    self_use: SelfUse

    def foretell(
        self, rows: torch.Tensor, given: Sequence[Any], module: nn.Module
    ) -> list[Foretold]:
        """Return what each iteration chooses.

        Args:
            rows: The rows, on the CPU.
            given: The values of the variables that the choices depend on, on the CPU.
            module: The module that the loop is in.
        """
        with torch._C._DisableTorchDispatch():
            # Flags that lie next to each other are searched in a fraction of the time.
            given = [
                value.ne(0).contiguous() if name in self.searched else value
                for name, value in zip(self.given, given, strict=True)
            ]
            return [self._describe(self.choose(module, row, *given)) for row in rows.unbind()]

    def _describe(self, chosen: tuple[Any, ...] | None) -> Foretold:
        if chosen is None:
            return Foretold(None, 0)
        described: list[Hashable] = []
        num_reads = self.num_searches
        for name, value in zip(self.chosen, chosen, strict=True):
            is_tensor = isinstance(value, torch.Tensor)
            described.append((value.shape, value.dtype) if is_tensor else value)
            if is_tensor and not value.dim():
                # A single number is read to find the position that it chooses.
                num_reads += self.num_positions.get(name, 0)
        return Foretold(tuple(described), num_reads)


@functools.cache
def find_row_loop_body(code: CodeType, line: int) -> RowLoopBody | None:
    """Return the body of the loop over a tensor's rows that begins in a line.

    None if what it does may depend on more than what its first statements choose.

    Args:
        code: The code of the method that the loop is in.
        line: The line of its file.
    """
    source = parse(code)
    if source is None:
        return None
    loops = [
        node for node in ast.walk(source) if isinstance(node, ast.For) and node.iter.lineno == line
    ]
    if len(loops) != 1 or loops[0].orelse or loops[0].body[0].lineno == line:
        return None
    rows, row, statements = loops[0].iter, loops[0].target, loops[0].body
    if not isinstance(rows, ast.Name) or not isinstance(row, ast.Name):
        return None
    num_choosing = 1 + max(
        (number for number, node in enumerate(statements) if _is_choosing(node)), default=-1
    )
    choices, work = _Choices(row.id), MethodLine()
    if (
        not all(map(choices.read_statement, statements[:num_choosing]))
        or not all(map(work.read_statement, statements[num_choosing:]))
        # The rest may not change what is chosen next.
        or (work.changed | work.passed) & {rows.id, *choices.given, *choices.chosen}
        # A list that is also used otherwise may decide on what is done.
        or work.appended & {rows.id, *choices.names, *work.names}
    ):
        return None
    given, chosen = tuple(choices.given), tuple(choices.chosen)
    use, own = choices.self_use, work.self_use
    return RowLoopBody(
        rows=rows.id,
        given=given,
        chosen=chosen,
        names=tuple(dict.fromkeys([*chosen, *given, *work.names])),
        indexed=frozenset(),
        appended=frozenset(work.appended),
        changed=frozenset(work.changed | work.passed),
        self_use=SelfUse(use.read | own.read, own.called),
        searched=choices.searched,
        choose=_compile(statements[:num_choosing], ("self", row.id, *given), chosen),
        num_searches=choices.num_searches,
        num_positions=choices.num_positions + work.num_positions,
    )


def _is_choosing(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) or any(map(_is_search, ast.walk(node)))


def _is_search(node: ast.AST) -> bool:
    """Return whether an expression asks where values are not zero."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and (node.func.value.id, node.func.attr) == ("torch", "where")
        and len(node.args) == 1
        and not node.keywords
    )


class _Choices(MethodLine):
    """Reads statements that choose: they set variables anew, each time, and may end an iteration.

    Attributes:
        given: The variables that they read without having set them, in order.
        chosen: The variables that they set, in order, and the loop's own.
        num_searches: The number of values that they read, except those that choose positions.
    """

    def __init__(self, row: str) -> None:
        super().__init__()
        self.given: dict[str, None] = {}
        self.chosen: dict[str, None] = {row: None}
        self.num_searches = 0
        self._num_uses: Counter[str] = Counter()
        self._num_searched_in: Counter[str] = Counter()

    @property
    def searched(self) -> frozenset[str]:
        """The given tensors of which nothing matters except where their values are not zero."""
        return frozenset(
            name
            for name, number in self._num_searched_in.items()
            if name in self.given and number == self._num_uses[name]
        )

    def read_statement(self, node: ast.stmt) -> bool:
        if isinstance(node, ast.If):
            self.num_searches += 1
            is_end = len(node.body) == 1 and isinstance(node.body[0], ast.Continue)
            return is_end and not node.orelse and self._read(node.test)
        return (
            isinstance(node, ast.Assign)
            and self._read(node.value)
            and all(map(self._read_target, node.targets))
        )

    def _read_target(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Tuple):
            return all(map(self._read_target, node.elts))
        # A variable that is read before it is set goes on with what another iteration left.
        if not isinstance(node, ast.Name) or node.id in self.given:
            return False
        self.chosen[node.id] = None
        return True

    def _read(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Name) and node.id not in {*self.chosen, *TORCH_NAMES}:
            self.given[node.id] = None
            self._num_uses[node.id] += 1
        if isinstance(node, ast.Compare):
            return all(map(self._read, [node.left, *node.comparators]))
        return super()._read(node)

    def _read_call(self, node: ast.Call) -> bool:
        if not _is_search(node):
            return False
        self.num_searches += 1
        searched = node.args[0]
        if isinstance(searched, ast.Subscript) and isinstance(searched.value, ast.Name):
            self._num_searched_in[searched.value.id] += 1
        return self._read(searched)


class _EndAtContinue(ast.NodeTransformer):
    def visit_Continue(self, node: ast.Continue) -> ast.Return:
        return ast.copy_location(ast.Return(), node)


def _compile(
    statements: Sequence[ast.stmt], parameters: Sequence[str], chosen: Sequence[str]
) -> Callable[..., tuple[Any, ...] | None]:
    """Return a function that runs statements, and returns what they chose."""
    module = ast.parse(f"def choose({', '.join(parameters)}):\n    return ({', '.join(chosen)},)")
    function: Any = module.body[0]
    ended = [_EndAtContinue().visit(copy.deepcopy(node)) for node in statements]
    function.body = [*ended, *function.body]
    namespace: dict[str, Any] = {"torch": torch}
    exec(compile(ast.fix_missing_locations(module), "<choices>", "exec"), namespace)
    found: Callable[..., tuple[Any, ...] | None] = namespace["choose"]
    return found
