"""Run `moetool memory-estimate`: how much memory a model needs, and what it fits on."""

from __future__ import annotations

import sys

from moetool.cli.commands.models.gguf_estimate import write_file_estimates
from moetool.cli.errors import speaks_errors
from moetool.cli.failures import Failures
from moetool.cli.inputs import list_model_files, list_trace_files
from moetool.cli.options import loading
from moetool.cli.options.memory_estimate import (
    engines,
    generation,
    gguf,
    hardware,
    scenario,
    training,
)
from moetool.cli.options.memory_estimate.gguf_checks import check_models, read_question
from moetool.cli.options.shared import (
    ForceOption,
    FormatOption,
    ModelsArgument,
    OutputOption,
    QuietOption,
    RevisionOption,
    TrustOption,
)
from moetool.cli.options.values import refuse_loose_sizes
from moetool.cli.progress import show_status
from moetool.cli.writing.estimates import choose_files
from moetool.memory.scenario import CacheKind, Dtype, Scenario, Task
from moetool.memory.training.frozen_parts import FrozenPart
from moetool.quantizing.kinds import Quantization, QuantizedExperts

SUMMARY = "Estimate the GPU memory of a run."
EXAMPLES = (
    "moetool memory-estimate mixtral-8x7b --gpu h200",
    "moetool memory-estimate mixtral-8x7b --gpu 24GiB --quantization nf4",
    "moetool memory-estimate gpt-oss-20b --batch-size 1,8,32 -o sweep.csv",
)


@speaks_errors
def memory_estimate(
    models: ModelsArgument,
    batch_size: scenario.BatchSize = str(Scenario.batch_size),
    prompt_tokens: scenario.PromptTokens = None,
    new_tokens: scenario.NewTokens = None,
    task: scenario.TaskOption = Task.GENERATE,
    padding: scenario.Padding = False,
    dtype: loading.DtypeOption = Dtype.AUTO,
    quantization: loading.QuantizationOption = Quantization.NONE,
    double_quantization: loading.DoubleQuantization = False,
    experts: loading.Experts = QuantizedExperts.AS_LOADED,
    experts_implementation: loading.ExpertsImplementationOption = None,
    optimizer: training.OptimizerOption = None,
    gradient_checkpointing: training.Checkpointing = False,
    freeze: training.Freeze = FrozenPart.NONE.value,
    lora_rank: training.LoraRank = None,
    lora_targets: training.LoraTargets = None,
    attention: generation.AttentionOption = None,
    cache: generation.CacheOption = CacheKind.DYNAMIC,
    cache_dtype: generation.CacheDtypeOption = None,
    num_beams: generation.NumBeams = 1,
    num_return_sequences: generation.NumReturnSequences = 1,
    assistant: generation.Assistant = None,
    gpu: hardware.Gpu = None,
    trace: hardware.Trace = None,
    measure: hardware.Measure = False,
    parallel: hardware.Parallel = None,
    nodes: hardware.Nodes = 1,
    save: hardware.Save = None,
    engine: engines.EngineOption = None,
    gpu_memory_utilization: engines.Utilization = None,
    kv_cache_dtype: engines.ServedCacheOption = None,
    tensor_parallel: engines.TensorParallel = None,
    engine_overhead: engines.Overhead = None,
    n_gpu_layers: gguf.GpuLayers = None,
    n_cpu_moe: gguf.CpuMoe = None,
    override_tensor: gguf.OverrideTensor = None,
    ctx_size: gguf.ContextSize = None,
    ubatch_size: gguf.UbatchSize = None,
    cache_type_k: gguf.CacheTypeK = None,
    cache_type_v: gguf.CacheTypeV = None,
    flash_attn: gguf.FlashAttention = None,
    tensor_split: gguf.TensorSplit = None,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    output_format: FormatOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Estimate the GPU memory that a model needs to run, and show what it fits on.

    The model's own code runs without data while every allocation is followed. Weights are never
    read or downloaded, except with --measure. Several models or sizes are shown in a row each.
    """
    from moetool.memory.serving.gguf.options import GgufOptions, refuse_foreign
    from moetool.memory.sweeps.run import estimate_models
    from moetool.memory.sweeps.worker import SweepOptions

    refuse_loose_sizes(models, sys.argv[1:])
    of_gguf = (n_gpu_layers, n_cpu_moe, override_tensor, ctx_size, ubatch_size)
    own = GgufOptions(*of_gguf, cache_type_k, cache_type_v, flash_attn, tensor_split)
    has_gguf = check_models(models, own)
    settings = (gpu_memory_utilization, kv_cache_dtype, tensor_parallel, engine_overhead)
    serving = None if has_gguf else engines.read_engine(engine, *settings, gpu=gpu)
    sizes = scenario.read_sizes(batch_size, prompt_tokens, new_tokens)
    common = Scenario(
        num_new_tokens=sizes.choose_new_tokens(task),
        task=task,
        attention=attention,
        cache=cache,
        has_padding=padding,
        cache_dtype=cache_dtype,
        num_beams=num_beams,
        num_return_sequences=num_return_sequences,
        assistant=assistant,
        **loading.read(quantization, double_quantization, experts, dtype, experts_implementation),
        **training.read(optimizer, gradient_checkpointing, freeze, lora_rank, lora_targets),
    )
    scenarios = sizes.list_scenarios(common)
    failures = Failures(models)
    references = failures.resolve()
    inputs = [*list_model_files(references.values()), *list_trace_files(trace)]
    files = choose_files(output, output_format, save, measure=measure, force=force, inputs=inputs)
    if has_gguf:
        foreign = (*settings[:3], engine, parallel, save, trace, prompt_tokens, new_tokens)
        refuse_foreign(common, foreign, flags=(measure, nodes > 1))
        question = read_question(own, gpu=gpu, overhead=engine_overhead, scenarios=scenarios)
        write_file_estimates(references, question, failures, files, revision=revision)
        return
    with show_status(is_quiet=quiet) as show:
        options = SweepOptions(
            clipped_sizes=sizes.left_out,
            trace=trace,
            measure=measure,
            serving=serving,
            revision=revision,
            trust_remote_code=trust_remote_code,
            **hardware.take_gpus(gpu, parallel, nodes, serving=serving),
        )
        asked = [(model, references[model]) for model in models if model in references]
        # torch loads here, after the checks, so that wrong options are reported before.
        found = estimate_models(asked, scenarios, options, on_progress=show, pausing=show.paused)
        estimates = failures.collect(found)
    files.write(estimates, failures)
