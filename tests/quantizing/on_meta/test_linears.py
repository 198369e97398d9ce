"""Allocations of quantized layers, as bitsandbytes makes them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moetool.quantizing.on_meta.linears import FourBitLinear, Int8Linear
from moetool.simulation.memory.allocations import AllocationRecorder
from moetool.simulation.memory.timeline import Origins

# Read off torch's allocator on an H200: bytes asked for, and with a minus those given back.
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
# The input in float32, the product, the product in bfloat16.
FUSED = [57344, 28672, 14336, -28672, -57344]
# The input, the whole weight, the product in float32; the product in bfloat16.
COPIED = [65536, 8388608, 32768, -8388608, 16384, -32768, -65536]
# With scales of scales: those in float32, then moved by their mean.
NESTED = [
    *(65536, 131072, 131072, 8388608, 32768, -131072, -131072, -8388608),
    *(16384, -32768, -65536),
]
IN_BFLOAT16 = [4194304, 2097152, -4194304]


@pytest.mark.parametrize(
    ("shape", "is_nested", "compute_dtype", "expected"),
    [
        ((7, 1), False, FLOAT32, FUSED),
        ((7, 1), True, FLOAT32, FUSED),
        ((8, 1), False, FLOAT32, COPIED),
        ((1, 8), True, FLOAT32, NESTED),
        ((4, 1), False, BFLOAT16, [8192]),
        ((2, 512), False, BFLOAT16, IN_BFLOAT16),
    ],
)
def test_four_bit_layers_allocate_what_bitsandbytes_allocates(
    shape: tuple[int, int], is_nested: bool, compute_dtype: torch.dtype, expected: list[int]
) -> None:
    bias = nn.Parameter(torch.empty(1024, dtype=BFLOAT16, device="meta"), requires_grad=False)
    layer = FourBitLinear(
        2048, 1024, bias=bias, is_double_quantized=is_nested, compute_dtype=compute_dtype
    )

    assert record(layer, (*shape, 2048)) == expected


def test_widths_that_cut_blocks_are_never_fused() -> None:
    layer = FourBitLinear(1000, 512, bias=None, is_double_quantized=False, compute_dtype=FLOAT32)

    assert record(layer, (1, 1, 1000)) == [4000, 2048000, 2048, -2048000, 1024, -2048, -4000]


@pytest.mark.parametrize("has_bias", [False, True])
def test_8_bit_layers_allocate_what_bitsandbytes_allocates(has_bias: bool) -> None:
    bias = torch.empty(14336, dtype=BFLOAT16, device="meta") if has_bias else None
    layer = Int8Linear(4096, 14336, bias=None if bias is None else nn.Parameter(bias))

    assert record(layer, (7, 1, 4096)) == [
        # In float16; scales; in 8 bits; which are beyond the threshold, by their absolute values.
        *(57344, 28, 28672, 57344, 28672, -57344, 1, -1, 1, -1, -28672, -57344),
        # Sums, in float16, in bfloat16.
        *(401408, 200704, 200704, -200704, -401408, -28672, -28),
    ]


def test_8_bit_layers_write_no_zeros_to_a_single_row() -> None:
    layer = Int8Linear(4096, 14336, bias=None)

    assert record(layer, (1, 1, 4096)) == [
        *(8192, 4, 4096, 8192, 4096, -8192, 1, -1, -4096, -8192),
        *(57344, 28672, 28672, -28672, -57344, -4096, -4),
    ]


def test_a_bias_is_added_in_the_dtype_of_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes = []

    def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        dtypes.extend([x.dtype, weight.dtype, bias.dtype])
        return x

    monkeypatch.setattr(nn.functional, "linear", multiply)
    bias = nn.Parameter(torch.empty(64, dtype=BFLOAT16, device="meta"), requires_grad=False)
    layer = FourBitLinear(64, 64, bias=bias, is_double_quantized=False, compute_dtype=FLOAT32)
    layer(torch.empty((9, 64), dtype=BFLOAT16, device="meta"))

    assert dtypes == [FLOAT32] * 3
    assert layer.bias.dtype is BFLOAT16


def test_8_bit_layers_of_odd_widths_multiply_in_float32() -> None:
    layer = Int8Linear(6, 16, bias=None)

    assert record(layer, (3, 1, 6)) == [
        *(36, 12, 18, 36, 18, -36, 1, -1, 1, -1, -18, -36),
        # Sums; both factors in float32, and their product; that in 32 bits.
        *(192, 72, 384, 192, -72, -384, 192, -192, -192),
        *(96, 96, -96, -192, -18, -12),
    ]


def record(layer: nn.Module, shape: tuple[int, ...]) -> list[int]:
    """Return a layer's allocations and, with a minus, its frees while it runs."""
    holder = nn.Sequential(layer)
    with torch.inference_mode(), AllocationRecorder(holder, origins=Origins()) as recorder:
        x = torch.empty(shape, dtype=BFLOAT16, device="meta")
        first = len(recorder.events)
        result = layer(x)
        events = [e for e in recorder.events[first:] if e.block != recorder.workspace_block]
        assert result.dtype is BFLOAT16
        assert result.shape == (*shape[:-1], layer.out_features)
    born = {event.block: event.num_bytes for event in events if event.num_bytes >= 0}
    return [e.num_bytes if e.num_bytes >= 0 else -born[e.block] for e in events]
