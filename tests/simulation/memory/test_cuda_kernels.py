"""Temporary memory of operations on a GPU, as measured on an H200 with torch 2.11."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from moetool.simulation.memory.cuda_kernels import (
    Temporaries,
    find_temporaries,
    is_one_kernel,
    needs_lt_workspace,
    needs_workspace,
)

aten = torch.ops.aten
meta = partial(torch.empty, device="meta")
ids = partial(meta, dtype=torch.int64)


@pytest.mark.parametrize(
    ("num_rows", "num_bytes"),
    [
        (4800, 95743),
        (6000, 115199),
        (16384, 283135),
        (32768, 549375),
        (49152, 814591),
        (65536, 1080831),
        (81920, 1346047),
    ],
)
def test_sorting_a_long_row_takes_indices_and_a_radix_sort_s_memory(
    num_rows: int, num_bytes: int
) -> None:
    taken = find_temporaries(aten.sort, (ids(num_rows),), {})
    assert taken == Temporaries(after=(num_rows * 8, num_bytes))


@pytest.mark.parametrize("shape", [(1,), (4095,), (4096,), (8, 8192)])
def test_sorting_short_rows_or_several_takes_indices_alone(shape: tuple[int, ...]) -> None:
    rows = ids(shape)
    assert find_temporaries(aten.sort, (rows,), {}) == Temporaries(after=(rows.numel() * 8,))


@pytest.mark.parametrize(("num_experts", "num_bytes"), [(8, 480), (128, 7680)])
def test_a_grouped_product_takes_what_describes_its_experts_and_a_workspace(
    num_experts: int, num_bytes: int
) -> None:
    rows, weights = meta(100, 64, dtype=torch.bfloat16), meta(num_experts, 64, 32)
    given = {"offs": meta(num_experts, dtype=torch.int32)}
    taken = find_temporaries(aten._grouped_mm, (rows, weights), given)
    assert taken == Temporaries(after=(num_bytes, 67584))


def test_a_histogram_takes_a_workspace() -> None:
    given = {"bins": 128, "min": 0, "max": 127}
    assert find_temporaries(aten.histc, (ids(100),), given) == Temporaries(after=(1023,))


def attend(mask: torch.Tensor | None, *, as_keyword: bool) -> Temporaries | None:
    query = meta(2, 4, 5, 16, dtype=torch.bfloat16)
    key = meta(2, 2, 7, 16, dtype=torch.bfloat16)
    given: dict[str, Any] = {"enable_gqa": True, **({"attn_mask": mask} if as_keyword else {})}
    args = (query, key, key) if as_keyword else (query, key, key, mask)
    return find_temporaries(aten.scaled_dot_product_attention, args, given)


@pytest.mark.parametrize("as_keyword", [False, True])
def test_attention_takes_the_state_of_random_numbers_and_a_workspace(as_keyword: bool) -> None:
    expected = Temporaries(before=(8, 8), after=(256,))
    assert attend(None, as_keyword=as_keyword) == expected
    added = meta(2, 1, 5, 7, dtype=torch.bfloat16)
    assert attend(added, as_keyword=as_keyword) == expected


@pytest.mark.parametrize("as_keyword", [False, True])
def test_attention_takes_a_boolean_mask_in_the_query_s_dtype(as_keyword: bool) -> None:
    mask = meta(2, 1, 5, 7, dtype=torch.bool)
    expected = Temporaries(before=(2 * 5 * 7 * 2, 8, 8), after=(256,))
    assert attend(mask, as_keyword=as_keyword) == expected


def test_a_convolution_copies_an_input_that_does_not_lie_in_order() -> None:
    rows, kernel = meta(2, 9, 6), meta(6, 1, 4)
    in_order = find_temporaries(aten.convolution, (rows, kernel), {})
    turned = find_temporaries(aten.convolution, (rows.transpose(1, 2), kernel), {})
    assert in_order is None
    assert turned == Temporaries(before=(2 * 9 * 6 * 4,))


def test_other_operations_take_nothing() -> None:
    assert find_temporaries(aten.mm, (meta(2, 2), meta(2, 2)), {}) is None
    assert find_temporaries(aten.add, (meta(2, 2), meta(2, 2)), {}) is None


@pytest.mark.parametrize("name", ["mm", "addmm", "bmm", "baddbmm", "_grouped_mm"])
def test_products_of_matrices_need_a_workspace(name: str) -> None:
    assert needs_workspace(getattr(aten, name))


@pytest.mark.parametrize("name", ["mul", "scaled_dot_product_attention", "convolution", "sum"])
def test_nothing_else_needs_a_workspace(name: str) -> None:
    assert not needs_workspace(getattr(aten, name))


@pytest.mark.parametrize(
    ("bias", "matrix", "needs"),
    [
        ((4,), (3, 4), True),
        # A bias for each row is added by cuBLAS, and so is one that lies apart.
        ((2, 4), (3, 4), False),
        ((1,), (3, 1), False),
        ((4,), (1, 4), False),
    ],
)
def test_a_product_with_one_row_of_bias_needs_cublaslt_s_workspace(
    bias: tuple[int, ...], matrix: tuple[int, ...], needs: bool
) -> None:
    args = (meta(bias), meta(2, matrix[0]), meta(matrix))
    assert needs_lt_workspace(aten.addmm, args) == needs


def test_other_products_need_no_workspace_of_cublaslt() -> None:
    assert not needs_lt_workspace(aten.mm, (meta(2, 3), meta(3, 4)))
    assert not needs_lt_workspace(aten.baddbmm, (meta(4), meta(1, 2, 3), meta(1, 3, 4)))
    assert not needs_lt_workspace(aten.addmm, (meta(8)[::2], meta(2, 3), meta(3, 4)))


@pytest.mark.parametrize(
    ("operation", "is_one"),
    [
        (aten.mm.default, True),
        (aten.add.Tensor, True),
        (aten.view.default, True),
        (aten.silu.default, True),
        (aten.scaled_dot_product_attention.default, True),
        (aten.one_hot.default, True),
        (aten.linear.default, False),
        (aten.matmul.default, False),
        (aten.reshape.default, False),
        (aten.repeat_interleave.self_int, False),
    ],
)
def test_operations_made_of_others_are_no_kernels_but_for_these(
    operation: Any, is_one: bool
) -> None:
    assert is_one_kernel(operation) == is_one
