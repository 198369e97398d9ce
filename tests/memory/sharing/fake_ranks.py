"""One of several processes that share a model, played in this one: nothing is sent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.distributed.expert_parallel import apply_expert_parallelism
from transformers.distributed.sharding_utils import DtensorShardOperation
from transformers.distributed.tensor_parallel import apply_tensor_parallelism


@contextmanager
def sharing(
    model: PreTrainedModel, *, rank: int, num_gpus: int, are_experts_whole: bool
) -> Iterator[None]:
    """Have transformers share a model as `from_pretrained` does, as one of its ranks sees it."""
    init_process_group("fake", store=FakeStore(), rank=rank, world_size=num_gpus)
    try:
        mesh = init_device_mesh("cpu", (num_gpus,))
        config = DistributedConfig(tp_size=num_gpus, ep_size=num_gpus if are_experts_whole else 1)
        tensor_plan, expert_plan, _ = model._resolve_parallel_plans(config)
        apply_tensor_parallelism(model, mesh, tensor_plan)
        if are_experts_whole:
            apply_expert_parallelism(model, mesh, mesh, expert_plan)
        yield
    finally:
        destroy_process_group()


def count_loaded_bytes(model: PreTrainedModel) -> int:
    """Return the bytes that transformers would load on this rank, by its own slicing."""
    tied = model.all_tied_weights_keys
    parameters = sum(
        _count_loaded(parameter)
        for path, parameter in model.named_parameters(remove_duplicate=False)
        if path not in tied
    )
    return parameters + sum(buffer.nbytes for buffer in model.buffers())


def _count_loaded(parameter: nn.Parameter) -> int:
    if not isinstance(parameter, DTensor):
        return parameter.nbytes
    whole = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
    shard = DtensorShardOperation(parameter).shard_tensor(whole)
    assert shard is not None
    return shard.nbytes
