"""The sizes of a model's weights, which a replay begins with."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from moetool.anatomy.structure.model_modules import ModelModules
from moetool.simulation.memory.allocator.weights import ReservedAtOnce
from moetool.simulation.meta.dispatch import find_local


def list_weight_bytes(model: nn.Module | ModelModules) -> Sequence[int]:
    """Return the size of each storage of parameters and buffers, in the order of the modules.

    A rank's shards are `ReservedAtOnce`: only `from_pretrained` makes them.
    """
    sizes: dict[int, int] = {}
    is_rank = False
    for tensor in ModelModules.of(model).list_tensors():
        local = find_local(tensor)
        is_rank |= local is not tensor
        storage = local.untyped_storage()
        sizes.setdefault(storage._cdata, storage.nbytes())
    return ReservedAtOnce(sizes.values()) if is_rank else list(sizes.values())
