"""Operations whose results on the meta device are laid out as on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moetool.simulation.memory.allocations import AllocationRecorder
from moetool.simulation.memory.timeline import Origins
from moetool.simulation.meta.meta_kernels import MetaKernels

meta = partial(torch.empty, device="meta")


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    with torch.inference_mode(), MetaKernels():
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [3, 16])
def test_grouped_products_have_the_shape_and_dtype_of_one_product_each(
    dtype: torch.dtype, width: int
) -> None:
    offsets = meta(4, dtype=torch.int32)
    rows, weights = meta(10, width, dtype=dtype), meta(4, width, 5, dtype=dtype)
    product = torch._grouped_mm(rows, weights, offs=offsets)
    assert (product.shape, product.dtype) == ((10, 5), dtype)
    wide = torch._grouped_mm(rows, weights, offs=offsets, out_dtype=torch.float64)
    assert (wide.shape, wide.dtype) == ((10, 5), torch.float64)


def heads_first(num_heads: int, width: int, **given: Any) -> torch.Tensor:
    return meta(2, num_heads, 5, width, **given)


def tokens_first(num_heads: int, width: int, **given: Any) -> torch.Tensor:
    return meta(2, 5, num_heads, width, **given).transpose(1, 2)


@pytest.mark.parametrize("width_out", [8, 6])
@pytest.mark.parametrize("lay_out", [heads_first, tokens_first])
def test_attention_s_output_lies_as_its_query_does(
    lay_out: Callable[..., torch.Tensor], width_out: int
) -> None:
    query, key = lay_out(4, 8, dtype=torch.bfloat16), heads_first(2, 8)
    output = F.scaled_dot_product_attention(query, key, heads_first(2, width_out), enable_gqa=True)
    expected = lay_out(4, width_out)
    assert (output.shape, output.stride()) == (expected.shape, expected.stride())
    assert output.dtype == torch.bfloat16


@pytest.mark.parametrize("width_out", [8, 6])
@pytest.mark.parametrize(("lay_out", "num_copies"), [(heads_first, 1), (tokens_first, 0)])
def test_putting_attention_s_tokens_first_copies_only_if_its_query_s_heads_are(
    lay_out: Callable[..., torch.Tensor], num_copies: int, width_out: int
) -> None:
    query, key, value = lay_out(4, 8), heads_first(4, 8), heads_first(4, width_out)
    with AllocationRecorder(nn.Module(), origins=Origins()) as recorder:
        output = F.scaled_dot_product_attention(query, key, value)
        before = len(recorder.events)
        rows = output.transpose(1, 2).contiguous()
        copies = recorder.events[before:]
    assert [event.num_bytes for event in copies] == [rows.nbytes] * num_copies


def test_one_hot_vectors_take_no_memory_but_their_own() -> None:
    numbers = meta(3, 4, dtype=torch.int64)
    with AllocationRecorder(nn.Module(), origins=Origins()) as recorder:
        vectors = F.one_hot(numbers, num_classes=7)
        assert [event.num_bytes for event in recorder.events] == [3 * 4 * 7 * 8]
    assert (vectors.shape, vectors.dtype) == ((3, 4, 7), torch.int64)


def test_one_hot_vectors_of_unknown_length_need_data() -> None:
    with (
        AllocationRecorder(nn.Module(), origins=Origins()),
        pytest.raises(RuntimeError, match="meta tensors"),
    ):
        F.one_hot(meta(3, dtype=torch.int64))


def test_what_has_data_is_computed() -> None:
    query = torch.randn(1, 2, 3, 4)
    with AllocationRecorder(nn.Module(), origins=Origins()):
        attended = F.scaled_dot_product_attention(query, query, query)
        vectors = F.one_hot(torch.tensor([2, 0]))
    weights = (query @ query.transpose(-1, -2) / 2).softmax(-1)
    torch.testing.assert_close(attended, weights @ query)
    assert vectors.tolist() == [[0, 0, 1], [1, 0, 0]]
