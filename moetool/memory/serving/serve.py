"""A model served by an engine: its weights, its pool, and the users that it holds."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from moetool.catalogue.gpus import Gpu
from moetool.errors import InputError
from moetool.memory.loaded.loaded_model import LoadedModel
from moetool.memory.machine.gpu_group import GpuGroup
from moetool.memory.scenario import Scenario
from moetool.memory.serving import llama_cpp, sglang, vllm
from moetool.memory.serving.answer import Capacity, Engine, Serving, ServingOptions
from moetool.memory.serving.deployment import plan_deployment, refuse_uneven
from moetool.memory.serving.geometry import CacheGeometry, read_geometry
from moetool.memory.serving.question import Parts, Question, find_published_method

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_RULES = MappingProxyType({Engine.VLLM: vllm, Engine.SGLANG: sglang, Engine.LLAMA_CPP: llama_cpp})
# Families that the engine's own list of models, or the converter to GGUF, names.
_LISTED = (
    *("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3", "gpt_oss"),
    *("phimoe", "granitemoe", "dbrx", "glm4_moe", "ernie4_5_moe", "minimax_m2", "dots1"),
)
_OVERHEAD = (
    "What {engine} needs for activations, CUDA graphs, the CUDA context and NCCL is found by its own "
    "profiling only, and is null here: the pool is an upper bound. Give an allowance with "
    "--engine-overhead."
)
_TOO_LARGE = "The weights alone are larger than the memory that the engine may use."


def serve_model(
    model: LoadedModel,
    scenario: Scenario,
    gpu: Gpu,
    options: ServingOptions,
    *,
    group: GpuGroup | None = None,
) -> Serving:
    """Return how an engine would serve a model.

    Args:
        model: The model as the scenario loads it.
        scenario: Its prompt and new tokens are the length of a sequence.
        gpu: Each of the GPUs.
        options: The engine and its settings.
        group: Several GPUs and the ways in which they share the model; None for those of one
            tensor-parallel group.

    Raises:
        UsageError: The engine can't share the model between these GPUs.
    """
    refuse_sharing(model, options, group)
    deployment = plan_deployment(options, group)
    geometry, notes = _read_geometry(model.held or model.skeleton)
    question = Question(model, geometry, scenario, gpu, options, deployment)
    rules = _RULES[options.engine]
    parts = rules.list_parts(question)
    most, with_overhead = _fill(parts, question)
    chosen = with_overhead or most
    num_sequences = None if chosen is None else max(chosen.num_sequences, 1)
    count_compute = parts.count_compute
    return Serving(
        engine=options.engine,
        gpu=gpu.id,
        num_gpus=deployment.num_gpus,
        tensor_parallel=deployment.tensor,
        data_parallel=deployment.replicas,
        expert_parallel=deployment.expert_groups,
        kv_cache_dtype=options.kv_cache_dtype,
        share=options.share,
        weights_bytes=parts.weights_bytes,
        cache_bytes_per_token=parts.token_bytes,
        overhead_bytes=options.overhead_bytes,
        compute_bytes=None if count_compute is None else count_compute(num_sequences or 1),
        least_compute_bytes=parts.least_compute_bytes,
        tokens_per_sequence=question.length,
        most=most,
        with_overhead=with_overhead,
        confirmed_on=parts.confirmed_on,
        flags={str(options.engine): rules.write_flags(question, num_sequences)},
        notes=(*notes, *_list_notes(question, parts)),
        sources=rules.SOURCES,
    )


def refuse_sharing(model: LoadedModel, options: ServingOptions, group: GpuGroup | None) -> None:
    """Raise if an engine can't share a model between GPUs, before anything is simulated.

    Raises:
        UsageError: The engine lacks the way of sharing, or can't divide the model's sizes.
    """
    has_fp8_blocks = find_published_method(model) == "fp8"
    refuse_uneven(model.skeleton, options, group, has_fp8_blocks=has_fp8_blocks)


def _read_geometry(skeleton: PreTrainedModel) -> tuple[CacheGeometry | None, tuple[str, ...]]:
    try:
        return read_geometry(skeleton), ()
    except InputError as error:
        return None, (f"The engine's cache is unknown: {error.message}",)


def _fill(parts: Parts, question: Question) -> tuple[Capacity | None, Capacity | None]:
    """Return what each GPU's memory holds, and what it holds next to the allowance."""
    options = question.options
    if parts.fill is None:
        return None, None
    budget = int(question.gpu.memory_bytes * options.share)
    if options.overhead_bytes is None:
        return parts.fill(budget), None
    # SGLang's share counts what is free before it loads; activations are in the rest.
    share = options.share if options.engine is Engine.SGLANG else 1
    return parts.fill(budget), parts.fill(budget - int(options.overhead_bytes * share))


def _list_notes(question: Question, parts: Parts) -> list[str]:
    """Return what is unknown or not confirmed in the answer."""
    options, notes = question.options, list(parts.notes)
    budget = int(question.gpu.memory_bytes * options.share)
    if parts.weights_bytes is not None and budget < parts.weights_bytes:
        notes.append(_TOO_LARGE)
    if options.overhead_bytes is None and options.engine is not Engine.LLAMA_CPP:
        notes.append(_OVERHEAD.format(engine=options.engine))
    model_type = question.skeleton.config.get_text_config().model_type
    if model_type not in _LISTED:
        notes.append(
            f"Not confirmed: whether {options.engine} runs {model_type} is not known here."
        )
    return notes
