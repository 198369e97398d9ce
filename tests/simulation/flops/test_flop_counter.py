"""Single operations against their closed forms, and the part in experts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moetool.simulation.flops.flop_counter import FlopCount, FlopCounter
from moetool.simulation.meta.generation import TooManyOperations
from moetool.simulation.meta.meta_kernels import MetaKernels
from moetool.simulation.repeated.observers import LayerObserver, LayerVisit

VISIT = LayerVisit("layers.0", ())
meta = partial(torch.empty, device="meta")


def attend(*, kv_heads: int, batch: tuple[int, ...] = (2,)) -> torch.Tensor:
    query = meta(*batch, 4, 5, 8)
    key, value = meta(*batch, kv_heads, 7, 8), meta(*batch, kv_heads, 7, 6)
    return F.scaled_dot_product_attention(query, key, value, enable_gqa=kv_heads != 4)


def solve(*, left: bool) -> torch.Tensor:
    right = meta(3, 4, 5) if left else meta(3, 5, 4)
    solution: torch.Tensor = torch.linalg.solve_triangular(
        meta(3, 4, 4), right, upper=False, left=left
    )
    return solution


def grouped_mm(operation: Callable[..., torch.Tensor]) -> torch.Tensor:
    offsets = meta(3, dtype=torch.int32)
    return operation(meta(10, 5), meta(3, 5, 7), offs=offsets)


CASES: dict[str, tuple[Callable[[], object], int]] = {
    "linear": (lambda: F.linear(meta(2, 3, 4), meta(5, 4), meta(5)), 2 * 6 * 4 * 5),
    "einsum": (lambda: torch.einsum("bij,bjk->bik", meta(2, 3, 4), meta(2, 4, 5)), 2 * 2 * 60),
    "matmul of four dimensions": (lambda: meta(2, 3, 4, 5) @ meta(2, 3, 5, 6), 2 * 6 * 120),
    "baddbmm": (lambda: torch.baddbmm(meta(1), meta(2, 3, 4), meta(2, 4, 5)), 2 * 2 * 60),
    "convolution": (lambda: F.conv1d(meta(1, 6, 9), meta(6, 1, 4), groups=6), 2 * 6 * 6 * 4),
    "attention": (lambda: attend(kv_heads=4), 2 * 2 * 4 * 5 * 7 * (8 + 6)),
    "attention of shared keys": (lambda: attend(kv_heads=2), 2 * 2 * 4 * 5 * 7 * (8 + 6)),
    "attention of two batches": (lambda: attend(kv_heads=4, batch=(2, 3)), 2 * 6 * 4 * 5 * 7 * 14),
    "triangular solve": (lambda: solve(left=True), 3 * 4 * 4 * 5),
    "triangular solve from the right": (lambda: solve(left=False), 3 * 4 * 4 * 5),
    "grouped_mm": (lambda: grouped_mm(torch._grouped_mm), 2 * 10 * 5 * 7),
    "grouped_mm of transformers": (
        lambda: grouped_mm(torch.ops.transformers.grouped_mm_fallback),
        2 * 10 * 5 * 7,
    ),
    "element by element": (lambda: (meta(5, 5) * meta(5, 5) + 1).softmax(-1).sum(), 0),
}


@pytest.mark.parametrize("case", CASES)
def test_an_operation_takes_its_closed_form(case: str) -> None:
    operation, expected = CASES[case]
    with torch.inference_mode(), MetaKernels(), FlopCounter() as counter:
        operation()
    assert counter.count == FlopCount(expected, 0)


def test_grouped_products_have_the_shape_that_the_cpu_gives_them() -> None:
    rows, weights = torch.randn(10, 8), torch.randn(3, 8, 16)
    offsets = torch.tensor([2, 5, 10], dtype=torch.int32)
    real = torch._grouped_mm(rows, weights, offs=offsets)
    with torch.inference_mode(), MetaKernels():
        shaped = torch._grouped_mm(rows.to("meta"), weights.to("meta"), offs=offsets.to("meta"))
    assert (shaped.shape, shaped.dtype) == (real.shape, real.dtype)


def test_operations_without_a_formula_are_listed() -> None:
    left, right = meta(2, 2), meta(2, 2)
    with torch.inference_mode(), FlopCounter() as counter:
        torch.relu(left @ right)
    assert counter.uncounted == {torch.ops.aten.relu}


def test_only_what_runs_within_experts_counts_as_theirs() -> None:
    with torch.device("meta"):
        router, experts = nn.Linear(4, 2), nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))
    with torch.inference_mode(), FlopCounter([experts, experts[0]]) as counter:
        experts(router(meta(3, 4)) @ meta(2, 4))
        router(meta(3, 4))
    inside, outside = 2 * 3 * (32 + 32), 2 * 3 * (8 + 8 + 8)
    assert counter.count == FlopCount(inside + outside, inside)
    assert not experts._forward_hooks
    assert not experts._forward_pre_hooks


def test_a_layer_repeated_counts_once_more() -> None:
    with torch.inference_mode(), FlopCounter() as counter:
        meta(2, 2) @ meta(2, 2)
        mark = counter.begin_layer(VISIT)
        meta(2, 3) @ meta(3, 2)
        with counter.repeat_layer(VISIT, counter.end_layer(mark, []), {}):
            pass
    assert counter.count.total == 16 + 2 * 24


def test_layers_are_told_apart_by_nothing_but_their_shapes() -> None:
    others = LayerVisit("layers.1", (meta(3), meta(4)))
    observer: LayerObserver = FlopCounter()
    assert observer.describe(VISIT) == observer.describe(others)


def test_a_layer_may_be_held_to_a_number_of_operations() -> None:
    with torch.inference_mode(), FlopCounter(max_operations_of_layer=3) as counter:
        left, right = meta(2, 2), meta(2, 2)
        counter.begin_layer(VISIT)
        for _ in range(3):
            left @ right
        counter.begin_layer(VISIT)
        for _ in range(3):
            left @ right
        with pytest.raises(TooManyOperations):
            left @ right
