"""Weights on each GPU as vLLM and SGLang shard them.

Both load with the same classes of layers (vllm/model_executor/layers/linear.py,
vocab_parallel_embedding.py, fused_moe/layer.py, and their counterparts in SGLang): projections to
heads and feed-forward widths are cut, experts are cut in their width or shared whole, and norms,
routers and the projections to latents are on every GPU. Embedding and head are padded to a multiple
of 64 rows. fp8 in blocks of 128 stays as it is, with a float32 scale for each block
(quantization/fp8.py), and mxfp4 stays packed (see `packed_experts`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from moetool.anatomy.config_fields import find_hidden_size, read_count
from moetool.errors import InputError
from moetool.memory.gpu_overhead import find_capability
from moetool.memory.serving.deployment import Deployment
from moetool.memory.serving.geometry import CacheGeometry
from moetool.memory.serving.packed_experts import choose_padding, count_expert_bytes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from moetool.memory.serving.question import Question

_VOCABULARY_ROWS = 64
_FIRST_WITH_FP8 = (8, 9)
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
_SCALE = "_scale_inv"


def count_held_bytes(question: Question) -> int:
    """Return the weights on the GPU that holds the most, in the format that the engine keeps.

    Raises:
        InputError: It is unknown how the engine holds or shares them.
    """
    engine, deployment = question.options.engine, question.deployment
    method, skeleton = question.published_method, question.skeleton
    if question.has_bitsandbytes:
        raise InputError(
            f"How {engine} holds weights that bitsandbytes quantizes is not known here.",
            hint="Leave out --quantization.",
        )
    if method is None:
        return count_weights_bytes(question.model.skeleton, question.geometry, deployment)
    if method == "mxfp4":
        return _count_with_mxfp4(question)
    is_fp8 = any(values.dtype.itemsize == 1 for values in skeleton.parameters())
    if method != "fp8" or not is_fp8:
        raise InputError(
            f"How {engine} holds weights in {method} on this GPU is not known here.",
            hint="Give --dtype bfloat16 for a dequantized copy.",
        )
    capability = find_capability(question.gpu)
    if capability is None or capability < _FIRST_WITH_FP8:
        raise InputError(
            f"{engine} repacks fp8 on GPUs before compute capability 8.9, and what that takes is "
            "not known here.",
            hint="Choose another GPU.",
        )
    return count_weights_bytes(skeleton, question.geometry, deployment)


def count_weights_bytes(
    skeleton: PreTrainedModel, geometry: CacheGeometry | None, deployment: Deployment
) -> int:
    """Return the bytes of a model's parameters on the GPU that holds the most.

    Args:
        skeleton: The model on the meta device, in the dtypes it is held in.
        geometry: Its heads; None if they are unknown, which is enough for one GPU.
        deployment: How GPUs share it.

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
            padded = -(-rows // _VOCABULARY_ROWS) * _VOCABULARY_ROWS
            total += padded * row_bytes // deployment.tensor
        else:
            total += _count_share(path, values, geometry, deployment)
    return total


def _count_share(
    path: str, values: torch.Tensor, geometry: CacheGeometry | None, deployment: Deployment
) -> int:
    """Return the bytes of a parameter on a GPU."""
    if ".experts." not in path:
        return math.ceil(values.nbytes / _count_parts(path, values, geometry, deployment.tensor))
    num_experts = values.shape[0]
    most = -(-num_experts // deployment.expert_groups)
    parts = _count_parts(path, values, geometry, deployment.expert_parts)
    return math.ceil(values.nbytes / num_experts * most / parts)


def _count_parts(
    path: str, values: torch.Tensor, geometry: CacheGeometry | None, num_gpus: int
) -> int:
    """Return the number of equal parts that a parameter is cut into."""
    parent, _, name = path.removesuffix(_SCALE).rpartition(".")
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


def _count_with_mxfp4(question: Question) -> int:
    """Return the bytes with packed experts, and everything else as it is in full precision."""
    deployment, skeleton = question.deployment, question.model.skeleton
    padding = choose_padding(
        question.options.engine,
        find_capability(question.gpu),
        shares_experts=deployment.shares_experts,
    )
    config = skeleton.config.get_text_config()
    hidden, width = find_hidden_size(config), read_count(config, "intermediate_size")
    if hidden is None or width is None:
        raise InputError(
            "The widths of its experts are not in its configuration.",
            hint="Give --dtype bfloat16 for a dequantized copy.",
        )
    total = count_weights_bytes(skeleton, question.geometry, deployment)
    for path, values in skeleton.named_parameters():
        if ".experts." in path:
            total -= _count_share(path, values, question.geometry, deployment)
            total += count_expert_bytes(
                path.rpartition(".")[2],
                num_experts=-(-values.shape[0] // deployment.expert_groups),
                hidden=hidden,
                width=width // deployment.expert_parts,
                padding=padding,
            )
    return total
