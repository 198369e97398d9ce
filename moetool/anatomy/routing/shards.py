"""Experts that transformers' parallel plans share among processes.

A plan replaces a module's parameters by distributed tensors, whose shape is that of all processes
together, and wraps its forward. The wrapper takes what the module is called with and hands this
process's part on to the module's own forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any, TypeGuard

import torch
from torch import nn

# The package whose functions wrap the forward of modules that a plan names.
_PLANS = "transformers.distributed."


def is_wrapped(module: nn.Module) -> bool:
    """Return whether a parallel plan wraps the module's forward."""
    return is_of_plans(vars(module).get("forward"))


def is_of_plans(value: object) -> bool:
    """Return whether a function, or a class of an object, is transformers' code for plans."""
    sources = (value, *type(value).__mro__)
    return any(str(getattr(source, "__module__", None)).startswith(_PLANS) for source in sources)


def find_own_forward(module: nn.Module) -> Callable[..., Any]:
    """Return a module's forward: its class's own, if a parallel plan wraps it."""
    own: Callable[..., Any] = module.forward
    return MethodType(type(module).forward, module) if is_wrapped(module) else own


def count_shards(parameters: Iterable[torch.Tensor]) -> int:
    """Return among how many groups of processes the first dimension of parameters is divided.

    It is 1 if each process holds some of every expert, or all of it.
    """
    return max((math.prod(_list_sizes(parameter)) for parameter in parameters), default=1)


def find_held(parameter: torch.Tensor) -> range:
    """Return the indices of a parameter's first dimension that this process holds."""
    if not is_distributed(parameter) or not _list_sizes(parameter):
        return range(parameter.shape[0])
    held = parameter.to_local().shape[0]
    coordinates = parameter.device_mesh.get_coordinate() or ()
    place = 0
    for coordinate, size, placement in zip(
        coordinates, parameter.device_mesh.shape, parameter.placements, strict=True
    ):
        if placement.is_shard(0):
            place = place * size + coordinate
    return range(place * held, (place + 1) * held)


def _list_sizes(parameter: torch.Tensor) -> list[int]:
    """Return the sizes of the meshes that divide the first dimension of a parameter."""
    if not is_distributed(parameter):
        return []
    return [
        size
        for size, placement in zip(parameter.device_mesh.shape, parameter.placements, strict=True)
        if placement.is_shard(0)
    ]


def is_distributed(parameter: Any) -> TypeGuard[Any]:
    """Return whether a parameter is a distributed tensor."""
    # torch.distributed.tensor takes a while to import, and few models need it.
    return hasattr(parameter, "device_mesh") and hasattr(parameter, "placements")
