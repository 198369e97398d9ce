"""The weights that each of several GPUs would hold, under each sharing strategy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetool.memory.answers.on_gpus import RankBytes
from moetool.memory.sharing.device_maps import share_by_device_map
from moetool.memory.sharing.parallel import EXPERT_PARALLEL, TENSOR_PARALLEL, ParallelShares
from moetool.quantizing.kinds import Quantization

if TYPE_CHECKING:
    from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton

_NUMS_RANKS = (2, 4, 8)


def list_ranks(
    held: RoutedSkeleton,
    *,
    gpu_memory_bytes: int,
    num_gpus: int | None,
    reserve_bytes: int,
    quantization: Quantization,
) -> tuple[RankBytes, ...]:
    """Return a row for each sharing strategy and number of GPUs.

    Args:
        held: The model with every parameter as a GPU holds it, on the meta device.
        gpu_memory_bytes: The memory of each GPU.
        num_gpus: The number of GPUs needed with a device map; None if no number is enough: then one
            GPU shows how much is left to the host.
        reserve_bytes: Memory on each GPU that weights may not use.
        quantization: The storage of the weights.
    """
    by_map = share_by_device_map(
        held,
        gpu_memory_bytes=gpu_memory_bytes,
        num_gpus=num_gpus or 1,
        reserve_bytes=reserve_bytes,
        quantization=quantization,
    )
    shares = ParallelShares(held.model)
    shared = (
        shares.share(way, num_gpus=number)
        for way in (TENSOR_PARALLEL, EXPERT_PARALLEL)
        for number in _NUMS_RANKS
    )
    return (by_map, *shared)
