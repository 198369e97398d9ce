"""Kernels for packed weights, as functions that allocate what the kernels do and compute nothing.

transformers fetches such kernels from the Hub when a model is loaded or first run. Here they are
replaced whether they are installed or not, so that the same model is the same on every machine. What
each allocates is what its source does: `kernels-community/finegrained-fp8`, version 4, and
`kernels-community/gpt-oss-triton-kernels`, version 1. Tensors of a few KiB that only describe the
grid are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from moetool.simulation.meta.replaced import replaced

# Streaming multiprocessors of an H100 or H200. Others change buffers of a few MiB in decoding.
_NUM_MULTIPROCESSORS = 132
_OUTPUTS_OF_TILE = 256
_INPUTS_OF_TILE = 128
_FEWEST_ROWS, _MOST_ROWS = 16, 128
_NUM_TILE_SIZES = 4


@contextmanager
def offer_kernels_on_meta() -> Iterator[None]:
    """Have transformers call these functions in place of kernels, and DeepGEMM's not at all."""
    from transformers.integrations import finegrained_fp8, hub_kernels, mxfp4

    changes: tuple[tuple[Any, dict[str, Any]], ...] = (
        (hub_kernels, {"get_kernel": lambda *_, **__: MXFP4_KERNELS}),
        (mxfp4, {"triton_kernels_hub": MXFP4_KERNELS}),
        (
            finegrained_fp8,
            {
                "_FINEGRAINED_FP8": _make_fp8_kernels(finegrained_fp8),
                "is_deepgemm_loadable": lambda *_, **__: False,
            },
        ),
    )
    with ExitStack() as held:
        for module, values in changes:
            held.enter_context(replaced(module, values))
        yield


def _make_fp8_kernels(integration: Any) -> Any:
    return integration.FineGrainedFP8(
        matmul=_multiply_fp8,
        batched_matmul=_multiply_fp8_by_row,
        grouped_matmul=_multiply_fp8_by_group,
    )


def _multiply_fp8(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    block_size: list[int] | None,
    output_dtype: torch.dtype | None = None,
    activation_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    quantized = _quantize_inputs(inputs, weight, scales, block_size, is_static=activation_scale)
    output = _make_output(inputs, weight.shape[0], output_dtype)
    del quantized
    return output


def _multiply_fp8_by_row(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    expert_ids: torch.Tensor,
    block_size: list[int] | None,
    output_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    del expert_ids
    return _multiply_by_expert(inputs, weight, scales, block_size, output_dtype)


def _multiply_fp8_by_group(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    offsets: torch.Tensor,
    tokens_per_expert: torch.Tensor,
    block_size: list[int] | None,
    output_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    del offsets, tokens_per_expert
    return _multiply_by_expert(inputs, weight, scales, block_size, output_dtype)


def _multiply_by_expert(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    block_size: list[int] | None,
    output_dtype: torch.dtype | None,
) -> torch.Tensor:
    quantized = _quantize_inputs(inputs, weight, scales, block_size)
    output = _make_output(inputs, weight.shape[1], output_dtype)
    del quantized
    return output


def _make_output(inputs: torch.Tensor, width: int, dtype: torch.dtype | None) -> torch.Tensor:
    return inputs.new_empty((*inputs.shape[:-1], width), dtype=dtype or inputs.dtype)


def _quantize_inputs(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor,
    block_size: list[int] | None,
    *,
    is_static: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """Return the copy of inputs that is made with one scale for a whole matrix.

    With blocks, inputs are quantized in registers.
    """
    is_mx = scales.dtype in (torch.uint8, getattr(torch, "float8_e8m0fnu", None)) and (
        weight.dtype is torch.int8 or scales.shape[-1] * 32 == weight.shape[-1]
    )
    is_whole = block_size is None or list(block_size) == list(weight.shape[-2:])
    if is_mx or not is_whole or is_static is not None:
        return ()
    rows = inputs.shape[:-1]
    quantized = torch.empty_like(inputs, dtype=torch.float8_e4m3fn)
    return quantized, inputs.new_empty((*rows, 1), dtype=torch.float32)


# gpt-oss.


@dataclass
class _Routing:
    """Tensors that the router's kernel leaves for the products."""

    num_experts: int
    num_chosen: int
    gate_scal: torch.Tensor
    tensors: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class _Activation:
    """A function that a product applies to pairs of its outputs."""

    specs: object
    arguments: tuple[object, ...]
    outputs_per_result: int


def _route(logits: torch.Tensor, num_chosen: int) -> tuple[_Routing, torch.Tensor, torch.Tensor]:
    num_tokens, num_experts = logits.shape
    num_rows = num_tokens * num_chosen
    whole = {"dtype": torch.int32, "device": logits.device}
    scores = logits.new_empty((num_tokens, num_chosen))
    chosen = torch.empty((num_tokens, num_chosen), dtype=torch.int16, device=logits.device)
    words = torch.empty((-(-num_experts // 32), -(-num_tokens // 32) * 32), **whole)  # type: ignore[call-overload]
    both = torch.empty(2 * num_rows, **whole)  # type: ignore[call-overload]
    num_tiles = (
        num_rows
        if num_rows <= num_experts
        else num_experts - 1 - ((num_experts - num_rows - 1) // _FEWEST_ROWS)
    )
    tiles = torch.empty((_NUM_TILE_SIZES, -(-num_tiles // 512) * 512), **whole)  # type: ignore[call-overload]
    weights = scores.new_empty(num_rows)
    del scores, chosen, words
    routing = _Routing(num_experts, num_chosen, weights, (tiles,))
    return routing, both[:num_rows], both[num_rows:]


def _multiply_mxfp4(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    routing: _Routing,
    *,
    gather_indx: torch.Tensor | None = None,
    scatter_indx: torch.Tensor | None = None,
    precision_config: object = None,
    gammas: torch.Tensor | None = None,
    fused_activation: _Activation | None = None,
) -> torch.Tensor:
    del weight, precision_config, gammas
    num_rows = inputs.shape[0] if gather_indx is None else gather_indx.shape[0]
    width = bias.shape[-1]
    num_splits = _count_splits(num_rows, width, inputs.shape[-1], num_experts=routing.num_experts)
    is_scattered = scatter_indx is not None and routing.num_chosen > 1
    num_tokens = num_rows // routing.num_chosen if is_scattered else num_rows
    # Rows of single experts lie behind the tokens' sums, unless they are sums of parts themselves.
    num_results = num_tokens
    if is_scattered and num_splits == 1:
        num_results += num_rows
    outputs_per_result = 1 if fused_activation is None else fused_activation.outputs_per_result
    output = inputs.new_empty((1, num_results, width // outputs_per_result))
    parts = None
    if num_splits > 1:
        parts = inputs.new_empty((num_splits, 1, num_rows, width), dtype=torch.float32)
    del parts
    return output[:, :num_tokens].view(num_tokens, -1)


def _count_splits(num_rows: int, num_outputs: int, num_inputs: int, *, num_experts: int) -> int:
    """Return the number of parts into which a product's inputs are split to fill the GPU."""
    rows = min(_round_up_to_power(max(1, num_rows // num_experts)), _MOST_ROWS)
    tile_rows = max(_FEWEST_ROWS, rows)
    tile_outputs = (
        _OUTPUTS_OF_TILE if num_outputs > 128 else max(16, _round_up_to_power(num_outputs))
    )
    num_tiles = -(-num_rows // tile_rows) * -(-num_outputs // tile_outputs)
    most = -(-num_inputs // _INPUTS_OF_TILE) // 4
    return max(1, min(_NUM_MULTIPROCESSORS // num_tiles, most))


def _round_up_to_power(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _name_function(name: str, function: Callable[..., object] | None, names: object) -> object:
    return (name, function, names)


MXFP4_KERNELS = SimpleNamespace(
    routing=SimpleNamespace(routing=_route),
    swiglu=SimpleNamespace(swiglu_fn=None),
    matmul_ogs=SimpleNamespace(
        FnSpecs=_name_function, FusedActivation=_Activation, matmul_ogs=_multiply_mxfp4
    ),
)
