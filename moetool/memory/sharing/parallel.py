"""The weights on each of several GPUs, under transformers' own sharing plans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
from transformers import PreTrainedModel

from moetool.anatomy.config_fields import find_num_heads, read_count
from moetool.anatomy.routing.walk import join_path, walk_parameters
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
    return ParallelShares(skeleton).share(TENSOR_PARALLEL, num_gpus=num_gpus)


def share_by_expert_parallel(skeleton: PreTrainedModel, *, num_gpus: int) -> RankBytes:
    """Return the weights on each GPU with transformers' expert parallelism.

    That is `DistributedConfig(tp_size=num_gpus, ep_size=num_gpus)`: each GPU holds the same number
    of whole routed experts, and everything else is cut by the tensor-parallel plan.

    Args:
        skeleton: The model on the meta device, in the dtypes it is loaded in.
        num_gpus: The number of GPUs.
    """
    return ParallelShares(skeleton).share(EXPERT_PARALLEL, num_gpus=num_gpus)


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
        shard = find_shard(plan[path], name=path.rpartition(".")[2], num_dims=_STACK_DIMS)
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


@dataclass(frozen=True)
class _Parameter:
    """All that decides how a plan shares a parameter.

    Attributes:
        name: Its name in its module.
        style: Its style in the plan; None without one.
        path: Its path, for messages.
    """

    name: str
    style: str | None
    shape: torch.Size
    num_bytes: int
    path: str = field(compare=False)


@dataclass(frozen=True)
class _Plan:
    """A sharing plan of one model.

    Attributes:
        parameters: How many parameters are shared in the same way, with the first of them.
        heads: Each number of heads that the plan shares, and their kind; None where there are none.
    """

    parameters: Mapping[_Parameter, int]
    heads: tuple[tuple[int | None, str], ...]


class ParallelShares:
    """Weights of one model on each of any number of GPUs, under transformers' plans.

    Args:
        skeleton: The model on the meta device, in the dtypes it is loaded in.
    """

    def __init__(self, skeleton: PreTrainedModel) -> None:
        self._skeleton = skeleton
        self._parameters = dict(_list_untied(skeleton))

    def share(self, strategy: str, *, num_gpus: int) -> RankBytes:
        """Return the weights on each GPU, or the reason why the strategy can't be used.

        Args:
            strategy: `TENSOR_PARALLEL` or `EXPERT_PARALLEL`.
            num_gpus: The number of GPUs.
        """
        try:
            plan = self._by_tensor if strategy == TENSOR_PARALLEL else self._by_expert
            _refuse_cut_heads(plan.heads, num_gpus=num_gpus)
            shares = [
                (_share_parameter(each, num_gpus=num_gpus), number)
                for each, number in plan.parameters.items()
            ]
        except _CantShare as error:
            return RankBytes(way=strategy, num_gpus=num_gpus, weights_bytes=(), reason=str(error))
        replicated = sum(buffer.nbytes for buffer in self._skeleton.buffers())
        replicated += sum(share[0] * number for share, number in shares if len(share) == 1)
        cut = [(share, number) for share, number in shares if len(share) > 1]
        return RankBytes(
            way=strategy,
            num_gpus=num_gpus,
            weights_bytes=tuple(
                replicated + sum(share[rank] * number for share, number in cut)
                for rank in range(num_gpus)
            ),
            replicated_bytes=replicated,
        )

    @cached_property
    def _by_tensor(self) -> _Plan:
        return self._count(self._tensor_plan)

    @cached_property
    def _by_expert(self) -> _Plan:
        return self._count(self._expert_plan)

    def _count(self, styles: Mapping[str, str]) -> _Plan:
        """Count the parameters and heads that a plan shares in the same way."""
        parameters = Counter(
            _Parameter(
                path.rpartition(".")[2], styles.get(path), parameter.shape, parameter.nbytes, path
            )
            for path, parameter in self._parameters.items()
        )
        heads = [
            _count_heads(self._skeleton, path)
            for path, style in styles.items()
            if style == "colwise"
        ]
        return _Plan(parameters, tuple(dict.fromkeys(heads)))

    @cached_property
    def _tensor_plan(self) -> Mapping[str, str]:
        """The style of each parameter and module in the tensor-parallel plan, by path."""
        if any(not p.is_floating_point() for p in self._parameters.values()):
            if find_stated(self._skeleton.config):
                raise _CantShare(
                    "it is unknown how transformers shares weights that are published packed"
                )
            raise _CantShare(
                "transformers' forward fails if weights quantized by bitsandbytes are shared"
            )
        plan = read_tensor_plan(self._skeleton)
        if not plan:
            raise _CantShare(f"{type(self._skeleton).__name__} has no tensor-parallel plan")
        return plan

    @cached_property
    def _expert_plan(self) -> Mapping[str, str]:
        """The same in the expert-parallel plan, which replaces a part of the tensor-parallel one."""
        kept = dict(self._tensor_plan)
        plan = read_expert_plan(self._skeleton)
        if not plan:
            raise _CantShare(f"{type(self._skeleton).__name__} has no expert-parallel plan")
        for path in self._tensor_plan:
            if any(holder in plan for holder in accumulate(path.split("."), join_path)):
                del kept[path]
        return {**kept, **plan}


def _refuse_cut_heads(heads: Iterable[tuple[int | None, str]], *, num_gpus: int) -> None:
    """Raise if a GPU would hold part of a head."""
    for num_heads, kind in heads:
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


def _share_parameter(parameter: _Parameter, *, num_gpus: int) -> list[int]:
    """Return the bytes on each GPU; a single number if each holds the whole parameter."""
    if parameter.style is None or not parameter.num_bytes:
        return [parameter.num_bytes]
    try:
        shard = find_shard(parameter.style, name=parameter.name, num_dims=len(parameter.shape))
    except UnknownStyle as error:
        raise _CantShare(
            f"it is unknown how the style '{parameter.style}' shares {parameter.path}"
        ) from error
    if shard is None:
        return [parameter.num_bytes]
    size = parameter.shape[shard.dim]
    if shard.is_even and size % num_gpus:
        raise _CantShare(f"{size} experts can't be shared evenly by {num_gpus} GPUs")
    bytes_per_index = parameter.num_bytes // size
    return [
        num * bytes_per_index
        for num in split_evenly(size, num_gpus=num_gpus, num_packed=shard.num_packed)
    ]


def _list_untied(skeleton: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield each parameter once, by the path that transformers loads it under."""
    tied = getattr(skeleton, "all_tied_weights_keys", None) or {}
    seen: set[int] = set()
    for path, parameter in walk_parameters(skeleton, is_each_once=False):
        if path not in tied and id(parameter) not in seen:
            seen.add(id(parameter))
            yield path, parameter
