"""Estimates of memory from Python, as `moetool memory-estimate` makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moetool.catalogue.gpus import Gpu
from moetool.checkpoint.gguf.hub_files import open_named_gguf
from moetool.checkpoint.reference import ModelReference, resolve_model
from moetool.memory.machine.gpu_group import GpuGroup
from moetool.memory.scenario import Scenario, take_scenarios
from moetool.memory.serving.gguf.estimate import estimate_gguf
from moetool.memory.serving.gguf.options import GgufOptions, make_question, refuse_foreign

if TYPE_CHECKING:
    from moetool.memory.result import Estimate
    from moetool.memory.serving.answer import ServingOptions


def estimate_memory(
    model: str | PathLike[str] | ModelReference,
    scenarios: Sequence[Scenario] | None = None,
    *,
    clipped_sizes: Sequence[str] | None = None,
    gpu: str | Gpu | None = None,
    trace: str | Path | None = None,
    measure: bool = False,
    parallel: str | Sequence[str] | GpuGroup | None = None,
    num_nodes: int = 1,
    serving: ServingOptions | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    n_gpu_layers: int | None = None,
    n_cpu_moe: int | None = None,
    override_tensor: str | None = None,
    ctx_size: int | None = None,
    ubatch_size: int | None = None,
    cache_type_k: str | None = None,
    cache_type_v: str | None = None,
    flash_attn: str | None = None,
    tensor_split: str | None = None,
    engine_overhead: str | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> list[Estimate] | list[Any]:
    # Any stands for GgufEstimate, so that readers of other estimates need not tell them apart.
    """Return the memory that each of several scenarios of a model needs.

    The model's own code runs without weights, on torch's meta device under transformers' own
    `generate`; every allocation is followed and replayed through a model of torch's caching
    allocator. For a GGUF file, each result is a `GgufEstimate` instead, by llama.cpp's rules.

    Args:
        model: A folder, a config.json, a Hub id, a catalogue name, `demo`, a GGUF file, or the
            result of `resolve_model` for one of them.
        scenarios: The runs to estimate; the estimates are returned in their order. None for one
            run of 2,048 prompt tokens and 256 new ones. Of a GGUF file, only their batch sizes
            differ: llama.cpp's `--parallel`.
        clipped_sizes: Sizes, `num_prompt_tokens` or `num_new_tokens`, to reduce to what the model's
            context allows, with a note. Scenarios with other sizes past the context are refused.
            None for both sizes if the scenarios are left out, and else for neither.
        gpu: A GPU's id or alias, an amount of memory such as `24GiB`, or `here` for this machine's
            GPU. With it, the estimates go into detail, for this GPU alone; None for every known
            GPU.
        trace: A recorded trace, whose routing bounds the speed; None for uniform routing.
        measure: Run each scenario on this machine's GPU too.
        parallel: The ways in which several GPUs share the model: values of `ParallelWay`, as a list
            or with commas. `gpu` then begins with their number: `8xh200`. With an engine, it is how
            the engine shares the model, and transformers' ways are left out.
        num_nodes: Machines with that many GPUs each.
        serving: An engine that would serve the model on the GPU; None for no such answer.
        revision: Branch, tag or commit, for Hub ids.
        trust_remote_code: Run Python code from the model's repository if it needs it.
        n_gpu_layers: Of a GGUF file, layers on the GPU, the head counted as one; None for all.
        n_cpu_moe: Of a GGUF file, first layers whose experts stay on the CPU.
        override_tensor: Of a GGUF file, patterns of tensors' names with their devices, such as
            `exps=CPU`.
        ctx_size: Of a GGUF file, tokens of the cache, for all sequences; None for the file's.
        ubatch_size: Of a GGUF file, tokens of a micro-batch; None for 512.
        cache_type_k: Of a GGUF file, the type of cached keys; None for `f16`.
        cache_type_v: Of a GGUF file, the type of cached values; None for `f16`.
        flash_attn: Of a GGUF file, flash attention: `on`, `off` or `auto`; None for `auto`.
        tensor_split: Of a GGUF file, parts of the layers for each of several GPUs, such as `3,1`;
            None for equal ones.
        engine_overhead: Of a GGUF file, an allowance on the GPU, such as `1GiB`.
        on_progress: Receives a few words on each step before it starts.

    Raises:
        InputError: The model, its configuration or the trace can't be used, or the model's code
            can't run without data.
        OutOfMemoryError: A scenario doesn't fit on this machine's GPU, although it should; one that
            shouldn't isn't run, and only the bus is measured.
        UntraceableError: This transformers has no class for the model.
        UsageError: A scenario is not possible with this model, or the GPU is unknown.
    """
    reference = resolve_model(model)
    own = GgufOptions(
        n_gpu_layers=n_gpu_layers,
        n_cpu_moe=n_cpu_moe,
        override_tensor=override_tensor,
        ctx_size=ctx_size,
        ubatch_size=ubatch_size,
        cache_type_k=cache_type_k,
        cache_type_v=cache_type_v,
        flash_attn=flash_attn,
        tensor_split=tensor_split,
        engine_overhead=engine_overhead,
    )
    if reference.is_gguf:
        foreign = (clipped_sizes, trace, parallel, serving)
        asked = take_scenarios(scenarios)
        for scenario in asked:
            refuse_foreign(scenario, foreign, flags=(measure, trust_remote_code, num_nodes != 1))
        file = open_named_gguf(reference, revision=revision)
        sequences = [scenario.batch_size for scenario in asked]
        questions = [make_question(own, gpu=gpu, num_sequences=number) for number in sequences]
        return [estimate_gguf(reference.text, file, question) for question in questions]
    own.refuse()
    # Imported late because it imports torch, which GGUF files don't need.
    from moetool.memory import estimate as memory

    return memory.estimate_memory(
        reference,
        scenarios,
        clipped_sizes=clipped_sizes,
        gpu=gpu,
        trace=trace,
        measure=measure,
        serving=serving,
        parallel=parallel,
        num_nodes=num_nodes,
        revision=revision,
        trust_remote_code=trust_remote_code,
        on_progress=on_progress,
    )
