"""The sizes of a model's weights, which a replay begins with."""

from __future__ import annotations

from torch import nn

from moetool.anatomy.routing.walk import walk_modules
from moetool.simulation.meta.dispatch import find_local


def list_weight_bytes(model: nn.Module) -> list[int]:
    """Return the size of each storage of parameters and buffers, in the order of the modules."""
    sizes: dict[int, int] = {}
    for _, module in walk_modules(model):
        for tensors in (module._parameters, module._buffers):
            for tensor in tensors.values():
                if tensor is not None:
                    storage = find_local(tensor).untyped_storage()
                    sizes.setdefault(storage._cdata, storage.nbytes())
    return list(sizes.values())
