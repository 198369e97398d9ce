"""A model served by an engine: its weights, its pool, and the users that it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moetool.anatomy.config_fields import find_vocab_size
from moetool.catalogue.gpus import Gpu
from moetool.errors import MoetoolError
from moetool.memory.loaded.loaded_model import LoadedModel
from moetool.memory.scenario import Scenario
from moetool.memory.serving import llama_cpp, sglang, vllm
from moetool.memory.serving.answer import Capacity, Engine, ServedCache, Serving, ServingOptions
from moetool.memory.serving.geometry import CacheGeometry, read_geometry
from moetool.memory.serving.weights import count_weights_bytes, refuse_cut_heads
from moetool.quantizing.kinds import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FP8_BYTES = 1
_TYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
# Families that the engine's own list of models, or the converter to GGUF, names.
_LISTED = (
    *("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss"),
    *("phimoe", "granitemoe", "dbrx", "glm4_moe", "ernie4_5_moe", "minimax_m2"),
)
_OVERHEAD = (
    "What {engine} needs for activations, CUDA graphs, the CUDA context and NCCL is found by its own "
    "profiling only, and is null here: the pool is an upper bound. Give an allowance with "
    "--engine-overhead."
)
_COMPUTE = (
    "llama.cpp's graph allocator decides the size of its compute buffer, which is null here: the "
    "logits of one micro-batch are the least that it holds. Give an allowance with "
    "--engine-overhead."
)
_PLACEMENT = (
    "Not confirmed: that all tensors except the embedding are on the GPU, without padding, with "
    "-ngl 99."
)
_UNCONFIRMED = "Not confirmed: nothing here runs {engine}; its rules were read in its source."
_LATENT_COPIES = (
    "Not confirmed: {engine} may keep copies of kv_b_proj for latent attention in addition."
)


@dataclass(frozen=True)
class _Parts:
    """The sizes that an engine's rules give, before the pool is divided."""

    weights_bytes: int | None
    token_bytes: int | None
    least_compute_bytes: int | None
    divide: Callable[[int], Capacity] | None


def serve_model(
    model: LoadedModel, scenario: Scenario, gpu: Gpu, options: ServingOptions
) -> Serving:
    """Return how an engine would serve a model on a GPU.

    Args:
        model: The model as the scenario loads it.
        scenario: Its prompt and new tokens are the length of a sequence.
        gpu: Each of the GPUs.
        options: The engine and its settings.

    Raises:
        UsageError: The number of GPUs does not divide the model's heads.
    """
    engine, skeleton = options.engine, model.held or model.skeleton
    refuse_cut_heads(skeleton, num_gpus=options.tensor_parallel)
    notes: list[str] = []
    try:
        geometry = read_geometry(skeleton)
    except MoetoolError as error:
        geometry = None
        notes.append(f"The engine's cache is unknown: {error.message}")
    is_llama = engine is Engine.LLAMA_CPP
    length = scenario.num_prompt_tokens + scenario.num_new_tokens
    make = _list_llama_cpp_parts if is_llama else _list_parts
    parts = make(model, skeleton, geometry, scenario, options, notes)
    budget = int(gpu.memory_bytes * options.share)
    most = with_overhead = None
    if parts.divide is not None and parts.weights_bytes is not None:
        left = budget - parts.weights_bytes
        known = parts.least_compute_bytes or 0
        most = parts.divide(max(left - known, 0))
        if left < known:
            notes.append("The weights alone are larger than the memory that the engine may use.")
        if options.overhead_bytes is not None:
            # SGLang's share counts what is free before it loads; activations are in the rest.
            share = options.share if engine is Engine.SGLANG else 1
            with_overhead = parts.divide(max(left - int(options.overhead_bytes * share), 0))
    if options.overhead_bytes is None:
        notes.append(_COMPUTE if is_llama else _OVERHEAD.format(engine=engine))
    if not is_llama:
        notes.append(_UNCONFIRMED.format(engine=engine))
        if geometry is not None and geometry.is_latent:
            notes.append(_LATENT_COPIES.format(engine=engine))
    model_type = skeleton.config.get_text_config().model_type
    is_confirmed = is_llama and model_type in llama_cpp.CONFIRMED_FAMILIES
    if is_llama:
        notes.append(_PLACEMENT)
    if model_type not in _LISTED:
        notes.append(f"Not confirmed: whether {engine} runs {model_type} is not known here.")
    rules = {Engine.VLLM: vllm, Engine.SGLANG: sglang, Engine.LLAMA_CPP: llama_cpp}[engine]
    chosen = with_overhead or most
    return Serving(
        engine=engine,
        gpu=gpu.id,
        tensor_parallel=options.tensor_parallel,
        kv_cache_dtype=options.kv_cache_dtype,
        share=options.share,
        weights_bytes=parts.weights_bytes,
        cache_bytes_per_token=parts.token_bytes,
        overhead_bytes=options.overhead_bytes,
        least_compute_bytes=parts.least_compute_bytes,
        tokens_per_sequence=length,
        most=most,
        with_overhead=with_overhead,
        confirmed_on=llama_cpp.CONFIRMED_ON if is_confirmed else None,
        flags={str(engine): _write_flags(options, length, chosen)},
        notes=tuple(notes),
        sources=rules.SOURCES,
    )


def _list_parts(
    model: LoadedModel,
    skeleton: PreTrainedModel,
    geometry: CacheGeometry | None,
    scenario: Scenario,
    options: ServingOptions,
    notes: list[str],
) -> _Parts:
    num_gpus, engine = options.tensor_parallel, options.engine
    weights_bytes = None
    if scenario.quantization is not Quantization.NONE or not model.runs_in_full_precision:
        notes.append(
            f"The weights are unknown: how {engine} holds quantized ones is not known here."
        )
    else:
        try:
            weights_bytes = count_weights_bytes(skeleton, geometry, num_gpus=num_gpus)
        except MoetoolError as error:
            notes.append(f"The weights on each GPU are unknown: {error.message}")
    if geometry is None:
        return _Parts(weights_bytes, None, None, None)
    is_fp8 = options.kv_cache_dtype is ServedCache.FP8
    value_bytes = _FP8_BYTES if is_fp8 else skeleton.dtype.itemsize
    layer_bytes = geometry.count_values(num_gpus=num_gpus) * value_bytes
    length = scenario.num_prompt_tokens + scenario.num_new_tokens

    def divide(pool_bytes: int) -> Capacity:
        count = vllm.count_capacity if engine is Engine.VLLM else sglang.count_capacity
        return count(geometry, pool_bytes, token_bytes_per_layer=layer_bytes, length=length)

    return _Parts(weights_bytes, layer_bytes * geometry.num_layers, None, divide)


def _list_llama_cpp_parts(
    model: LoadedModel,
    skeleton: PreTrainedModel,
    geometry: CacheGeometry | None,
    scenario: Scenario,
    options: ServingOptions,
    notes: list[str],
) -> _Parts:
    weights_bytes = None
    tensor_type = _TYPES.get(str(skeleton.dtype).removeprefix("torch."))
    if scenario.quantization is not Quantization.NONE or not model.runs_in_full_precision:
        notes.append("The weights are unknown: take the size of the GGUF file for quantized ones.")
    elif tensor_type is not None:
        weights_bytes = llama_cpp.count_on_gpu_bytes(skeleton, tensor_type)
    length = scenario.num_prompt_tokens + scenario.num_new_tokens
    vocab_size = find_vocab_size(skeleton.config)
    logits = None
    if vocab_size is not None:
        logits = llama_cpp.count_logits_bytes(vocab_size, context=length)
    if geometry is None:
        return _Parts(weights_bytes, None, logits, None)
    cache_type = "q8_0" if options.kv_cache_dtype is ServedCache.Q8_0 else "f16"
    values = geometry.count_values() * geometry.num_layers
    token_bytes = int(values * llama_cpp.TYPE_BYTES[cache_type])

    def divide(pool_bytes: int) -> Capacity:
        return llama_cpp.count_capacity(geometry, pool_bytes, cache_type=cache_type, length=length)

    return _Parts(weights_bytes, token_bytes, logits, divide)


def _write_flags(options: ServingOptions, length: int, capacity: Capacity | None) -> str:
    """Return the flags that the figures are for."""
    num_sequences = max(capacity.num_sequences, 1) if capacity is not None else None
    is_default = options.kv_cache_dtype is ServedCache.AUTO
    if options.engine is Engine.LLAMA_CPP:
        # llama.cpp divides one context among its slots, each a multiple of 256 cells.
        slot = -(-length // 256) * 256
        flags = ["-ngl 99", f"-c {slot * (num_sequences or 1)}", f"-ub {llama_cpp.UBATCH_TOKENS}"]
        flags += [f"-np {num_sequences}"] if num_sequences else []
        flags += [] if is_default else ["-fa on", "-ctk q8_0", "-ctv q8_0"]
        return " ".join(flags)
    if options.engine is Engine.SGLANG:
        flags = [f"--mem-fraction-static {options.share:g}", f"--context-length {length}"]
        flags += [] if is_default else ["--kv-cache-dtype fp8_e4m3"]
        flags += [f"--max-running-requests {num_sequences}"] if num_sequences else []
        return " ".join([*flags, f"--tp-size {options.tensor_parallel}"])
    flags = [
        f"--gpu-memory-utilization {options.share:g}",
        f"--max-model-len {length}",
        f"--max-num-batched-tokens {vllm.BATCHED_TOKENS}",
    ]
    flags += [] if is_default else ["--kv-cache-dtype fp8"]
    flags += [f"--max-num-seqs {num_sequences}"] if num_sequences else []
    return " ".join([*flags, f"--tensor-parallel-size {options.tensor_parallel}"])
