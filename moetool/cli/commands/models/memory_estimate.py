"""Run `moetool memory-estimate`: how much memory a model needs, and what it fits on."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from moetool.cli.commands.models.gguf_estimate import estimate_files
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
from moetool.cli.options.shared import (
    ForceOption,
    FormatOption,
    ModelsArgument,
    OutputOption,
    QuietOption,
    RevisionOption,
    TrustOption,
)
from moetool.cli.options.values import (
    check_experts,
    parse_numbers,
    parse_optional_numbers,
    refuse_loose_sizes,
)
from moetool.cli.output import check_report_path, choose_report_format, print_or_write, see_output
from moetool.cli.progress import show_status
from moetool.memory.scenario import NUM_NEW_TOKENS, CacheKind, Dtype, Scenario, Task
from moetool.memory.training.frozen_parts import FrozenPart
from moetool.quantizing.kinds import Quantization, QuantizedExperts

if TYPE_CHECKING:
    from moetool.memory.result import Estimate

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
    from moetool.memory.machine.gpu_group import take_group
    from moetool.memory.machine.local_gpu import take_gpu
    from moetool.memory.serving.deployment import choose_default_way
    from moetool.memory.sweep import list_scenarios
    from moetool.memory.sweeps.run import estimate_models
    from moetool.memory.sweeps.worker import SweepOptions

    refuse_loose_sizes(models, sys.argv[1:])
    check_experts(experts, quantization)
    own = {
        "num_gpu_layers": n_gpu_layers,
        "num_cpu_moe": n_cpu_moe,
        "moves": override_tensor,
        "context": ctx_size,
        "ubatch": ubatch_size,
        "type_k": cache_type_k,
        "type_v": cache_type_v,
    }
    has_gguf = gguf.check_models(models, own)
    settings = (gpu_memory_utilization, kv_cache_dtype, tensor_parallel, engine_overhead)
    serving = None if has_gguf else engines.read_engine(engine, *settings, gpu=gpu)
    chosen = choose_report_format(output_format, output)
    numbers_prompt = parse_optional_numbers(prompt_tokens, option="--prompt-tokens")
    numbers_new = parse_optional_numbers(new_tokens, option="--new-tokens")
    given = {"num_prompt_tokens": numbers_prompt, "num_new_tokens": numbers_new}
    by_default = NUM_NEW_TOKENS if task is Task.GENERATE else 0
    common = Scenario(
        num_new_tokens=numbers_new[0] if numbers_new else by_default,
        task=task,
        dtype=dtype,
        attention=attention,
        experts_implementation=experts_implementation,
        cache=cache,
        has_padding=padding,
        quantization=quantization,
        is_double_quantized=double_quantization,
        experts=experts,
        optimizer=optimizer,
        has_checkpointing=gradient_checkpointing,
        lora_rank=lora_rank,
        lora_targets=lora_targets,
        cache_dtype=cache_dtype,
        num_beams=num_beams,
        num_return_sequences=num_return_sequences,
        assistant=assistant,
        **training.read_freeze(freeze),
    )
    scenarios = list_scenarios(
        common,
        batch_sizes=parse_numbers(batch_size, option="--batch-size"),
        prompt_tokens=numbers_prompt,
        new_tokens=numbers_new,
    )
    failures = Failures(models)
    references = failures.resolve()
    inputs = [*list_model_files(references.values()), *list_trace_files(trace)]
    check_report_path(output, force=force, inputs=inputs)
    hardware.check_save(save, measure=measure, output=output, force=force, inputs=inputs)
    failures.check(references)
    if has_gguf:
        foreign = (*settings[:3], engine, parallel, save, trace, *numbers_prompt, *numbers_new)
        gguf.refuse_foreign(common, foreign, measure=measure)
        question = gguf.read_question(own, gpu=gpu, overhead=engine_overhead, scenarios=scenarios)
        asked = [(model, references[model]) for model in models if model in references]
        found = estimate_files(asked, question, failures)
        print_or_write(found.render(chosen, see_output(output)), output, force=force)
        failures.finish()
        return
    estimates: list[Estimate] = []
    with show_status(is_quiet=quiet) as show:
        # Once for all models: this machine's driver is asked about its GPU.
        group = take_group(gpu, parallel, num_nodes=nodes, default=choose_default_way(serving))
        alone = None if gpu is None or group is not None else take_gpu(gpu)
        options = SweepOptions(
            clipped_sizes=tuple(size for size, numbers in given.items() if not numbers),
            gpu=alone if group is None else group.gpu,
            parallel=group,
            trace=trace,
            measure=measure,
            serving=serving,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        asked = [(model, references[model]) for model in models if model in references]
        # torch loads here, after the checks, so that wrong options are reported before.
        for model, take in estimate_models(asked, scenarios, options, on_progress=show):
            with failures.keep(model):
                estimates += take()
    from moetool.report.memory.data import RENDERERS

    failures.check(estimates)
    if save is not None:
        from moetool.memory.receipts.saving import save_receipts

        save_receipts(estimates, save, replace_existing=force)
    view = replace(see_output(output), failures=failures.list_failures())
    print_or_write(RENDERERS[chosen](estimates, view), output, force=force)
    failures.finish()
