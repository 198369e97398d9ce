"""The weights on each of several GPUs, under transformers' own sharing plans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from transformers import PreTrainedModel

from moetool.anatomy.config_fields import find_num_heads, read_count
from moetool.checkpoint.stated.quantization import find_stated
from moetool.memory.answers.on_gpus import RankBytes
from moetool.memory.sharing.shards import UnknownStyle, find_shard, split_evenly
from moetool.memory.sharing.sharing_plans import read_expert_plan, read_tensor_plan

TENSOR_PARALLEL = "tensor_parallel"
EXPERT_PARALLEL = "expert_parallel"

# Modules whose rows are heads: those of queries, and those that latent attention expands.
_OF_QUERY_HEADS = ("q_proj", "q_b_proj", "kv_b_proj")
_OF_KEY_HEADS = ("k_proj",)
# torch's grouped product refuses experts whose rows aren't a multiple of this long.
_ROW_BYTES = 16
# Experts, rows and columns.
_STACK_DIMS = 3


class _CantShare(Exception):  # noqa: N818 - control flow, not an error
    """A model can't be shared under a strategy, for the reason in the message."""


def share_by_tensor_parallel(skeleton: PreTrainedModel, *, num_gpus: int) -> RankBytes:
    """Return the weights on each GPU with transformers' tensor parallelism.

    That is `from_pretrained(…, distributed_config=DistributedConfig(tp_size=num_gpus))`. Each
    parameter that the model's plan names is cut along one dimension, into pieces of equal size, the
    last of which may be shorter; the others, and all buffers, are on every GPU in full.

    Where attention heads would be cut, transformers loads the weights but its forward fails: then
    the strategy can't be used. Other reasons for the forward to fail are not checked.

    Args:
        skeleton: The model on the meta device, in the dtypes it is loaded in.
        num_gpus: The number of GPUs.
    """
    return _share(skeleton, TENSOR_PARALLEL, num_gpus=num_gpus)


def share_by_expert_parallel(skeleton: PreTrainedModel, *, num_gpus: int) -> RankBytes:
    """Return the weights on each GPU with transformers' expert parallelism.

    That is `DistributedConfig(tp_size=num_gpus, ep_size=num_gpus)`: each GPU holds the same number
    of whole routed experts, and everything else is cut by the tensor-parallel plan.

    Args:
        skeleton: The model on the meta device, in the dtypes it is loaded in.
        num_gpus: The number of GPUs.
    """
    return _share(skeleton, EXPERT_PARALLEL, num_gpus=num_gpus)


def find_uneven_rows(skeleton: PreTrainedModel, *, num_gpus: int) -> str | None:
    """Return why torch can't multiply tokens with the experts that GPUs would hold; None if it can.

    That concerns transformers' implementation `grouped_mm` under the tensor-parallel plan, which cuts
    the rows of each expert's last matrix.

    Args:
        skeleton: The model on the meta device, in the dtypes it is loaded in.
        num_gpus: The number of GPUs.
    """
    plan = read_tensor_plan(skeleton)
    for path, parameter in skeleton.named_parameters():
        if path not in plan or parameter.dim() != _STACK_DIMS:
            continue
        shard = find_shard(plan[path], path=path, num_dims=_STACK_DIMS)
        if shard is None or shard.dim != _STACK_DIMS - 1:
            continue
        size = parameter.shape[-1]
        pieces = split_evenly(size, num_gpus=num_gpus, num_packed=shard.num_packed)
        if any(piece * parameter.element_size() % _ROW_BYTES for piece in pieces):
            return (
                f"an expert's {size:,} columns cut by {num_gpus} GPUs leave rows that aren't a "
                f"multiple of {_ROW_BYTES} bytes, which torch's grouped_mm refuses"
            )
    return None


def _share(skeleton: PreTrainedModel, strategy: str, *, num_gpus: int) -> RankBytes:
    try:
        plan = _read_plan(skeleton, strategy)
        _refuse_cut_heads(skeleton, plan, num_gpus=num_gpus)
        shares = [
            _share_parameter(parameter, path, plan.get(path), num_gpus=num_gpus)
            for path, parameter in _list_untied(skeleton)
        ]
    except _CantShare as error:
        return RankBytes(way=strategy, num_gpus=num_gpus, weights_bytes=(), reason=str(error))
    replicated = sum(buffer.nbytes for buffer in skeleton.buffers())
    replicated += sum(share[0] for share in shares if len(share) == 1)
    cut = [share for share in shares if len(share) > 1]
    return RankBytes(
        way=strategy,
        num_gpus=num_gpus,
        weights_bytes=tuple(
            replicated + sum(share[rank] for share in cut) for rank in range(num_gpus)
        ),
        replicated_bytes=replicated,
    )


def _read_plan(skeleton: PreTrainedModel, strategy: str) -> dict[str, str]:
    """Return the style of each parameter and module in the plan, by path."""
    name = type(skeleton).__name__
    if any(not p.is_floating_point() for p in skeleton.parameters()):
        if find_stated(skeleton.config):
            raise _CantShare(
                "it is unknown how transformers shares weights that are published packed"
            )
        raise _CantShare(
            "transformers' forward fails if weights quantized by bitsandbytes are shared"
        )
    tensor_plan = read_tensor_plan(skeleton)
    if not tensor_plan:
        raise _CantShare(f"{name} has no tensor-parallel plan")
    if strategy == TENSOR_PARALLEL:
        return tensor_plan
    expert_plan = read_expert_plan(skeleton)
    if not expert_plan:
        raise _CantShare(f"{name} has no expert-parallel plan")
    kept = {
        path: style
        for path, style in tensor_plan.items()
        if not any(path == taken or path.startswith(f"{taken}.") for taken in expert_plan)
    }
    return {**kept, **expert_plan}


def _refuse_cut_heads(skeleton: PreTrainedModel, plan: Mapping[str, str], *, num_gpus: int) -> None:
    """Raise if a GPU would hold part of a head."""
    for path, style in plan.items():
        if style != "colwise":
            continue
        num_heads, kind = _count_heads(skeleton, path)
        if num_heads is not None and num_heads % num_gpus:
            raise _CantShare(f"{num_heads} {kind} heads can't be shared evenly by {num_gpus} GPUs")


def _count_heads(skeleton: PreTrainedModel, path: str) -> tuple[int | None, str]:
    """Return the number of heads in a module's output and their kind; None without heads."""
    parent_path, _, name = path.removesuffix(".linear").rpartition(".")
    if name in _OF_QUERY_HEADS:
        attention = skeleton.get_submodule(parent_path)
        return (
            find_num_heads(attention) or find_num_heads(skeleton.config.get_text_config()),
            "query",
        )
    if name in _OF_KEY_HEADS:
        head_dim = read_count(skeleton.get_submodule(parent_path), "head_dim")
        num_rows = read_count(skeleton.get_submodule(path), "out_features")
        if head_dim and num_rows:
            return num_rows // head_dim, "key-value"
    return None, ""


def _share_parameter(
    parameter: torch.nn.Parameter, path: str, style: str | None, *, num_gpus: int
) -> list[int]:
    """Return the bytes on each GPU; a single number if each holds the whole parameter."""
    if style is None or not parameter.numel():
        return [parameter.nbytes]
    try:
        shard = find_shard(style, path=path, num_dims=parameter.dim())
    except UnknownStyle as error:
        raise _CantShare(f"it is unknown how the style '{style}' shares {path}") from error
    if shard is None:
        return [parameter.nbytes]
    size = parameter.shape[shard.dim]
    if shard.is_even and size % num_gpus:
        raise _CantShare(f"{size} experts can't be shared evenly by {num_gpus} GPUs")
    bytes_per_index = parameter.nbytes // size
    return [
        num * bytes_per_index
        for num in split_evenly(size, num_gpus=num_gpus, num_packed=shard.num_packed)
    ]


def _list_untied(skeleton: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield each parameter once, by the path that transformers loads it under."""
    tied = getattr(skeleton, "all_tied_weights_keys", None) or {}
    seen: set[int] = set()
    for path, parameter in skeleton.named_parameters(remove_duplicate=False):
        if path not in tied and id(parameter) not in seen:
            seen.add(id(parameter))
            yield path, parameter
