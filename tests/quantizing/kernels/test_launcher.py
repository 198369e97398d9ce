"""A program is started with pointers once it is compiled for tensors of the same kind."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moetool.quantizing import kernels
from moetool.quantizing.kernels.launcher import Launcher

GRID = (3, 2, 1)


class Program:
    """Notes how it is called, as what Triton makes of a function, and of what it compiles."""

    def __init__(self, compiled: Callable[..., None] | None) -> None:
        self.compiled = compiled
        self.calls: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, int, int]) -> Any:
        def start(*tensors: torch.Tensor, **constants: int) -> Any:
            self.calls.append((grid, *tensors, constants))
            return None if self.compiled is None else {grid: self.compiled}

        return start


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    made = Program(None)
    monkeypatch.setattr(kernels, "programs", SimpleNamespace(add=made), raising=False)
    return made


def make_launcher() -> Launcher:
    return Launcher("add", GRID, {"WIDTH": 8, "TOP_K": 2}, num_warps=4)


def test_what_is_compiled_is_called_with_pointers_and_constants(program: Program) -> None:
    started: list[tuple[Any, ...]] = []
    program.compiled = lambda *arguments: started.append(arguments)
    launch = make_launcher()
    first, second, third = (torch.zeros(8) for _ in range(3))

    launch(first, second)
    launch(second, third)

    assert program.calls == [(GRID, first, second, {"WIDTH": 8, "TOP_K": 2, "num_warps": 4})]
    assert started == [(second.data_ptr(), third.data_ptr(), 8, 2)]


@pytest.mark.parametrize("other", [torch.zeros(9)[1:], torch.zeros(8, dtype=torch.float16)])
def test_tensors_of_another_kind_are_left_to_triton(program: Program, other: torch.Tensor) -> None:
    started: list[tuple[Any, ...]] = []
    program.compiled = lambda *arguments: started.append(arguments)
    launch = make_launcher()
    launch(torch.zeros(8))

    launch(other)

    assert len(program.calls) == 2
    assert not started


def test_what_is_compiled_for_unaligned_pointers_is_not_called_with_others(
    program: Program,
) -> None:
    started: list[tuple[Any, ...]] = []
    program.compiled = lambda *arguments: started.append(arguments)
    launch = make_launcher()
    launch(torch.zeros(9)[1:])

    launch(torch.zeros(8))

    assert len(program.calls) == 2
    assert not started


def test_another_version_of_triton_is_left_to_start_programs_itself(program: Program) -> None:
    def refuse(*arguments: Any) -> None:
        raise TypeError(f"function takes exactly 1 argument ({len(arguments)} given)")

    program.compiled = refuse
    launch = make_launcher()
    for _ in range(3):
        launch(torch.zeros(8))

    assert len(program.calls) == 3


def test_the_interpreter_compiles_nothing(program: Program) -> None:
    launch = make_launcher()
    for _ in range(2):
        launch(torch.zeros(8))

    assert len(program.calls) == 2
