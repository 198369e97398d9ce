"""Remembered layouts are those that torch works out, and no call is taken for another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from moetool.simulation.memory.allocations import AllocationRecorder
from moetool.simulation.memory.memory_run import MemoryRun, RunOptions
from moetool.simulation.meta.dispatch import DispatchMode, find_tensors
from moetool.simulation.meta.layouts import Layouts
from tests.families.tiny.models import available
from tests.simulation.memory.memory_runs import LOOK_UP_EXPERTS, NOT_GENERATING, NOT_SIMULATED
from tests.simulation.skeletons import build_family_skeleton

aten = torch.ops.aten

# The others don't generate without data.
# Every third family, in alphabetical order: they call the same operations in other orders.
FAMILIES = [
    name for name in available() if name not in NOT_GENERATING + NOT_SIMULATED + LOOK_UP_EXPERTS
][::3]


class Operations(DispatchMode):
    """Lists the operations that reach torch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.seen.append(func)
        return self.pass_on(func, args, kwargs)


def ask(layouts: Layouts, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)

    return layouts.run(func, args, kwargs, pass_on=call)


def describe(result: Any) -> list[tuple[object, ...]]:
    return [
        (
            *(type(one), one.shape, one.stride(), one.storage_offset(), one.dtype, one.device),
            *(one.untyped_storage().nbytes(), one.requires_grad, one.is_inference()),
        )
        for one in find_tensors([result])
    ]


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def run_twice(func: Any, *args: Any, **kwargs: Any) -> tuple[Any, list[Any]]:
    """Return the second result of a call, and the operations that reached torch for it."""
    layouts = Layouts()
    first = ask(layouts, func, args, kwargs)
    with Operations() as operations:
        second = ask(layouts, func, args, kwargs)
    assert describe(first) == describe(second)
    return second, operations.seen


def generate(
    skeleton: PreTrainedModel, options: RunOptions, num_prompt_tokens: int, num_new_tokens: int
) -> None:
    run = MemoryRun(skeleton, options)
    run.generate(num_prompt_tokens=num_prompt_tokens, num_new_tokens=num_new_tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_result_of_a_run_is_laid_out_as_torch_lays_it_out(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: Any = Layouts.run
    num_compared = 0

    def run_both(layouts: Layouts, func: Any, args: Any, kwargs: Any, *, pass_on: Any) -> Any:
        nonlocal num_compared
        remembered = run(layouts, func, args, kwargs, pass_on=pass_on)
        if not func._schema.is_mutable:
            fresh = pass_on(func, args, kwargs)
            num_compared += 1
            assert type(remembered) is type(fresh), func
            assert describe(remembered) == describe(fresh), func
        return remembered

    skeleton = build_family_skeleton(family).eval()
    options, lengths = RunOptions(batch_size=2, has_padding=True), (8, 2)
    generate(skeleton, options, *lengths)
    # All that is remembered is so by now. What recorders remember would keep calls from layouts.
    monkeypatch.setattr(AllocationRecorder, "can_repeat", lambda *_: False)
    monkeypatch.setattr(Layouts, "run", run_both)
    generate(skeleton, options, *lengths)
    # Views never come here: they are quick.
    assert num_compared > 200


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (aten.mul.Tensor, (meta(2, 3), meta(2, 1))),
        (aten.mm.default, (meta(2, 3), meta(3, 4).t().contiguous().t())),
        (aten.topk.default, (meta(2, 8), 3)),
        (aten.cat.default, ([meta(2, 3), meta(5, 3)],)),
        (aten.sum.dim_IntList, (meta(2, 3), [1], True)),
    ],
)
def test_a_call_like_an_earlier_one_does_not_reach_torch(func: Any, args: Any) -> None:
    _, seen = run_twice(func, *args)
    assert set(seen) == {aten.empty_strided.default}


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (aten.view.default, (meta(2, 3), [6])),
        (aten.add_.Tensor, (meta(2, 3), 1)),
        (aten.add.Tensor, (torch.ones(2), torch.ones(2))),
        (aten.mul.Tensor, (meta(2, dtype=torch.complex64), meta(2))),
    ],
    ids=["view", "in place", "with data", "complex"],
)
def test_other_calls_reach_torch_each_time(func: Any, args: Any) -> None:
    _, seen = run_twice(func, *args)
    assert seen == [func]


def test_calls_that_differ_are_kept_apart() -> None:
    layouts = Layouts()
    whole, half = meta(4, dtype=torch.int64), meta(4, dtype=torch.float16)

    def run(func: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = ask(layouts, func, args, kwargs)
        assert describe(result) == describe(func(*args, **kwargs))
        return result

    for _ in range(2):
        # Equal numbers of two types, equal arguments of two names, and equal shapes laid out apart.
        assert run(aten.mul.Tensor, whole, 1).dtype is torch.int64
        assert run(aten.mul.Tensor, whole, 1.0).dtype is torch.float32
        assert run(aten.mul.Tensor, whole, True).dtype is torch.int64
        assert run(aten.sum.default, half, dtype=torch.float64).dtype is torch.float64
        assert run(aten.sum.default, half).dtype is torch.float16
        assert run(aten.clone.default, meta(2, 3)).stride() == (3, 1)
        assert run(aten.clone.default, meta(3, 2).t()).stride() == (1, 2)


def test_the_default_dtype_is_part_of_a_call() -> None:
    layouts = Layouts()
    whole = meta(4, dtype=torch.int64)
    before = torch.get_default_dtype()
    assert ask(layouts, aten.mul.Tensor, (whole, 0.5), {}).dtype is torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert ask(layouts, aten.mul.Tensor, (whole, 0.5), {}).dtype is torch.float64
    finally:
        torch.set_default_dtype(before)


def test_a_result_that_is_its_argument_is_not_remembered() -> None:
    """Against what its schema says."""

    class Returning:
        namespace = "aten"
        _schema = aten.relu.default._schema

        def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
            return tensor

    layouts, func = Layouts(), Returning()
    tensor = meta(2, 3)
    assert all(ask(layouts, func, (tensor,), {}) is tensor for _ in range(2))
