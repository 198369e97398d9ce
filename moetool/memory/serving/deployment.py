"""The GPUs that an engine shares a model between, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from moetool.anatomy.config_fields import find_num_heads, read_count
from moetool.errors import UsageError
from moetool.memory.machine.gpu_group import GpuGroup, ParallelWay
from moetool.memory.serving.answer import Engine, ServingOptions

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_FP8_BLOCK = 128


@dataclass(frozen=True)
class Deployment:
    """GPUs that share a model.

    Attributes:
        num_gpus: All GPUs.
        num_nodes: Machines that they are in.
        tensor: GPUs that share each layer.
        replicas: Groups of such GPUs, each of which serves other sequences.
        expert_parts: Parts that experts are cut into by their width; 1 if they stay whole.
        expert_groups: GPUs between which whole experts are shared; 1 if they are cut.
        layer_parts: GPUs that each hold some of the layers, as llama.cpp shares them.
    """

    num_gpus: int = 1
    num_nodes: int = 1
    tensor: int = 1
    replicas: int = 1
    expert_parts: int = 1
    expert_groups: int = 1
    layer_parts: int = 1

    @property
    def shares_experts(self) -> bool:
        """Whether each GPU holds some of the experts."""
        return self.expert_groups > 1


def choose_default_way(options: ServingOptions | None) -> ParallelWay | None:
    """Return how an engine shares a model if nothing else is asked; None without an engine."""
    if options is None:
        return None
    is_llama = options.engine is Engine.LLAMA_CPP
    return ParallelWay.DEVICE_MAP if is_llama else ParallelWay.TENSOR


def plan_deployment(options: ServingOptions, group: GpuGroup | None) -> Deployment:
    """Return how an engine would share a model between GPUs.

    Several ways are combined: `data` and `expert` are replicas that share their experts.

    Args:
        options: The engine and its settings.
        group: The GPUs and the ways; None for the GPUs of one tensor-parallel group.

    Raises:
        UsageError: The engine has no such way, or the numbers of GPUs don't agree.
    """
    if group is None:
        tensor = options.tensor_parallel or 1
        return Deployment(num_gpus=tensor, tensor=tensor, expert_parts=tensor)
    if options.engine is Engine.LLAMA_CPP:
        return _plan_layers(group)
    if ParallelWay.DEVICE_MAP in group.ways:
        raise UsageError(
            f"{options.engine} has no device map: it shares a model by tensor, expert or data "
            "parallelism.",
            hint="Give --parallel tensor.",
        )
    tensor = _choose_tensor(options, group)
    replicas = group.num_gpus // tensor
    # vLLM shares experts between replicas too; SGLang's replicas are whole.
    num_sharing = group.num_gpus if options.engine is Engine.VLLM else tensor
    has_expert_way = ParallelWay.EXPERT in group.ways
    if has_expert_way and num_sharing == 1 and group.num_gpus > 1:
        raise UsageError(
            f"{options.engine} shares experts between the GPUs that share a layer, and each replica "
            "has one.",
            hint="Give --parallel tensor,expert.",
        )
    return Deployment(
        num_gpus=group.num_gpus,
        num_nodes=group.num_nodes,
        tensor=tensor,
        replicas=replicas,
        expert_parts=1 if has_expert_way else num_sharing,
        expert_groups=num_sharing if has_expert_way else 1,
    )


def _choose_tensor(options: ServingOptions, group: GpuGroup) -> int:
    """Return the GPUs that share each layer."""
    has_replicas = ParallelWay.DATA in group.ways
    asked = options.tensor_parallel
    if asked is None:
        return 1 if has_replicas and ParallelWay.TENSOR not in group.ways else group.num_gpus
    if group.num_gpus % asked or (asked < group.num_gpus and not has_replicas):
        hint = f"Give --tensor-parallel {group.num_gpus}, or leave it out."
        if group.num_gpus % asked == 0:
            hint = "Add data to --parallel, so that each group of GPUs is a replica."
        raise UsageError(
            f"{group.num_gpus} GPUs are not one group of {asked} that share each layer.", hint=hint
        )
    return asked


def _plan_layers(group: GpuGroup) -> Deployment:
    if group.ways != (ParallelWay.DEVICE_MAP,):
        raise UsageError(
            "llama.cpp places whole layers on each GPU, and its other ways are not computed here.",
            hint="Give --parallel device-map, or choose --engine vllm.",
        )
    if group.num_nodes > 1:
        raise UsageError(
            "llama.cpp shares a model between the GPUs of one machine here.",
            hint="Leave out --nodes.",
        )
    return Deployment(num_gpus=group.num_gpus, layer_parts=group.num_gpus)


def refuse_uneven(
    skeleton: PreTrainedModel,
    options: ServingOptions,
    group: GpuGroup | None,
    *,
    has_fp8_blocks: bool,
) -> None:
    """Raise if an engine can't share a model's sizes between GPUs.

    Args:
        skeleton: The model on the meta device.
        options: The engine and its settings.
        group: The GPUs and the ways; None for the GPUs of one tensor-parallel group.
        has_fp8_blocks: Whether weights are in fp8, whose blocks engines don't cut.

    Raises:
        UsageError: The number of GPUs does not divide heads, widths or experts, or cuts blocks.
    """
    config = skeleton.config.get_text_config()

    def find_uneven(options: ServingOptions, group: GpuGroup | None) -> tuple[str, int] | None:
        deployment = plan_deployment(options, group)
        sizes = _list_sizes(config, options, deployment, has_fp8_blocks=has_fp8_blocks)
        return next(((words, parts) for words, size, parts in sizes if size % parts), None)

    uneven = find_uneven(options, group)
    if uneven is None:
        return
    words, parts = uneven
    hint = _find_nearest(options, group, lambda *trial: find_uneven(*trial) is None)
    raise UsageError(f"{words} can't be shared evenly by {parts} GPUs.", hint=f"Give {hint}.")


def _find_nearest(
    options: ServingOptions,
    group: GpuGroup | None,
    is_even: Callable[[ServingOptions, GpuGroup | None], bool],
) -> str:
    """Return the options of the nearest setting that works: whole experts, or fewer GPUs."""
    if group is None:
        most = options.tensor_parallel or 1
        trials = (replace(options, tensor_parallel=number) for number in range(most, 0, -1))
        fewer = next(trial for trial in trials if is_even(trial, None))
        return f"--tensor-parallel {fewer.tensor_parallel}"
    whole = replace(group, ways=(*group.ways, ParallelWay.EXPERT))
    if ParallelWay.EXPERT not in group.ways and is_even(options, whole):
        return f"--parallel {','.join(whole.ways)}"
    options = replace(options, tensor_parallel=None)
    one_node = replace(group, num_nodes=1)
    groups = (replace(one_node, num_per_node=number) for number in range(group.num_gpus, 0, -1))
    nearest = next(trial for trial in groups if trial.num_gpus == 1 or is_even(options, trial))
    return f"--gpu {nearest.num_gpus}x{group.gpu.id}"


def _list_sizes(
    config: PretrainedConfig,
    options: ServingOptions,
    deployment: Deployment,
    *,
    has_fp8_blocks: bool,
) -> Iterator[tuple[str, int, int]]:
    """Yield each size that has to be divisible, in words and as a number, and its parts."""
    # Sizes that differ between layers are not read.
    if getattr(config, "is_heterogeneous", False):
        return
    tensor, num_heads = deployment.tensor, find_num_heads(config) or 1
    yield f"{num_heads} attention heads", num_heads, tensor
    num_kv_heads = read_count(config, "num_key_value_heads", "num_kv_heads") or num_heads
    is_copied = tensor % num_kv_heads == 0
    if not is_copied and not read_count(config, "kv_lora_rank"):
        yield f"{num_kv_heads} heads of keys and values", num_kv_heads, tensor
    width = read_count(config, "intermediate_size")
    expert_width = read_count(config, "moe_intermediate_size")
    if expert_width is not None and width is not None:
        yield f"The dense layers' width of {width}", width, tensor
    shared_width = read_count(config, "shared_expert_intermediate_size")
    if shared_width is not None:
        yield f"The shared experts' width of {shared_width}", shared_width, tensor
    expert_width, parts = expert_width or width, deployment.expert_parts
    if expert_width is not None:
        yield f"The experts' width of {expert_width}", expert_width, parts
    if expert_width is not None and has_fp8_blocks and parts > 1:
        # A width that is not a number of blocks can't be cut at all.
        num_blocks = expert_width // _FP8_BLOCK if expert_width % _FP8_BLOCK == 0 else 1
        yield f"The {num_blocks} fp8 blocks of the experts' width", num_blocks, parts
    num_experts = read_count(config, "num_experts", "num_local_experts", "n_routed_experts")
    # vLLM gives the first GPUs one expert more.
    if num_experts is not None and options.engine is Engine.SGLANG:
        yield f"{num_experts} experts", num_experts, deployment.expert_groups
