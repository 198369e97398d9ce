"""Run `moetool select`: which experts to fine-tune, and which to drop."""

from __future__ import annotations

from moetool.analysis.selection.choices import Average, Score
from moetool.choices import without_effect
from moetool.cli.errors import speaks_errors
from moetool.cli.inputs import list_trace_files
from moetool.cli.options.questions import selection as options
from moetool.cli.options.shared import ForceOption, FormatOption, QuietOption
from moetool.cli.options.traces import (
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
    is_file,
    print_or_write,
    see_output,
)
from moetool.cli.progress import say, show_status
from moetool.interchange.exports.selection_formats import SelectionFormat

SUMMARY = "Choose experts to train or to prune."
EXAMPLES = (
    "moetool select trace.parquet --domain python",
    "moetool select trace.parquet --by gate --export esft -o expert_cfg.json",
    "moetool select trace.parquet --prune-ratio 0.25 --export llm-compressor",
)


@speaks_errors
def select(
    trace: TraceArgument,
    by: options.By = Score.TOKEN,
    average: options.AverageOption = Average.MICRO,
    model: options.Model = None,
    top_p: options.TopP = 0.2,
    shared_experts: options.SharedExperts = False,
    non_expert_modules: options.OtherModules = False,
    freeze_list: options.FreezeListOption = False,
    prune_ratio: options.PruneRatio = None,
    groups: options.Groups = None,
    saliency: options.Saliency = None,
    domain: options.Domain = None,
    layers: LayersOption = None,
    num_experts: NumExpertsOption = None,
    top_k: TopKOption = None,
    no_validate: NoValidateOption = False,
    output_format: FormatOption = None,
    export: options.Export = None,
    output: options.Output = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Choose the experts that carry a task, as ESFT does, and those that it hardly uses.

    A layer's experts with the highest scores are selected until the scores add up to --top-p. Next
    to each layer stands what a random router would need, and how much of the selection is the same
    from two halves of the prompts. TRACE may be a load table, for token scores.

    JSON holds ESFT's own keys, so that ESFT takes it as expert_cfg.json; --export writes the exact
    file of a tool. CSV has one row per layer and expert.
    """
    with show_status(is_quiet=quiet) as show:
        show("starting")
        from moetool.interchange.exports.selections import explain_selection, render_selection
        from moetool.library.questions.select import select_experts
        from moetool.report.questions.select import RENDERERS

    if export is not None and output_format is not None:
        raise without_effect(
            {"--format": "a format"},
            because=f"the file for {export} has its own",
            unless="leave out --export",
        )
    chosen = choose_report_format(output_format, output if export is None else None)
    inputs = [*list_trace_files(trace), *([] if saliency is None else [saliency])]
    check_report_path(output, force=force, inputs=inputs)
    with show_status(is_quiet=quiet) as show:
        show(f"reading {trace}")
        result = select_experts(
            trace,
            by=by,
            top_p=top_p,
            average=average,
            domain=domain or None,
            layers=parse_layers(layers),
            shared_experts=shared_experts,
            non_expert_modules=non_expert_modules,
            freeze_list=freeze_list
            or export in (SelectionFormat.FREEZE_LIST, SelectionFormat.PEFT),
            model=model,
            prune_ratio=prune_ratio,
            groups=groups,
            saliency=saliency,
            num_experts=num_experts,
            top_k=top_k,
            validate=not no_validate,
        )
    text = (
        RENDERERS[chosen](result, see_output(output))
        if export is None
        else render_selection(result, export)
    )
    print_or_write(text, output, force=force)
    if export is not None and is_file(output) and not quiet:
        say(f"wrote {output}; use it with: {explain_selection(export, str(output))}")
