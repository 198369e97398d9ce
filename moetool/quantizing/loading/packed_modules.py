"""Modules that hold packed experts, and run them instead of plain ones."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from moetool.anatomy.routing.rules import num_inputs
from moetool.quantizing.experts import run_experts, run_scaled_rows
from moetool.quantizing.gating import find_gating
from moetool.quantizing.packing import ExpertMatrix, Packing


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
    gating = find_gating(module)
    places: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {}
    for matrix in matrices:
        child, _, own_name = matrix.name.rpartition(".")
        owner: Any = module.get_submodule(child)
        own = _rename(matrix, own_name)
        tensors = packing.list_tensors(own)
        for name, (shape, dtype) in tensors.items():
            if keeps_plain and name == own_name:
                continue
            tensor = torch.empty(shape, dtype=dtype, device="meta")
            owner._parameters[name] = nn.Parameter(tensor, requires_grad=False)
        if "packed_stacks" not in owner.__dict__:
            owner.__dict__["packed_stacks"] = {}
            owner_class: Any = type(owner)
            owner.__class__ = _holding_class(owner_class)
        owner.packed_stacks[own_name] = (own, packing)
        names = packing.list_tensors(matrix)
        places[matrix.name] = (child, tuple(zip(names, tensors, strict=True)))
    module.__dict__.update(
        packed_matrices=tuple(matrices),
        packing=packing,
        packed_places=places,
        gating=gating,
        has_identity=hasattr(module, "identity_expert"),
        has_own_norm=bool(getattr(module, "has_post_expert_norm", False)),
    )
    module_class: Any = type(module)
    takes_scaled_rows = num_inputs(module) == 1
    module.__class__ = _running_class(module_class, takes_scaled_rows=takes_scaled_rows)


@functools.cache
def _rename(matrix: ExpertMatrix, name: str) -> ExpertMatrix:
    """Return a matrix under another name; the same object for equal ones."""
    return replace(matrix, name=name)


def is_packed(module: nn.Module) -> bool:
    """Return whether a module's experts are packed."""
    return "packed_matrices" in module.__dict__


def find_stack(module: nn.Module, name: str) -> tuple[ExpertMatrix, Packing] | None:
    """Return what a module's own parameter stacks, and its format; None unless it is packed."""
    found: tuple[ExpertMatrix, Packing] | None = module.__dict__.get("packed_stacks", {}).get(name)
    return found


def replace_tensors(
    module: nn.Module, matrix: ExpertMatrix, tensors: Mapping[str, nn.Parameter]
) -> None:
    """Have a packed module hold other tensors of a stack, by the names that it has for them."""
    held: Any = module
    child, names = held.packed_places[matrix.name]
    owner = held._modules[child] if child else held
    owner._parameters.update({own_name: tensors[name] for name, own_name in names})


def list_packed_names(module: nn.Module) -> set[str]:
    """Return the names of a module's own parameters that are codes or scales of experts."""
    stacks = module.__dict__.get("packed_stacks", {}).values()
    return {name for matrix, packing in stacks for name in packing.list_tensors(matrix)}


@functools.cache
def _running_class(module_class: type[nn.Module], *, takes_scaled_rows: bool) -> type[nn.Module]:
    """Return a subclass that runs packed experts, with the arguments of the class."""
    if takes_scaled_rows:

        class PackedOnScaledRows(module_class):  # type: ignore[misc, valid-type]
            def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
                return run_scaled_rows(self, hidden_states)

        return under_the_same_name(PackedOnScaledRows, module_class)

    class PackedExperts(module_class):  # type: ignore[misc, valid-type]
        def forward(
            self,
            hidden_states: torch.Tensor,
            top_k_index: torch.Tensor,
            top_k_weights: torch.Tensor,
        ) -> torch.Tensor:
            rows = hidden_states.reshape(-1, hidden_states.shape[-1])
            return run_experts(self, rows, top_k_index, top_k_weights).view(hidden_states.shape)

    return under_the_same_name(PackedExperts, module_class)


@functools.cache
def _holding_class(module_class: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass that holds packed experts."""

    class HoldsPacked(module_class):  # type: ignore[misc, valid-type]
        def _apply(self, fn: Any, recurse: bool = True) -> Any:
            # Scales stay in float32 when the model is converted to another dtype.
            before = {name: self._parameters[name].detach() for name in list_packed_names(self)}
            super()._apply(fn, recurse)
            for name, tensor in before.items():
                after = self._parameters[name]
                if after.dtype is not tensor.dtype:
                    kept = tensor.to(after.device)
                    self._parameters[name] = nn.Parameter(kept, requires_grad=False)
            return self

    return under_the_same_name(HoldsPacked, module_class)


def under_the_same_name(made: type[nn.Module], module_class: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass with the name of its base class, by which other code knows modules."""
    made.__name__ = module_class.__name__
    made.__qualname__ = module_class.__qualname__
    made.__module__ = module_class.__module__
    return made
