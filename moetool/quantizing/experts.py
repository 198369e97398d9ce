"""Experts modules whose matrices are packed, and dequantized for the experts that are hit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from moetool.quantizing.kernels import launch
from moetool.quantizing.packing import ExpertMatrix
from moetool.quantizing.unpacking import is_on_gpu, unpack

# Dequantized matrices that exist at the same time, unless a single one takes more: as many bytes as
# the rows take that are multiplied with them, within these bounds.
CHUNK_BYTES = (256 * 2**20, 2**30)
# Fewer experts than this are multiplied one after the other.
_FEWEST_GROUPED = 3


def packed_tensors(module: nn.Module, matrix: ExpertMatrix) -> dict[str, torch.Tensor]:
    """Return the tensors of one of a packed module's stacks by name."""
    held: Any = module
    # Not by attributes: in decode this is called for each layer of each token.
    child, names = held.packed_places[matrix.name]
    owner = held._modules[child] if child else held
    return {name: owner._parameters[own_name] for name, own_name in names}


def unpack_matrix(
    module: nn.Module, matrix: ExpertMatrix, experts: Sequence[int], *, dtype: torch.dtype
) -> torch.Tensor:
    """Return the matrices of some experts of a packed module.

    Returns:
        # (len(experts), out_features, in_features)
    """
    held: Any = module
    tensors = packed_tensors(module, matrix)
    return unpack(tensors, experts, matrix, held.packing, dtype=dtype)


def run_scaled_rows(module: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    """Return the output of each expert for rows that were scaled by its weights (Llama 4).

    Rows of zeros are not computed: an expert without biases leaves them as they are.

    Args:
        module: A packed experts module.
        hidden_states: The rows of each expert, one expert after the other.
            # (num_experts * num_tokens, hidden_size)
    """
    held: Any = module
    num_experts = held.packed_matrices[-1].num_experts
    hit = find_hit_rows(module, hidden_states)
    ids = hit // (len(hidden_states) // num_experts)
    rows = hidden_states[hit]
    outputs = torch.zeros_like(hidden_states)
    outputs[hit] = run_experts(module, rows, ids.unsqueeze(1), rows.new_ones(len(rows), 1))
    return outputs


def find_hit_rows(module: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
    """Return the numbers of rows that aren't zero."""
    del module
    return hidden_states.any(dim=1).nonzero().squeeze(1)


def run_experts(
    module: nn.Module, hidden_states: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return the weighted sum of each token's experts, as transformers' `grouped_mm` computes it.

    Ids beyond the experts with matrices are those of identity experts, where the module has such,
    and else contribute nothing.

    Args:
        module: A packed experts module.
        hidden_states: # (num_tokens, hidden_size)
        ids: Expert ids. # (num_tokens, top_k)
        weights: # (num_tokens, top_k)
    """
    if not ids.numel():
        return torch.zeros_like(hidden_states)
    held: Any = module
    if not _are_few(module, hidden_states, ids):
        return _run_grouped(module, hidden_states, ids, weights)
    if held.gating is None or held.has_own_norm or _is_watched(module):
        return _add_up(_run_few(module, hidden_states, ids), weights).to(hidden_states.dtype)
    return _run_few_gated(module, hidden_states, ids, weights)


def _are_few(module: nn.Module, hidden_states: torch.Tensor, ids: torch.Tensor) -> bool:
    """Return whether kernels multiply each assignment without dequantized matrices."""
    held: Any = module
    if not is_on_gpu(hidden_states) or held.has_identity:
        return False
    if hidden_states.requires_grad and torch.is_grad_enabled():
        # The kernels pass no gradients on.
        return False
    return all(
        launch.fits_kernel(hidden_states, ids, matrix, held.packing)
        for matrix in held.packed_matrices
    )


def _is_watched(module: nn.Module) -> bool:
    """Return whether hooks wait for an activation's outputs, so that it has to run by itself."""
    return any(
        child is not None and (child._forward_hooks or child._forward_pre_hooks)
        for child in module._modules.values()
    )


def _add_up(outputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the weighted sum of each token's outputs, which follow each other."""
    if is_on_gpu(outputs) and outputs.dtype is weights.dtype:
        # One kernel, which adds up in float32 without rounding products first.
        return torch.bmm(weights.unsqueeze(1), outputs.view(*weights.shape, -1)).squeeze(1)
    weighted = outputs * weights.reshape(-1, 1)
    return weighted.view(*weights.shape, -1).sum(dim=1)


def _run_few_gated(
    module: nn.Module, hidden_states: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return the weighted sum of each token's experts, by one kernel for each of their matrices."""
    held: Any = module
    up, down = held.packed_matrices
    middle = launch.multiply_gated(
        hidden_states,
        ids,
        packed_tensors(module, up),
        up,
        held.packing,
        held.gating,
        bias=_find_bias(module, up),
    )
    return launch.multiply_and_add_up(
        middle,
        ids,
        weights,
        packed_tensors(module, down),
        down,
        held.packing,
        bias=_find_bias(module, down),
    )


def _run_few(module: nn.Module, hidden_states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return each assignment's output, with whatever activation and norm the module has.

    Returns:
        # (num_tokens * top_k, hidden_size)
    """
    held: Any = module
    *into, down = held.packed_matrices
    chosen = ids.reshape(-1)

    def multiply(rows: torch.Tensor, matrix: ExpertMatrix) -> torch.Tensor:
        tensors, bias = packed_tensors(module, matrix), _find_bias(module, matrix)
        return launch.multiply_each(rows, chosen, tensors, matrix, held.packing, bias=bias)

    products = [multiply(hidden_states, matrix) for matrix in into]
    rows = products[0] if len(products) == 1 else torch.cat(products, dim=-1)
    del products
    return _finish(module, multiply(_activate(module, rows), down))


def _run_grouped(
    module: nn.Module, hidden_states: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return the weighted sum of each token's experts, computed with rows sorted by expert."""
    held: Any = module
    *_, last_into, down = held.packed_matrices
    ordered, order = torch.sort(ids.reshape(-1), stable=True)
    edges = torch.arange(down.num_experts + 1, device=ids.device, dtype=ids.dtype)
    bounds = torch.searchsorted(ordered, edges, out_int32=True)
    starts: list[int] = bounds.tolist()
    counts = [end - start for start, end in itertools.pairwise(starts)]
    tokens = order // ids.shape[1]
    dtype = hidden_states.dtype
    shape = (len(order), hidden_states.shape[-1])
    outputs: torch.Tensor | None = None
    for experts in _iter_chunks(counts, held.packed_matrices, dtype):
        first, last = experts[0], experts[-1]
        start, end = starts[first], starts[last + 1]
        rows = hidden_states[tokens[start:end]]
        ends = bounds[first + 1 : last + 2] - start
        if len(ends) > len(experts):
            hit = torch.tensor([expert - first for expert in experts], device=ends.device)
            ends = ends[hit]
        gates: torch.Tensor | None = None
        for matrix in held.packed_matrices:
            matrices = unpack_matrix(module, matrix, experts, dtype=dtype)
            product = _multiply_groups(rows, matrices, [counts[expert] for expert in experts], ends)
            del matrices
            if matrix is not down and matrix is not last_into:
                gates = product
                continue
            rows = product
            del product
            bias = _find_bias(module, matrix)
            if bias is not None:
                rows = rows + bias[ordered[start:end]]
            if matrix is last_into:
                rows = _activate(
                    module, rows if gates is None else torch.cat([gates, rows], dim=-1)
                )
                gates = None
        rows = _finish(module, rows)
        if len(rows) == len(order):
            outputs = rows
            break
        outputs = hidden_states.new_empty(shape) if outputs is None else outputs
        outputs[start:end] = rows
        del rows
    outputs = hidden_states.new_empty(shape) if outputs is None else outputs
    rest = starts[-1]
    if rest < len(order):
        outputs[rest:] = hidden_states[tokens[rest:]] if held.has_identity else 0.0
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    if is_on_gpu(outputs) and not outputs.requires_grad and launch.has_kernels():
        return launch.add_up_sorted(outputs, places, weights)
    return _add_up(outputs[places], weights).to(dtype)


def _iter_chunks(
    counts: Sequence[int], matrices: Sequence[ExpertMatrix], dtype: torch.dtype
) -> Iterator[list[int]]:
    """Yield the experts that are hit, in groups whose dequantized matrices are of bounded size."""
    least, most_bytes = CHUNK_BYTES
    wide = max(matrix.in_features + matrix.out_features for matrix in matrices)
    budget = min(max(sum(counts) * wide * dtype.itemsize, least), most_bytes)
    largest = max(matrix.num_weights for matrix in matrices) * dtype.itemsize
    most = max(1, budget // largest)
    hit = [expert for expert, count in enumerate(counts) if count]
    for first in range(0, len(hit), most):
        yield hit[first : first + most]


def _multiply_groups(
    rows: torch.Tensor, matrices: torch.Tensor, sizes: Sequence[int], ends: torch.Tensor
) -> torch.Tensor:
    """Return the product of each expert's rows, which follow each other, with its matrix.

    Args:
        rows: # (sum(sizes), in_features)
        matrices: # (len(sizes), out_features, in_features)
        sizes: Rows of each expert.
        ends: Where they end, on the device.
    """
    is_grouped = (
        is_on_gpu(rows)
        and rows.dtype is torch.bfloat16
        and len(sizes) >= _FEWEST_GROUPED
        and matrices.shape[1] % 8 == 0
        and matrices.shape[2] % 8 == 0
        and hasattr(F, "grouped_mm")
    )
    if is_grouped:
        functions: Any = F
        product: torch.Tensor = functions.grouped_mm(rows, matrices.transpose(1, 2), offs=ends)
        return product
    parts = torch.split(rows, list(sizes))
    products = [F.linear(part, matrix) for part, matrix in zip(parts, matrices, strict=True)]
    return products[0] if len(products) == 1 else torch.cat(products)


def _find_bias(module: nn.Module, matrix: ExpertMatrix) -> torch.Tensor | None:
    return module._parameters.get(f"{matrix.name}_bias")


def _activate(module: Any, rows: torch.Tensor) -> torch.Tensor:
    first = module.packed_matrices[0].name
    if first == "up_proj":
        activated: torch.Tensor = module.act_fn(rows)
    elif first == "gate_up_proj" and hasattr(module, "_apply_gate"):
        activated = module._apply_gate(rows)
    else:
        gate, up = rows.chunk(2, dim=-1)
        owner = module.get_submodule(first.rpartition(".")[0])
        activation = owner.activation_fn if owner is not module else module.act_fn
        activated = activation(gate) * up
    return activated


def _finish(module: Any, rows: torch.Tensor) -> torch.Tensor:
    """Apply the norm that some families put behind each expert."""
    finished: torch.Tensor = module.post_expert_norm(rows) if module.has_own_norm else rows
    return finished
