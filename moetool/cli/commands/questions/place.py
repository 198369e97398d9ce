"""Run `moetool place`: which GPU should hold which expert, and what that is worth."""

from __future__ import annotations

from dataclasses import replace

from moetool.cli.errors import speaks_errors
from moetool.cli.inputs import list_trace_files
from moetool.cli.options.questions.exporting import (
    ExportOption,
    ExportTarget,
    HiddenLayersOption,
    MethodOption,
    check_export_options,
)
from moetool.cli.options.questions.placement import (
    BalanceWeightOption,
    GpusOption,
    GroupsOption,
    HiddenSizeOption,
    NodesOption,
    RedundantOption,
    SeedOption,
    TokensPerBatchOption,
    TracedModelOption,
)
from moetool.cli.options.shared import ForceOption, FormatOption, OutputOption, QuietOption
from moetool.cli.options.traces import (
    ByOption,
    LayersOption,
    NoValidateOption,
    NumExpertsOption,
    TopKOption,
    TraceArgument,
)
from moetool.cli.options.values import parse_layers
from moetool.cli.output import (
    check_report_path,
    choose_report_format,
    print_or_write,
    see_output,
)
from moetool.cli.progress import say, show_status

SUMMARY = "Place experts on GPUs."
EXAMPLES = (
    "moetool place trace.parquet --gpus 8",
    "moetool place trace.parquet --gpus 16 --nodes 2 --redundant 32 --groups 8",
    "moetool place trace.parquet --gpus 8 --export sglang -o placement.json",
)


@speaks_errors
def place(
    trace: TraceArgument,
    gpus: GpusOption,
    nodes: NodesOption = 1,
    redundant: RedundantOption = 0,
    groups: GroupsOption = None,
    tokens_per_batch: TokensPerBatchOption = 512,
    balance_weight: BalanceWeightOption = 0.08,
    seed: SeedOption = 0,
    export: ExportOption = None,
    method: MethodOption = None,
    model: TracedModelOption = None,
    hidden_size: HiddenSizeOption = None,
    num_hidden_layers: HiddenLayersOption = None,
    by: ByOption = "domain",
    layers: LayersOption = None,
    num_experts: NumExpertsOption = None,
    top_k: TopKOption = None,
    no_validate: NoValidateOption = False,
    output_format: FormatOption = None,
    output: OutputOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Place the experts of each layer on GPUs, and show what that is worth.

    Compares contiguous placement, EPLB (by load) and placement by co-activation, which also cuts
    traffic. Each is fitted on half of the prompts of every domain and scored on the other half:
    load of the busiest GPU of a batch over the mean, GPUs per token, bytes sent. The placement
    that is exported is fitted on all prompts. A load table has loads alone.
    """
    with show_status(is_quiet=quiet) as show:
        show("starting")
        from moetool.library.questions.place import (
            place_experts,
            prepare_export,
            write_export,
        )
        from moetool.report.questions.place import RENDERERS, render_vllm_advice

    report = check_export_options(export, output, method=method is not None, layers=layers)
    chosen = choose_report_format(output_format, report)
    check_report_path(output, force=force, inputs=list_trace_files(trace))
    engine = None if export in (None, ExportTarget.VLLM) else str(export)
    if engine is not None and output is not None:
        num_hidden_layers = prepare_export(
            trace,
            engine,
            output,
            model=model,
            num_hidden_layers=num_hidden_layers,
            overwrite=force,
        )
    with show_status(is_quiet=quiet) as show:
        show(f"reading {trace}")
        result = place_experts(
            trace,
            num_gpus=gpus,
            num_nodes=nodes,
            num_redundant_experts=redundant,
            num_groups=groups,
            tokens_per_batch=tokens_per_batch,
            balance_weight=balance_weight,
            seed=seed,
            by=by,
            layers=parse_layers(layers),
            num_experts=num_experts,
            top_k=top_k,
            validate=not no_validate,
            model=model,
            hidden_size=hidden_size,
            advises_vllm=export is ExportTarget.VLLM,
        )
    export_file = None
    if engine is not None and output is not None:
        export_file = write_export(
            result,
            engine,
            output,
            method=method and str(method),
            num_hidden_layers=num_hidden_layers,
            overwrite=force,
        )
    view = replace(see_output(report), source=str(trace))
    print_or_write(RENDERERS[chosen](result, view), report, force=force)
    if export_file is not None:
        say(f"wrote {output}; use it with: {export_file.options}")
        for remark in export_file.remarks:
            say(f"note: {remark}")
    if export is ExportTarget.VLLM:
        say(render_vllm_advice(result))
