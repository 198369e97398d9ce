"""The sizes of a model's weights, which a replay begins with."""

from __future__ import annotations

from torch import nn

from moetool.anatomy.structure.model_modules import ModelModules
from moetool.simulation.meta.dispatch import find_local


def list_weight_bytes(model: nn.Module | ModelModules) -> list[int]:
    """Return the size of each storage of parameters and buffers, in the order of the modules."""
    sizes: dict[int, int] = {}
    for tensor in ModelModules.of(model).list_tensors():
        storage = find_local(tensor).untyped_storage()
        sizes.setdefault(storage._cdata, storage.nbytes())
    return list(sizes.values())
