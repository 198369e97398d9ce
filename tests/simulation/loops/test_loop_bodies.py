"""Bodies of loops that do the same to tensors of the same shapes, and others that may not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from moetool.simulation.loops.loop_bodies import LoopBody, find_loop_body
from tests.simulation.loops.recorded_loops import find_first_line


def scan(rows: Any, state: Any, num_rows: int) -> Any:
    outputs: list[Any] = []
    for index in range(num_rows):
        state = state * 2 + rows[:, index].unsqueeze(-1)
        rows[index] = F.silu(torch.exp(state).to(torch.float32))
        outputs.append(state[:, 0])
    return outputs


def scan_arithmetic(rows: Any, state: Any, num_rows: int) -> Any:
    for index in range(num_rows):
        state = state + rows[:, : index + 1].sum()
    return state


def scan_slices(rows: Any, state: Any, num_rows: int) -> Any:
    for index in range(num_rows):
        state = state + rows[:, index:]
    return state


def scan_branches(rows: Any, state: Any, num_rows: int) -> Any:
    for index in range(num_rows):
        if state is not None:
            state = state + rows[index]
    return state


def scan_choices(rows: Any, state: Any, num_rows: int) -> Any:
    for index in range(num_rows):
        state = rows[index] if state is None else state
    return state


def scan_calls(rows: Any, state: Any, num_rows: int) -> Any:
    for index in range(num_rows):
        state = scan_choices(rows[index], state, 1)
    return state


def scan_reads_list(rows: Any, state: Any, num_rows: int) -> Any:
    outputs = [state]
    for index in range(num_rows):
        outputs.append(outputs[-1] + rows[index])
    return outputs


def scan_results(rows: Any, state: Any, num_rows: int) -> Any:
    for index in range(num_rows):
        state = state + rows.unbind()[index]
    return state


def scan_sets(rows: Any, state: Any, num_rows: int) -> Any:
    for index in range(num_rows):
        rows.data = state + rows[index]
    return state


def scan_else(rows: Any, state: Any, num_rows: int) -> Any:
    for index in range(num_rows):
        state = state + rows[index]
    else:
        state = None
    return state


def scan_twice(rows: Any, state: Any, num_rows: int) -> Any:
    for index in range(num_rows):
        for other in range(num_rows):
            state = state + rows[index, other]
    return state


NOT_STRAIGHT = [
    scan_arithmetic,
    scan_slices,
    scan_branches,
    scan_choices,
    scan_calls,
    scan_reads_list,
    scan_results,
    scan_sets,
    scan_else,
    scan_twice,
]


def find_first(function: Callable[..., Any]) -> LoopBody | None:
    """Return the body of a function's first loop."""
    return find_loop_body(function.__code__, find_first_line(function))


def test_a_straight_line_of_operations_names_what_it_uses() -> None:
    assert find_first(scan) == LoopBody(
        names=("state", "rows"),
        indexed=frozenset({"rows"}),
        appended=frozenset({"outputs"}),
        changed=frozenset({"state", "rows"}),
    )


@pytest.mark.parametrize("function", NOT_STRAIGHT)
def test_a_body_that_may_do_something_else_each_time_is_not_known(
    function: Callable[..., Any],
) -> None:
    assert find_first(function) is None


def test_a_line_without_a_loop_is_not_one() -> None:
    assert find_loop_body(scan.__code__, scan.__code__.co_firstlineno) is None


def test_code_without_a_source_is_not_known() -> None:
    code = compile("for index in range(9):\n    state = state + 1", "<nowhere>", "exec")
    assert find_loop_body(code, 1) is None
