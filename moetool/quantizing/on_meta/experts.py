"""Packed experts on the meta device: the loader's own code, with kernels that compute nothing."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from moetool.anatomy.routing.rules import num_inputs
from moetool.quantizing import experts, kernels, unpacking
from moetool.quantizing.kernels import launch
from moetool.quantizing.kinds import Quantization
from moetool.quantizing.loading.packed_modules import pack_module, under_the_same_name
from moetool.quantizing.on_meta.operations import dequantize_4bit
from moetool.quantizing.packing import ExpertMatrix, Packing
from moetool.simulation.meta.replaced import replaced


def pack_on_meta(
    module: nn.Module,
    matrices: Sequence[ExpertMatrix],
    packing: Packing,
    *,
    top_k: int | None = None,
) -> None:
    """Pack the experts of a module on the meta device, which runs there afterwards.

    Its code is that of packed experts on a GPU: every tensor is made that is made there, in the same
    order. Tables of 16 and 256 values, which all layers share on a GPU, live as long as they are
    used. To know how many rows an expert gets, the code needs known routing.

    Args:
        module: The experts module.
        matrices: Those that `find_matrices` finds in it.
        packing: Their format.
        top_k: Experts that run on each token, if the module receives no ids; None for all.
    """
    module.__dict__["top_k_on_meta"] = top_k
    # Layers whose modules hold the same objects are seen to be alike.
    pack_module(module, [_share(matrix) for matrix in matrices], packing)
    packed_class: Any = type(module)
    takes_scaled_rows = num_inputs(module) == 1
    module.__class__ = _class_on_meta(packed_class, takes_scaled_rows=takes_scaled_rows)


@contextmanager
def standing_in_for_kernels() -> Iterator[None]:
    """Regard tensors on the meta device as on a GPU, and have kernels leave results unset.

    Triton need not be installed, and bitsandbytes isn't imported.
    """
    is_on_gpu = {"is_on_gpu": lambda tensor: tensor.is_meta}
    code_table = {"code_table": lambda *_: torch.empty(16, device="meta")}
    nested_table = {"nested_table": lambda *_: torch.empty(256, device="meta")}
    pair_table = {"_pair_table": lambda *_: torch.empty(256, 2, device="meta")}
    changes: tuple[tuple[Any, dict[str, Any]], ...] = (
        (experts, is_on_gpu | {"find_hit_rows": _take_turns}),
        (unpacking, is_on_gpu | nested_table | pair_table | {"_dequantize_4bit": _dequantize}),
        (launch, {"has_kernels": lambda: True} | code_table | nested_table),
        # These write to tensors that `launch` makes.
        (kernels, {"programs": _PROGRAMS}),
    )
    with ExitStack() as held:
        for module, values in changes:
            held.enter_context(replaced(module, values))
        yield


@functools.cache
def _share(matrix: ExpertMatrix) -> ExpertMatrix:
    """Return the same object for equal ones."""
    return matrix


@functools.cache
def _class_on_meta(packed_class: type[nn.Module], *, takes_scaled_rows: bool) -> type[nn.Module]:
    """Return a subclass that runs on the meta device, under the same name."""
    if takes_scaled_rows:

        class ScaledRowsOnMeta(packed_class):  # type: ignore[misc, valid-type]
            def forward(self, hidden_states: torch.Tensor) -> Any:
                with standing_in_for_kernels():
                    return super().forward(hidden_states)

        return under_the_same_name(ScaledRowsOnMeta, packed_class)

    class PackedOnMeta(packed_class):  # type: ignore[misc, valid-type]
        # Experts are recognized by their arguments.
        def forward(
            self,
            hidden_states: torch.Tensor,
            top_k_index: torch.Tensor,
            top_k_weights: torch.Tensor,
        ) -> Any:
            with standing_in_for_kernels():
                return super().forward(hidden_states, top_k_index, top_k_weights)

    return under_the_same_name(PackedOnMeta, packed_class)


def _take_turns(module: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """Return the numbers of rows of each expert if all get the same number of tokens."""
    num_experts = module.packed_matrices[-1].num_experts
    num_tokens = len(hidden_states) // num_experts
    top_k = module.top_k_on_meta or num_experts
    hit = sorted(
        assignment % num_experts * num_tokens + assignment // top_k
        for assignment in range(num_tokens * top_k)
    )
    return torch.tensor(hit, device=hidden_states.device)


def _dequantize(
    codes: torch.Tensor,
    absmax: torch.Tensor,
    quantization: Quantization,
    *,
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> torch.Tensor:
    del absmax, quantization
    return dequantize_4bit(codes, shape=shape, dtype=dtype)


class _Program:
    """A program that does nothing, whatever its grid."""

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *_, **__: None


_PROGRAMS = SimpleNamespace(
    multiply_each=_Program(),
    multiply_gated=_Program(),
    multiply_and_add_up=_Program(),
    dequantize_int8=_Program(),
    add_up=_Program(),
)
