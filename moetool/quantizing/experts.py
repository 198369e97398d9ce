"""Experts modules whose matrices are packed, and dequantized for the experts that are hit."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from moetool.quantizing.packing import ExpertMatrix, Packing
from moetool.quantizing.unpacking import unpack

# Dequantized matrices that exist at the same time, unless a single one takes more.
CHUNK_BYTES = 256 * 2**20
# Fewer experts than this are multiplied one after the other.
_FEWEST_GROUPED = 3


def pack_module(
    module: nn.Module,
    matrices: Sequence[ExpertMatrix],
    packing: Packing,
    *,
    keeps_plain: bool = False,
) -> None:
    """Replace the matrices of an experts module on the meta device by packed ones, in place.

    The codes take the plain parameter's name and keep three dimensions, so that the structure can
    be read from them. The names of scales begin with it. All are parameters, because transformers
    ties nothing else, and empty.

    Args:
        module: The experts module.
        matrices: Those that `find_matrices` finds in it.
        packing: Their format.
        keeps_plain: Leave the plain parameters until codes are set in their place: transformers'
            conversions look at the shapes and dtypes that plain weights shall have.
    """
    for matrix in matrices:
        for name, (shape, dtype) in packing.list_tensors(matrix).items():
            if keeps_plain and name == matrix.name:
                continue
            tensor = torch.empty(shape, dtype=dtype, device="meta")
            module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
    module.__dict__.update(packed_matrices=tuple(matrices), packing=packing)
    module_class: Any = type(module)
    module.__class__ = _packed_class(module_class)


def is_packed(module: nn.Module) -> bool:
    """Return whether a module's experts are packed."""
    return "packed_matrices" in module.__dict__


def packed_tensors(module: nn.Module, matrix: ExpertMatrix) -> dict[str, torch.Tensor]:
    """Return the tensors of one of a packed module's stacks by name."""
    held: Any = module
    return {name: getattr(held, name) for name in held.packing.list_tensors(matrix)}


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


@functools.cache
def _packed_class(module_class: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass that runs packed experts, under the same name."""

    class PackedExperts(module_class):  # type: ignore[misc, valid-type]
        def forward(
            self,
            hidden_states: torch.Tensor,
            top_k_index: torch.Tensor,
            top_k_weights: torch.Tensor,
        ) -> torch.Tensor:
            return run_experts(self, hidden_states, top_k_index, top_k_weights)

        def _apply(self, fn: Any, recurse: bool = True) -> Any:
            # Scales stay in float32 when the model is converted to another dtype.
            before = {
                name: self._parameters[name].detach()
                for matrix in self.packed_matrices
                for name in self.packing.list_tensors(matrix)
            }
            super()._apply(fn, recurse)
            for name, tensor in before.items():
                after = self._parameters[name]
                if after.dtype is not tensor.dtype:
                    kept = tensor.to(after.device)
                    self._parameters[name] = nn.Parameter(kept, requires_grad=False)
            return self

    PackedExperts.__name__ = module_class.__name__
    PackedExperts.__qualname__ = module_class.__qualname__
    PackedExperts.__module__ = module_class.__module__
    return PackedExperts


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
    num_tokens, top_k = ids.shape
    fused = _run_few(module, hidden_states, ids)
    outputs = _run_grouped(module, hidden_states, ids) if fused is None else fused
    weighted = outputs * weights.reshape(-1, 1)
    total = weighted.view(num_tokens, top_k, -1).sum(dim=1)
    return total.to(hidden_states.dtype)


def _run_few(
    module: nn.Module, hidden_states: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor | None:
    """Return each assignment's output without dequantized matrices; None if no kernel fits.

    Returns:
        # (num_tokens * top_k, hidden_size)
    """
    held: Any = module
    up, down = held.packed_matrices
    if not hidden_states.is_cuda or hasattr(module, "identity_expert"):
        return None
    from moetool.quantizing.kernels.launch import fits_kernel, multiply_each

    if not all(fits_kernel(hidden_states, ids, matrix, held.packing) for matrix in (up, down)):
        return None
    chosen = ids.reshape(-1)
    middle = multiply_each(
        hidden_states,
        chosen,
        packed_tensors(module, up),
        up,
        held.packing,
        bias=_find_bias(module, up),
    )
    return _finish(
        module,
        multiply_each(
            _activate(module, middle),
            chosen,
            packed_tensors(module, down),
            down,
            held.packing,
            bias=_find_bias(module, down),
        ),
    )


def _run_grouped(module: nn.Module, hidden_states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return each assignment's output, with rows sorted by expert.

    Returns:
        # (num_tokens * top_k, hidden_size)
    """
    held: Any = module
    up, down = held.packed_matrices
    num_experts = down.num_experts
    chosen = ids.reshape(-1)
    ordered, order = torch.sort(chosen, stable=True)
    counts = _count(ordered, num_experts)
    tokens = order // ids.shape[1]
    outputs = hidden_states.new_empty(len(order), hidden_states.shape[-1])
    dtype = hidden_states.dtype
    start = 0
    for experts in _iter_chunks(counts, (up, down), dtype):
        sizes = [counts[expert] for expert in experts]
        end = start + sum(sizes)
        rows = hidden_states[tokens[start:end]]
        for matrix in (up, down):
            matrices = unpack_matrix(module, matrix, experts, dtype=dtype)
            rows = _multiply_groups(rows, matrices, sizes)
            del matrices
            bias = _find_bias(module, matrix)
            if bias is not None:
                rows = rows + bias[ordered[start:end]]
            if matrix is up:
                rows = _activate(module, rows)
        outputs[order[start:end]] = _finish(module, rows)
        start = end
    if start < len(order):
        rest = order[start:]
        has_identity = hasattr(module, "identity_expert")
        outputs[rest] = hidden_states[tokens[start:]] if has_identity else 0.0
    return outputs


def _count(ordered: torch.Tensor, num_experts: int) -> list[int]:
    """Return the number of rows of each expert with matrices."""
    edges = torch.arange(num_experts + 1, device=ordered.device, dtype=ordered.dtype)
    bounds: list[int] = torch.searchsorted(ordered, edges).tolist()
    return [end - start for start, end in itertools.pairwise(bounds)]


def _iter_chunks(
    counts: Sequence[int], matrices: Sequence[ExpertMatrix], dtype: torch.dtype
) -> Iterator[list[int]]:
    """Yield the experts that are hit, in groups whose dequantized matrices are of bounded size."""
    largest = max(matrix.num_weights for matrix in matrices) * dtype.itemsize
    most = max(1, CHUNK_BYTES // largest)
    hit = [expert for expert, count in enumerate(counts) if count]
    for first in range(0, len(hit), most):
        yield hit[first : first + most]


def _multiply_groups(
    rows: torch.Tensor, matrices: torch.Tensor, sizes: Sequence[int]
) -> torch.Tensor:
    """Return the product of each expert's rows, which follow each other, with its matrix."""
    is_grouped = (
        rows.is_cuda
        and rows.dtype is torch.bfloat16
        and len(sizes) >= _FEWEST_GROUPED
        and matrices.shape[1] % 8 == 0
        and matrices.shape[2] % 8 == 0
        and hasattr(F, "grouped_mm")
    )
    if is_grouped:
        ends = torch.tensor(sizes, dtype=torch.int32, device=rows.device).cumsum(
            0, dtype=torch.int32
        )
        functions: Any = F
        product: torch.Tensor = functions.grouped_mm(rows, matrices.transpose(1, 2), offs=ends)
        return product
    parts = rows.split(list(sizes))
    products = [F.linear(part, matrix) for part, matrix in zip(parts, matrices, strict=True)]
    return products[0] if len(products) == 1 else torch.cat(products)


def _find_bias(module: nn.Module, matrix: ExpertMatrix) -> torch.Tensor | None:
    bias: torch.Tensor | None = getattr(module, f"{matrix.name}_bias", None)
    return bias


def _activate(module: Any, rows: torch.Tensor) -> torch.Tensor:
    if "gate_up_proj" not in module._parameters:
        activated: torch.Tensor = module.act_fn(rows)
    elif hasattr(module, "_apply_gate"):
        activated = module._apply_gate(rows)
    else:
        gate, up = rows.chunk(2, dim=-1)
        activated = module.act_fn(gate) * up
    return activated


def _finish(module: Any, rows: torch.Tensor) -> torch.Tensor:
    """Apply the norm that some families put behind each expert."""
    finished: torch.Tensor = (
        module.post_expert_norm(rows) if getattr(module, "has_post_expert_norm", False) else rows
    )
    return finished
