"""Write tiny MoE models of transformers as GGUF files, for llama.cpp to load.

Only what memory depends on is right: tensors have llama.cpp's names, shapes and types, and their
values are those of an untrained model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf  # type: ignore[import-not-found]
import numpy as np
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from moetool.memory.serving.ggml.families import ARCHITECTURES

# Architectures whose second norm is named after attention, not before the experts.
_LATE_NORMS = ("gpt_oss", "glm4_moe")
_TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "mxfp4": gguf.GGMLQuantizationType.MXFP4,
}
_FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "mxfp4": gguf.LlamaFileType.MOSTLY_MXFP4_MOE,
}


def write_gguf(config: PretrainedConfig, path: Path, *, tensor_type: str) -> None:
    """Write an untrained model of a configuration.

    Args:
        config: A configuration of one of the families in `ARCHITECTURES`.
        path: The file.
        tensor_type: The type of every matrix: `f32`, `f16`, `bf16` or `q8_0`; with `mxfp4`, experts
            are in that type, and other matrices in `bf16`.
    """
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_file_type(_FILE_TYPES[tensor_type])
    _add_sizes(writer, config)
    names = gguf.get_tensor_name_map(
        next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture),
        config.num_hidden_layers,
    )
    for name, values in _list_tensors(model, config, names):
        is_float = values.ndim == 1 or ".ffn_gate_inp" in name or name.endswith(".bias")
        is_dense = tensor_type == "mxfp4" and "_exps." not in name
        kind = _TYPES["f32" if is_float else "bf16" if is_dense else tensor_type]
        packed = gguf.quants.quantize(values, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_expert_used_count(config.num_experts_per_tok)
    experts = [getattr(config, name, None) for name in ("num_experts", "num_local_experts")]
    experts.append(getattr(config, "n_routed_experts", None))
    writer.add_expert_count(next(number for number in experts if number))
    if hasattr(config, "n_routed_experts"):
        _add_routing(writer, config)
    if config.model_type.startswith("deepseek"):
        _add_latents(writer, config)
        return
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotary_share = config.rope_parameters.get("partial_rotary_factor", 1.0)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(int(head_dim * rotary_share))
    if config.model_type == "gpt_oss":
        writer.add_sliding_window(config.sliding_window)
    if config.model_type in ("gpt_oss", "minimax_m2"):
        writer.add_expert_feed_forward_length(config.intermediate_size)
    if config.model_type == "minimax_m2":
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    if config.model_type in ("qwen2_moe", "qwen3_moe"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if config.model_type == "qwen2_moe":
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def _add_routing(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_group_count(config.n_group)
    writer.add_expert_group_used_count(config.topk_group)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    if getattr(config, "norm_topk_prob", False):
        writer.add_expert_weights_norm(config.norm_topk_prob)
    functions = gguf.ExpertGatingFuncType
    is_softmax = config.model_type == "deepseek_v2"
    writer.add_expert_gating_func(functions.SOFTMAX if is_softmax else functions.SIGMOID)


def _add_latents(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_head_count_kv(1)
    if config.q_lora_rank:
        writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(config.qk_nope_head_dim + config.qk_rope_head_dim)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_rope_dimension_count(config.qk_rope_head_dim)


def _list_tensors(
    model: PreTrainedModel, config: Any, names: gguf.TensorNameMap
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each tensor of the file: experts stacked, and each matrix as rows of its inputs."""

    def name_of(path: str) -> str:
        found: str | None = names.get_name(path, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise KeyError(path)
        return found

    for path, parameter in model.named_parameters():
        values = parameter.detach().numpy()
        if ".experts." in path:
            yield from _split_experts(path, values, config)
        elif path.endswith("kv_b_proj.weight"):
            layer = path.split(".")[2]
            by_head = values.reshape(config.num_attention_heads, -1, config.kv_lora_rank)
            keys = by_head[:, : config.qk_nope_head_dim]
            yield f"blk.{layer}.attn_k_b.weight", np.ascontiguousarray(keys.transpose(0, 2, 1))
            heads = by_head[:, config.qk_nope_head_dim :]
            yield f"blk.{layer}.attn_v_b.weight", np.ascontiguousarray(heads)
        elif path.endswith(".sinks"):
            yield f"blk.{path.split('.')[2]}.attn_sinks.weight", values
        elif path.endswith(("q_proj.weight", "k_proj.weight")) and config.model_type == "mixtral":
            yield name_of(path), _interleave_halves(values, config, path)
        elif config.model_type in _LATE_NORMS and "post_attention_layernorm" in path:
            yield f"blk.{path.split('.')[2]}.post_attention_norm.weight", values
        elif ".gate." in path or ".router." in path:
            suffix = path.rpartition(".")[2]
            yield f"blk.{path.split('.')[2]}.ffn_gate_inp.{suffix}", values
        elif path.endswith("shared_expert_gate.weight"):
            yield name_of(path), values[0]
        else:
            yield name_of(path), values
    for path, buffer in model.named_buffers():
        if path.endswith("e_score_correction_bias"):
            yield f"blk.{path.split('.')[2]}.exp_probs_b.bias", buffer.numpy()


def _split_experts(path: str, values: np.ndarray, config: Any) -> Iterator[tuple[str, np.ndarray]]:
    layer, name = path.split(".")[2], path.rpartition(".")[2]
    suffix = "bias" if name.endswith("_bias") else "weight"
    is_transposed = config.model_type == "gpt_oss" and suffix == "weight"
    if is_transposed:
        values = values.transpose(0, 2, 1)
    if name.startswith("down_proj"):
        yield f"blk.{layer}.ffn_down_exps.{suffix}", np.ascontiguousarray(values)
        return
    half = values.shape[1] // 2
    for part, rows in (("gate", values[:, :half]), ("up", values[:, half:])):
        yield f"blk.{layer}.ffn_{part}_exps.{suffix}", np.ascontiguousarray(rows)


def _interleave_halves(values: np.ndarray, config: Any, path: str) -> np.ndarray:
    """Return rows in the order of llama.cpp's rotary embedding, which pairs neighbours."""
    is_query = path.endswith("q_proj.weight")
    num_heads = config.num_attention_heads if is_query else config.num_key_value_heads
    halves = values.reshape(num_heads, 2, -1, values.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
