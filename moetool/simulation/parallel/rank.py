"""Run one rank of a shared model in a single process, with transformers' own sharding code.

torch's fake process group answers collectives at once and moves nothing. So transformers' plans cut
the parameters of a skeleton and replace its forwards as on a GPU, and every tensor that DTensor or a
collective allocates is seen.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn
from transformers import PreTrainedModel

from moetool.errors import InputError
from moetool.simulation.meta.replaced import replaced

_DENSE_AXES = ("pp", "dp_replicate", "fsdp", "tp")
_EXPERT_AXES = ("pp", "dp_replicate", "efsdp", "ep")


# Functions of torch that wait for the result of a collective, or leave that to its first use.
_WAITING = ("wait_tensor", "_maybe_wrap_tensor")


@contextmanager
def acting_as_rank(rank: int, *, num_ranks: int) -> Iterator[None]:
    """Let this process be one rank of several, none of which exist.

    Args:
        rank: The rank, from 0.
        num_ranks: The number of ranks.

    Raises:
        InputError: This process belongs to a group of processes, or its torch has none.
    """
    if not distributed.is_available() or distributed.is_initialized():
        raise InputError(
            "A rank can't be simulated in a process that belongs to a group of processes, or with a "
            "torch built without them.",
            hint="Estimate in a process started without torchrun.",
        )
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group(
        backend="fake", store=FakeStore(), rank=rank, world_size=num_ranks
    )
    try:
        with _allocating_as_on_gpus():
            yield
    finally:
        distributed.destroy_process_group()


def share_among_ranks(
    skeleton: PreTrainedModel, *, num_ranks: int, is_by_experts: bool
) -> PreTrainedModel:
    """Return a skeleton as the current rank holds and runs it.

    That is what `from_pretrained` makes of it with `DistributedConfig(tp_size=num_ranks,
    tp_plan="auto")`, or `DistributedConfig(tp_size=num_ranks, ep_size=num_ranks)`. The skeleton
    itself is changed.

    Args:
        skeleton: The whole model on the meta device.
        num_ranks: The number of ranks.
        is_by_experts: Whether experts stay whole, each on one rank.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from transformers.distributed.configuration_utils import DistributedConfig
    from transformers.distributed.utils import TransformersDeviceMesh

    sizes: dict[str, Any] = {"ep_size": num_ranks} if is_by_experts else {"tp_plan": "auto"}
    shape = (1, 1, 1, num_ranks)
    # A mesh has to be of a device that exists; shards of meta tensors stay on the meta device.
    dense = init_device_mesh("cpu", shape, mesh_dim_names=_DENSE_AXES)
    by_experts = init_device_mesh("cpu", shape, mesh_dim_names=_EXPERT_AXES)
    _untie(skeleton)
    share: Any = type(skeleton).maybe_distribute_model
    shared: PreTrainedModel = share(
        skeleton,
        DistributedConfig(tp_size=num_ranks, **sizes),
        TransformersDeviceMesh(dense, by_experts),
    )
    tie: Any = shared.tie_weights
    tie()
    return shared


def _untie(skeleton: PreTrainedModel) -> None:
    """Give each tied parameter a tensor, as before loading: plans are applied to each of them."""
    for path in getattr(skeleton, "all_tied_weights_keys", None) or {}:
        module_path, _, name = path.rpartition(".")
        module = skeleton.get_submodule(module_path)
        tied = module._parameters.get(name)
        if tied is not None:
            module._parameters[name] = nn.Parameter(torch.empty_like(tied), requires_grad=False)


@contextmanager
def _allocating_as_on_gpus() -> Iterator[None]:
    """Hide from dispatch modes what allocates memory on the meta device alone.

    DTensor finds the shapes of its results by fake tensors, transformers the strides of a whole tensor
    by one on the meta device, and to wait for the result of a collective copies a meta tensor.
    """
    from torch.distributed import _functional_collectives
    from torch.distributed.tensor._sharding_prop import ShardingPropagator
    from transformers.distributed.tensor_parallel import TensorParallelLayer

    propagator: Any = ShardingPropagator
    layer: Any = TensorParallelLayer
    propagation, sharding = "propagate_op_sharding_non_cached", "_from_local_last_dim_shard"
    with (
        replaced(propagator, {propagation: _hide(getattr(propagator, propagation))}),
        replaced(layer, {sharding: staticmethod(_hide(getattr(layer, sharding)))}),
        replaced(_functional_collectives, dict.fromkeys(_WAITING, _take_as_it_is)),
    ):
        yield


def _take_as_it_is(result: torch.Tensor) -> torch.Tensor:
    return result


def _hide(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs as another one does, outside dispatch modes."""
    from torch.utils._python_dispatch import _disable_current_modes

    @functools.wraps(function)
    def hidden(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return function(*args, **kwargs)

    return hidden
