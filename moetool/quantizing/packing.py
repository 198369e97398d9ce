"""Matrices of experts in 4 or 8 bits: their codes and scales, as bitsandbytes makes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from moetool.quantizing.kinds import Quantization
from moetool.quantizing.loading.cpu_codes import one_thread_each, quantize_blocks

# Weights that share a scale, and scales that share a nested one: bitsandbytes' own numbers.
BLOCK_SIZE = 64
NESTED_BLOCK_SIZE = 256
# Weights that are quantized at a time on the CPU.
_CPU_WEIGHTS = 2**18


@dataclass(frozen=True)
class ExpertMatrix:
    """One of the matrices that each expert of a module has.

    Attributes:
        name: The parameter that stacks them, such as `gate_up_proj`.
        num_experts: Matrices in the stack.
        out_features: Outputs of a matrix.
        in_features: Inputs of a matrix.
        is_transposed: Whether the plain parameter has the inputs before the outputs.
    """

    name: str
    num_experts: int
    out_features: int
    in_features: int
    is_transposed: bool

    @property
    def num_weights(self) -> int:
        """Weights of one expert."""
        return self.out_features * self.in_features

    @property
    def plain_shape(self) -> tuple[int, int, int]:
        """The dimensions of the plain parameter, if it has three."""
        width = (self.out_features, self.in_features)
        return (self.num_experts, *(width[::-1] if self.is_transposed else width))

    @property
    def num_blocks(self) -> int:
        """Blocks of weights with a scale each, of one expert in 4 bits."""
        return math.ceil(self.num_weights / BLOCK_SIZE)


@dataclass(frozen=True)
class Packing:
    """A format for the matrices of experts.

    Every expert is quantized by itself: its tensors are those of bitsandbytes' `Linear4bit` or
    `Linear8bitLt` with its matrix, stacked along the first dimension. Matrices have outputs before
    inputs, whatever the plain parameter's order.

    Attributes:
        quantization: The format, other than `none`.
        is_double_quantized: Whether scales of 4-bit weights are quantized too.
    """

    quantization: Quantization
    is_double_quantized: bool = False

    @property
    def is_4bit(self) -> bool:
        """Whether two weights share a byte."""
        return self.quantization is not Quantization.INT8

    def list_tensors(self, matrix: ExpertMatrix) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Return the shapes and dtypes of a stack's tensors by name: codes first, then scales."""
        name, count = matrix.name, matrix.num_experts
        out_features, in_features = matrix.out_features, matrix.in_features
        if not self.is_4bit:
            return {
                name: ((count, out_features, in_features), torch.int8),
                f"{name}_scale": ((count, out_features), torch.float32),
            }
        codes = {name: ((count, out_features, in_features // 2), torch.uint8)}
        blocks = (count, matrix.num_blocks)
        if not self.is_double_quantized:
            return {**codes, f"{name}_absmax": (blocks, torch.float32)}
        num_nested = math.ceil(matrix.num_blocks / NESTED_BLOCK_SIZE)
        return {
            **codes,
            f"{name}_absmax": (blocks, torch.uint8),
            f"{name}_nested_absmax": ((count, num_nested), torch.float32),
            f"{name}_offset": ((count,), torch.float32),
        }

    def count_bytes(self, matrix: ExpertMatrix) -> int:
        """Return the bytes of all tensors of a stack."""
        tensors = self.list_tensors(matrix).values()
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in tensors)

    def quantize(self, stack: torch.Tensor, matrix: ExpertMatrix) -> dict[str, torch.Tensor]:
        """Return a stack's tensors by name, each expert quantized by bitsandbytes.

        Args:
            stack: The plain parameter, in float32, float16 or bfloat16.
            matrix: Its shape.
        """
        return self.pack_each(iter(stack.view(matrix.plain_shape)), matrix)

    def pack_each(
        self, weights: Iterator[torch.Tensor], matrix: ExpertMatrix
    ) -> dict[str, torch.Tensor]:
        """Return a stack's tensors by name, made of one expert after the other.

        Args:
            weights: The part of the plain parameter that belongs to each expert.
            matrix: Its shape.

        Raises:
            ValueError: A part has another shape.
        """
        with one_thread_each() as pool:
            return self._pack_each(weights, matrix, pool)

    def _pack_each(
        self, weights: Iterator[torch.Tensor], matrix: ExpertMatrix, pool: ThreadPoolExecutor
    ) -> dict[str, torch.Tensor]:
        packed: dict[str, torch.Tensor] = {}
        shape = matrix.plain_shape[1:]
        for expert in range(matrix.num_experts):
            plain = next(weights).detach()
            if plain.shape != shape:
                seen, wanted = (" x ".join(map(str, each)) for each in (plain.shape, shape))
                raise ValueError(
                    f"{matrix.name} of an expert has {seen} weights instead of {wanted}"
                )
            # First, so that they don't take the place of weights that are freed.
            packed = packed or {
                name: torch.empty(shape_of, dtype=dtype, device=plain.device)
                for name, (shape_of, dtype) in self.list_tensors(matrix).items()
            }
            weight = (plain.T if matrix.is_transposed else plain).contiguous()
            del plain
            for name, part in self._quantize_one(weight, matrix.name, pool).items():
                target = packed[name][expert]
                target.copy_(part.reshape(target.shape))
            del weight
        return packed

    def _quantize_one(
        self, weight: torch.Tensor, name: str, pool: ThreadPoolExecutor
    ) -> dict[str, torch.Tensor]:
        import bitsandbytes.functional as kernels

        functions: Any = kernels
        if not self.is_4bit:
            # `Int8Params` goes by way of float16 as well.
            halves = _map(
                lambda rows: functions.int8_vectorwise_quant(rows.to(torch.float16))[:2],
                _split_rows(weight),
                pool,
            )
            codes, scale = (torch.cat(parts) for parts in zip(*halves, strict=True))
            return {name: codes, f"{name}_scale": scale}
        quantized = _map(
            lambda rows: self._quantize_4bit(rows, functions), _split_rows(weight), pool
        )
        codes, absmax = (torch.cat(parts) for parts in zip(*quantized, strict=True))
        if not self.is_double_quantized:
            return {name: codes, f"{name}_absmax": absmax}
        # As `quantize_4bit` compresses its statistics.
        offset = absmax.mean()
        absmax, nested = functions.quantize_blockwise(absmax - offset, blocksize=NESTED_BLOCK_SIZE)
        return {
            name: codes,
            f"{name}_absmax": absmax,
            f"{name}_nested_absmax": nested.absmax,
            f"{name}_offset": offset,
        }

    def _quantize_4bit(
        self, rows: torch.Tensor, functions: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the codes and scales of some rows of a matrix."""
        if rows.is_cpu and rows.numel() % BLOCK_SIZE == 0:
            return quantize_blocks(rows, self.quantization, block_size=BLOCK_SIZE)
        codes, state = functions.quantize_4bit(
            rows,
            blocksize=BLOCK_SIZE,
            compress_statistics=False,
            quant_type=self.quantization.value,
        )
        return codes.flatten(), state.absmax


def _map(
    function: Callable[[torch.Tensor], Any], parts: Sequence[torch.Tensor], pool: ThreadPoolExecutor
) -> Iterable[Any]:
    """Return a function's results for parts of a matrix; on a GPU there is only one."""
    return map(function, parts) if len(parts) == 1 else pool.map(function, parts)


def _split_rows(weight: torch.Tensor) -> Sequence[torch.Tensor]:
    """Return a matrix in parts of whole blocks, as many of which are quantized as there are threads.

    Temporaries take up to 26 bytes for each weight, and stay in the processor's caches if they are few.
    """
    if not weight.is_cpu:
        return [weight]
    in_features = weight.shape[1]
    step = BLOCK_SIZE // math.gcd(in_features, BLOCK_SIZE)
    num_rows = max(1, _CPU_WEIGHTS // in_features // step) * step
    return [weight[first : first + num_rows] for first in range(0, len(weight), num_rows)]
