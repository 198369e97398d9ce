"""Cuts of a parameter into pieces, by transformers' sharing styles."""

from __future__ import annotations

from dataclasses import dataclass

_ROWS = ("colwise", "colwise_rep", "colwise_gather_output", "packed_colwise")
_COLUMNS = ("rowwise", "rowwise_rep", "rowwise_split_input", "packed_rowwise")
PACKED_STYLES = ("packed_colwise", "packed_rowwise")
_EMBEDDING_DIMS = {"embedding_rowwise": 0, "embedding_colwise": 1}
_EXPERTS = "grouped_gemm"
# These styles change the inputs and outputs of a module, not its parameters.
_WHOLE = (
    "all_reduce",
    "ep_dispatch_experts",
    "local_params",
    "mla_kv_a_proj",
    "moe_identity_expert",
    "moe_tp_experts",
    "replicate",
    "replicated_with_grad_allreduce",
    "sequence_parallel",
)


class UnknownStyle(Exception):  # noqa: N818 - control flow, not an error
    """A plan has a style whose effect on parameters is unknown."""


@dataclass(frozen=True)
class Shard:
    """A cut of a parameter.

    Attributes:
        dim: The dimension along which it is cut.
        num_packed: The number of matrices that are stacked along it, each of which is cut.
        is_even: Whether all pieces have to be of the same size.
    """

    dim: int
    num_packed: int = 1
    is_even: bool = False


def find_shard(style: str, *, name: str, num_dims: int) -> Shard | None:
    """Return the cut of a parameter under a style; None if every GPU holds all of it.

    This follows `transformers.distributed.tensor_parallel` and `expert_parallel`: rows are the
    second to last dimension, as in a stack of matrices, and the only one of a bias. The bias of a
    module that is cut into columns is added once, after the sum over GPUs, so each GPU holds it.

    Args:
        style: The parameter's style in the plan.
        name: The parameter's name in its module.
        num_dims: The number of its dimensions.

    Raises:
        UnknownStyle: The style is not one of transformers 5.24.
    """
    num_packed = 2 if style in PACKED_STYLES and num_dims > 1 else 1
    if style in _ROWS:
        return Shard(max(num_dims - 2, 0), num_packed=num_packed)
    if style in _COLUMNS:
        is_kept = num_dims == 1 if style in PACKED_STYLES else name == "bias"
        return None if is_kept else Shard(num_dims - 1, num_packed=num_packed)
    if style in _EMBEDDING_DIMS:
        return Shard(_EMBEDDING_DIMS[style])
    if style == _EXPERTS:
        return Shard(0, is_even=True)
    if style in _WHOLE:
        return None
    raise UnknownStyle(style)


def split_evenly(size: int, *, num_gpus: int, num_packed: int = 1) -> list[int]:
    """Return the number of a dimension's indices on each GPU.

    Each GPU gets the size divided by the number of GPUs, rounded up, until nothing is left: the last
    ones may get less, or nothing. Stacked matrices are divided one by one.
    """
    width = -(-size // num_packed)
    widths = [max(min(width, size - start), 0) for start in range(0, width * num_packed, width)]
    pieces = [_split(part, num_gpus) for part in widths]
    return [sum(ranks) for ranks in zip(*pieces, strict=True)]


def _split(size: int, num_gpus: int) -> list[int]:
    piece = -(-size // num_gpus)
    return [max(min(piece, size - rank * piece), 0) for rank in range(num_gpus)]
