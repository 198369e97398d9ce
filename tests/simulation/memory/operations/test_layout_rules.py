"""Layouts that rules find are those that torch works out, whatever the operands look like."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from moetool.simulation.memory.cuda_kernels import find_temporaries, is_one_kernel
from moetool.simulation.memory.operations.layout_rules import _RULES, find_layout
from moetool.simulation.meta.layouts import Layout

aten = torch.ops.aten

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
DTYPES = [*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool]
NUMBERS = [-1, -0.5, 0, 0.5, 1, 1.0, True, 2, 2.0, 3]
OPTIONS: dict[str, list[str | None]] = {
    "approximate": ["none", "tanh"],
    "rounding_mode": ["floor", "trunc", None],
}
PRODUCTS = (aten.mm.default, aten.bmm.default, aten.addmm.default)
NUM_CASES = 100


def make(rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor that may be part of a larger one, permuted, expanded, or oddly strided."""
    how = rng.choice(["whole", "whole", "permuted", "part", "permuted part", "expanded", "odd"])
    if how == "expanded":
        sizes = [rng.choice([1, size]) for size in shape]
        return torch.empty(sizes, dtype=dtype, device="meta").expand(shape)
    if how == "odd":
        strides = [rng.choice([1, 2, 3, 4, 6, 8, 12, 24]) for _ in shape]
        return torch.empty_strided(shape, strides, dtype=dtype, device="meta")
    order = list(range(len(shape)))
    if "permuted" in how:
        rng.shuffle(order)
    sizes = [shape[dim] + (rng.choice([0, 0, 1, 3]) if "part" in how else 0) for dim in order]
    whole = torch.empty(sizes, dtype=dtype, device="meta")
    permuted = whole.permute([order.index(dim) for dim in range(len(shape))])
    return permuted[tuple(slice(size) for size in shape)]


def choose_shape(rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.choice([1, 1, 2, 3, 4, 5]) for _ in range(rng.randint(0, 5)))


def choose_operand(rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor that fits a shape: of that shape, or to be broadcast to it."""
    if rng.random() < 0.7:
        return make(rng, shape, dtype)
    first = rng.randint(0, len(shape))
    sizes = (size if rng.random() < 0.75 else 1 for size in shape[first:])
    return make(rng, tuple(sizes), dtype)


def choose_elementwise(rng: random.Random, func: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    shape, dtypes = choose_shape(rng), FLOATS if rng.random() < 0.6 else DTYPES
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for argument in func._schema.arguments:
        if argument.name in OPTIONS:
            kwargs[argument.name] = rng.choice(OPTIONS[argument.name])
        elif argument.name in ("condition", "mask"):
            args.append(choose_operand(rng, shape, torch.bool))
        elif str(argument.type) == "Tensor" and (not args or rng.random() < 0.75):
            args.append(choose_operand(rng, shape, rng.choice(dtypes)))
        elif not argument.kwarg_only:
            args.append(rng.choice(NUMBERS))
    return tuple(args), kwargs


def choose_product(rng: random.Random, func: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    groups = (rng.randint(1, 3),) if func is aten.bmm.default else ()
    num_rows, width_in, width_out = (rng.choice([1, 2, 3, 5]) for _ in range(3))
    dtype = rng.choice(FLOATS)
    args = (
        make(rng, (*groups, num_rows, width_in), dtype),
        make(rng, (*groups, width_in, width_out), dtype),
    )
    if func is aten.addmm.default:
        return (choose_operand(rng, (num_rows, width_out), dtype), *args), {}
    return args, {}


def choose_cat(rng: random.Random, _: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    shape, dtype = choose_shape(rng) or (2,), rng.choice(FLOATS)
    dim = rng.randrange(len(shape))
    parts = [
        make(
            rng,
            (*shape[:dim], rng.randint(1, 3), *shape[dim + 1 :]),
            dtype if rng.random() < 0.9 else rng.choice(FLOATS),
        )
        for _ in range(rng.randint(1, 3))
    ]
    return (parts, rng.choice([dim, dim - len(shape)])), {}


def choose_cases(func: Any) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    choose: Callable[[random.Random, Any], tuple[tuple[Any, ...], dict[str, Any]]]
    choose = choose_product if func in PRODUCTS else choose_elementwise
    if func is aten.cat.default:
        choose = choose_cat
    rng = random.Random(str(func))
    return (choose(rng, func) for _ in range(NUM_CASES))


@pytest.mark.parametrize("func", _RULES, ids=str)
def test_a_result_is_laid_out_as_torch_lays_it_out(func: Any) -> None:
    num_found = 0
    for args, kwargs in choose_cases(func):
        found = find_layout(func, args, kwargs)
        try:
            result = func(*args, **kwargs)
        except (RuntimeError, ValueError):
            # Nothing may stand in for the error.
            assert found is None
            continue
        if found is not None:
            num_found += 1
            assert found == Layout(result.shape, result.stride(), result.dtype)
            assert found.num_bytes == result.untyped_storage().nbytes()
    assert num_found > NUM_CASES // 5


@pytest.mark.parametrize("func", _RULES, ids=str)
def test_operations_with_rules_take_no_temporary_memory(func: Any) -> None:
    args, kwargs = next(choose_cases(func))
    assert is_one_kernel(func)
    assert find_temporaries(func.overloadpacket, args, kwargs) is None


def test_the_default_dtype_decides_on_a_fraction_of_integers() -> None:
    given = torch.empty(2, dtype=torch.int64, device="meta")
    for dtype in (torch.float32, torch.float64, torch.float32):
        torch.set_default_dtype(dtype)
        try:
            found = find_layout(aten.mul.Tensor, (given, 0.5), {})
        finally:
            torch.set_default_dtype(torch.float32)
        assert found is not None
        assert found.dtype is dtype
