"""Quantized layers of a cache, with the operations of their libraries on a GPU.

transformers decides when keys and values are quantized (`QuantizedLayer.update`), and the libraries
how: optimum-quanto 0.2.7 (`MaxOptimizer`, `quantize_affine`, `PackedTensor`, and its CUDA kernel that
unpacks) and hqq 0.2.8 (`Quantizer` with `optimize_weights_proximal`). What follows takes and frees the
same memory in the same order, and computes the same numbers of bytes.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, QuantizedLayer

from moetool.simulation.caches.kinds import CacheDtype

GROUP_SIZE = 64
# Iterations of HQQ's optimizer take the same memory from the second one on, which always runs.
_NUM_ITERATIONS = 2
_HQQ_DTYPE = torch.float16


# What is stored of keys or values: several numbers in each byte, the scale of each group and its zero,
# and the shape before.
Packed = tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[int, ...]]


class _Layer(QuantizedLayer):  # type: ignore[no-untyped-call]
    """A layer that may start with tokens in full precision, as if they had been generated.

    Attributes:
        num_residual: The number of those tokens.
    """

    num_residual = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the layer's keys and values, in full precision."""
        if self.is_initialized or not self.num_residual:
            found: tuple[torch.Tensor, torch.Tensor]
            found = super().update(key_states, value_states, *args, **kwargs)
            return found
        early = (
            key_states[..., : -self.num_residual, :],
            value_states[..., : -self.num_residual, :],
        )
        super().update(*early, *args, **kwargs)
        self.cumulative_length = key_states.shape[-2]
        self.keys = key_states[..., -self.num_residual :, :].clone()
        self.values = value_states[..., -self.num_residual :, :].clone()
        return key_states, value_states


class QuantoLayer(_Layer):  # type: ignore[no-untyped-call]
    """Keys and values in 4 or 2 bits, as optimum-quanto packs them."""

    def _quantize(self, tensor: torch.Tensor, axis: int) -> Packed:  # type: ignore[override]
        _refuse_group(tensor.numel() // tensor.shape[axis], self.q_group_size)
        scale, shift = _find_range(tensor.reshape(-1, self.q_group_size), self.nbits)
        data = _round_to_scale(tensor.reshape(-1, self.q_group_size), scale, shift, self.nbits)
        return _pack_rows(data, self.nbits), scale, shift, tuple(tensor.shape)

    def _dequantize(self, packed: Packed) -> torch.Tensor:
        stored, scale, zero, shape = packed
        data = _unpack_rows(stored, self.nbits)[: scale.shape[0]]
        numbers = scale * data
        numbers -= zero
        return numbers.reshape(shape)


class HqqLayer(_Layer):  # type: ignore[no-untyped-call]
    """Keys and values in 8 bits, as HQQ optimizes and stores them."""

    def _quantize(self, tensor: torch.Tensor, axis: int) -> Packed:  # type: ignore[override]
        del axis
        _refuse_group(tensor.numel(), self.q_group_size)
        data, scale, zero = _optimize(tensor, self.q_group_size, self.nbits)
        scale = 1.0 / scale
        data = data.to(torch.uint8)
        dtype = tensor.dtype
        return data, scale.to(dtype), zero.to(dtype), tuple(tensor.shape)

    def _dequantize(self, packed: Packed) -> torch.Tensor:
        stored, scale, zero, shape = packed
        return ((stored.to(scale.dtype) - zero) * scale).reshape(shape)


def make_quantized_cache(config: Any, dtype: CacheDtype, *, num_residual: int = 0) -> Cache:
    """Return an empty cache with one quantized layer for each of a decoder's layers.

    Args:
        config: The configuration of the decoder.
        dtype: The format.
        num_residual: The last tokens of the prompt that stay in full precision.

    Raises:
        ValueError: The decoder has layers that transformers' quantized cache refuses, or this
            transformers has no cache in fp8.
    """
    from transformers.cache_utils import QuantizedCache

    if dtype is CacheDtype.FP8:
        return QuantizedCache(backend="fp8", config=config)
    layer_class = QuantoLayer if dtype.backend == "quanto" else HqqLayer
    layers: list[Any] = [layer_class(nbits=dtype.num_bits) for _ in range(config.num_hidden_layers)]
    for layer in layers:
        layer.num_residual = num_residual
    return Cache(layers=layers)


def _refuse_group(num_elements: int, group_size: int) -> None:
    if num_elements % group_size:
        raise ValueError(
            f"its keys or values, {num_elements:,} numbers, can't be divided into groups of {group_size}"
        )


def _find_range(groups: torch.Tensor, num_bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scale and the shift of each row.

    (num_groups, group_size) -> (num_groups, 1)
    """
    lowest = torch.amin(groups, dim=[1], keepdim=True)
    highest = torch.amax(groups, dim=[1], keepdim=True)
    scale = (highest - lowest) / (2**num_bits - 1)
    return scale, -lowest


def _round_to_scale(
    groups: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, num_bits: int
) -> torch.Tensor:
    """Return the numbers of each row in steps of its scale, one in each byte."""
    rounded = torch.round((groups + shift) / scale)
    return torch.clamp(rounded, min=0, max=2**num_bits - 1).to(torch.uint8)


def _pack_rows(data: torch.Tensor, num_bits: int) -> torch.Tensor:
    """Return a matrix in which each byte holds the numbers of several rows.

    (num_rows, width) -> (ceil(num_rows * num_bits / 8), width)
    """
    per_byte = 8 // num_bits
    num_rows = -(-data.shape[0] // per_byte)
    packed = torch.zeros((num_rows, data.shape[1]), dtype=torch.uint8, device=data.device)
    for index in range(per_byte):
        rows = data[index * num_rows : (index + 1) * num_rows]
        if rows.shape[0]:
            packed[: rows.shape[0]] |= rows << (num_bits * index)
    return packed


def _unpack_rows(packed: torch.Tensor, num_bits: int) -> torch.Tensor:
    """Return one number in each byte. The kernel for GPUs takes nothing but its result."""
    per_byte, num_rows = 8 // num_bits, packed.shape[0]
    data = packed.new_empty((num_rows * per_byte, packed.shape[1]))
    for index in range(per_byte):
        rows = data[index * num_rows : (index + 1) * num_rows]
        torch.bitwise_right_shift(packed, num_bits * index, out=rows)
        rows &= 2**num_bits - 1
    return data


def _optimize(
    tensor: torch.Tensor, group_size: int, num_bits: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return numbers in full precision, rounded, and the inverse scale and the zero of each group."""
    groups = tensor.float().reshape(group_size, -1)
    lowest = groups.min(dim=0, keepdim=True)[0]
    highest = groups.max(dim=0, keepdim=True)[0]
    most = 2**num_bits - 1
    width = highest - lowest
    scale = most / width
    scale = torch.where(width.abs() <= 1e-4, torch.full_like(scale, 1.0), scale)
    scale = scale.clamp(max=2e4)
    zero = -lowest * scale
    scale, zero = _find_zero(groups, scale, zero, most)
    return torch.round(groups * scale + zero).clamp_(0, most), scale, zero


def _find_zero(
    groups: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scale and the zero after some iterations in half precision."""
    groups = groups.to(_HQQ_DTYPE)
    scale, zero = scale.to(_HQQ_DTYPE), zero.to(_HQQ_DTYPE)
    # Both stay alive until the next iteration has replaced them.
    restored = rounded = None
    for _ in range(_NUM_ITERATIONS):
        restored, rounded, zero = _iterate(groups, scale, zero, most)
        torch.abs(groups - restored).mean().float()
    del rounded
    return scale, zero


def _iterate(
    groups: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rounded = torch.round(groups * scale + zero).clamp_(0, most)
    restored = (rounded - zero) / scale
    errors = _shrink(groups - restored)
    zero = torch.mean(rounded - (groups - errors) * scale, dim=0, keepdim=True)
    return restored, rounded, zero


def _shrink(errors: torch.Tensor) -> torch.Tensor:
    """Return errors moved toward zero, as in HQQ's optimizer under its default norm."""
    sizes = torch.abs(errors)
    sizes.sub_(0.1 * sizes.pow(-0.3)).clamp_min_(0.0)
    return sizes.mul_(torch.sign(errors))
