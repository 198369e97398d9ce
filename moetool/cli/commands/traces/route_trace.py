"""Run `moetool route-trace`: record which experts each token goes to."""

from __future__ import annotations

from moetool.cli.commands.traces.recording import record, refuse_several
from moetool.cli.errors import speaks_errors
from moetool.cli.inputs import list_run_inputs
from moetool.cli.observer import TerminalObserver
from moetool.cli.options.memory_estimate.gguf import CacheTypeK, CacheTypeV, UbatchSize
from moetool.cli.options.route_trace import generation as generating
from moetool.cli.options.route_trace import gguf, quantizing, recording, running
from moetool.cli.options.route_trace import prompts as prompt_options
from moetool.cli.options.route_trace.asked_prompts import AskedPrompts
from moetool.cli.options.shared import ForceOption, PageOption, RevisionOption, TrustOption
from moetool.cli.options.values import parse_layers
from moetool.cli.processes import current_processes, join_processes, runs_together
from moetool.cli.writing.runs import choose_files
from moetool.memory.scenario import CacheKind, Dtype
from moetool.quantizing.kinds import Quantization
from moetool.tracing.prompts.files import PromptFields
from moetool.tracing.prompts.limits import PromptLimits
from moetool.tracing.timing import StageClock

SUMMARY = "Record each token's choice of experts."
EXAMPLES = (
    "moetool route-trace demo --prompts sample_prompts -o trace.parquet",
    "moetool route-trace org/model --prompts p.csv --device-map auto -o t.parquet",
    "moetool route-trace demo --prompt 'Hello' --max-new-tokens 20 --format csv",
)


@speaks_errors
@runs_together
def route_trace(
    model: running.Model,
    prompts: prompt_options.Prompts = None,
    prompt: prompt_options.PromptOption = None,
    limit: prompt_options.Limit = None,
    limit_per_domain: prompt_options.LimitPerDomain = None,
    chat: prompt_options.Chat = False,
    special_tokens: prompt_options.SpecialTokensOption = True,
    max_prompt_tokens: prompt_options.MaxPromptTokens = None,
    id_field: prompt_options.IdField = "id",
    text_field: prompt_options.TextField = "text",
    domain_field: prompt_options.DomainField = "domain",
    batch_size: running.BatchSize = None,
    max_batch_tokens: running.MaxBatchTokens = None,
    dtype: running.DtypeOption = Dtype.AUTO,
    device: running.Device = None,
    device_map: running.DeviceMap = None,
    parallel: running.Parallel = None,
    quantization: quantizing.QuantizationOption = Quantization.NONE,
    double_quantization: quantizing.DoubleQuantization = False,
    quantize_experts: quantizing.QuantizeExperts = True,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    layers: recording.Layers = None,
    probabilities: recording.Probabilities = False,
    saliency: recording.Saliency = False,
    allow_inexact: recording.AllowInexact = False,
    max_new_tokens: generating.MaxNewTokens = None,
    temperature: generating.Temperature = None,
    top_p: generating.TopP = None,
    seed: generating.Seed = 0,
    cache: generating.CacheOption = CacheKind.DYNAMIC,
    save_text: generating.SaveText = None,
    n_gpu_layers: gguf.GpuLayers = None,
    threads: gguf.Threads = None,
    ctx_size: gguf.ContextSize = None,
    ubatch_size: UbatchSize = None,
    cache_type_k: CacheTypeK = None,
    cache_type_v: CacheTypeV = None,
    flash_attn: gguf.FlashAttention = None,
    output: recording.Output = None,
    output_format: recording.Format = None,
    report: PageOption = None,
    force: ForceOption = False,
    resume: recording.Resume = False,
    show: recording.Show = None,
    quiet: recording.QuietOption = False,
    verbose: recording.VerboseOption = False,
) -> None:
    """Record which experts each token goes to, one row per chosen expert.

    Rows go to --output (.parquet or .csv), or as CSV to stdout in a pipe. On a terminal without
    --output, only the summary is shown. Progress and summary go to stderr.
    """
    clock = StageClock()
    processes = current_processes()
    with TerminalObserver(is_quiet=quiet, is_silent=not processes.is_first) as observer:
        observer.step("starting")
        from moetool.checkpoint.reference import resolve_model
        from moetool.tracing.llama_cpp.choice import GgufOptions, choose_llama_cpp
        from moetool.tracing.options import TraceOptions

    fields = PromptFields(prompt_id=id_field, text=text_field, domain=domain_field)
    limits = PromptLimits(limit, limit_per_domain)
    asked = AskedPrompts(prompts, prompt, fields, limits, chat, special_tokens)
    reference = resolve_model(model)
    chosen = quantizing.read_quantization(quantization, double_quantization, quantize_experts)
    options = TraceOptions(
        revision=revision,
        trust_remote_code=trust_remote_code,
        dtype=None if dtype is Dtype.AUTO else dtype,
        device=device,
        device_map=device_map,
        parallel=parallel,
        quantization=chosen,
        batch_size=batch_size,
        max_batch_tokens=max_batch_tokens,
        layers=parse_layers(layers),
        special_tokens=asked.choose_special_tokens(),
        max_prompt_tokens=max_prompt_tokens,
        with_probabilities=probabilities,
        with_saliency=saliency,
        allow_inexact=allow_inexact,
        generation=generating.read_generation(max_new_tokens, temperature, top_p, seed, cache),
    )
    files = choose_files(
        output,
        output_format,
        save_text,
        report,
        options=options,
        force=force,
        resume=resume,
        inputs=list_run_inputs(reference, prompts, device_map=device_map),
        is_first=processes.is_first,
    )
    own = GgufOptions(
        n_gpu_layers, threads, ctx_size, ubatch_size, cache_type_k, cache_type_v, flash_attn
    )
    others = {"--resume": resume, "--save-text": save_text, "--show": show, "--verbose": verbose}
    of_llama_cpp = choose_llama_cpp(reference, own, options, others)
    refuse_several(processes, of_llama_cpp=of_llama_cpp)
    with observer:
        join_processes(observer.step, has_file=files.sink.target is not None)
        run = record(
            reference,
            asked.read(observer.step),
            options,
            of_llama_cpp,
            files,
            observer,
            num_excerpts=0 if quiet else show,
            clock=clock,
            processes=processes,
        )
    if processes.is_first:
        files.show(run, observer, timings=verbose)
