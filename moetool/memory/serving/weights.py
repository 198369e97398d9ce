"""Weights on each GPU under vLLM's and SGLang's tensor parallelism.

Both load with the same classes of layers (vllm/model_executor/layers/linear.py,
vocab_parallel_embedding.py, fused_moe/layer.py, and their counterparts in SGLang): projections to
heads and feed-forward widths are cut, experts are cut in their width, and norms, routers and the
projections to latents are on every GPU. Embedding and head are padded to a multiple of 64 rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moetool.anatomy.config_fields import find_num_heads
from moetool.errors import InputError, UsageError
from moetool.memory.serving.geometry import CacheGeometry

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_VOCABULARY_ROWS = 64
_CUT = (
    "q_proj",
    "q_b_proj",
    "kv_b_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "gate_up_proj",
    "gate_up_proj_bias",
)
_OF_KEY_HEADS = ("k_proj", "v_proj")
_CUT_INPUTS = ("o_proj", "down_proj")
_WHOLE = ("gate", "router", "q_a_proj", "kv_a_proj_with_mqa", "shared_expert_gate")


def refuse_cut_heads(skeleton: PreTrainedModel, *, num_gpus: int) -> None:
    """Raise if heads can't be shared evenly.

    Raises:
        UsageError: The number of GPUs does not divide the heads.
    """
    num_heads = find_num_heads(skeleton.config.get_text_config()) or 1
    if num_heads % num_gpus == 0:
        return
    nearest = next(number for number in range(num_gpus, 0, -1) if num_heads % number == 0)
    raise UsageError(
        f"{num_heads} attention heads can't be shared evenly by {num_gpus} GPUs.",
        hint=f"Give --tensor-parallel {nearest}.",
    )


def count_weights_bytes(
    skeleton: PreTrainedModel, geometry: CacheGeometry | None, *, num_gpus: int
) -> int:
    """Return the weights on each GPU.

    Args:
        skeleton: The model on the meta device, in the dtypes it is loaded in.
        geometry: Its heads; None if they are unknown, which is enough for one GPU.
        num_gpus: The number of GPUs that share each layer.

    Raises:
        InputError: It is unknown how a parameter is shared.
    """
    head: Any = skeleton.get_output_embeddings()  # type: ignore[no-untyped-call]
    tables: list[Any] = [skeleton.get_input_embeddings(), head]
    of_vocabulary = {id(table.weight) for table in tables if table is not None}
    total = 0
    for path, values in skeleton.named_parameters():
        if id(values) in of_vocabulary:
            rows, row_bytes = values.shape[0], values.nbytes // values.shape[0]
            total += -(-rows // _VOCABULARY_ROWS) * _VOCABULARY_ROWS * row_bytes // num_gpus
        else:
            total += values.nbytes // _count_parts(path, values, geometry, num_gpus)
    return total


def _count_parts(
    path: str, values: torch.Tensor, geometry: CacheGeometry | None, num_gpus: int
) -> int:
    """Return the number of equal parts that a parameter is cut into."""
    parent, _, name = path.rpartition(".")
    module = parent.rpartition(".")[2] if name in ("weight", "bias") else name
    if num_gpus == 1 or module in _WHOLE or "norm" in module:
        return 1
    if module in _OF_KEY_HEADS and geometry is not None:
        return min(num_gpus, geometry.num_kv_heads)
    if module in _CUT or module == "sinks":
        return 1 if name == "bias" and module in _CUT_INPUTS else num_gpus
    if values.dim() == 1 or name == "down_proj_bias":
        return 1
    raise InputError(
        f"It is unknown how engines share {path}.",
        hint="Leave out --tensor-parallel.",
    )
