"""Run `moetool import`: turn what other tools record of routing into a trace or a load table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from moetool.cli.errors import speaks_errors
from moetool.cli.options import importing
from moetool.cli.options.shared import ForceOption, FormatOption, QuietOption
from moetool.cli.options.values import parse_layers, parse_optional_numbers
from moetool.cli.output import (
    check_report_path,
    choose_report_format,
    print_or_write,
    see_output,
    see_terminal,
)
from moetool.cli.progress import show_status
from moetool.errors import UsageError
from moetool.report.renderer import ReportFormat

SUMMARY = "Import routing from other tools."
# Without those of one tool, which its name stands for.
FORMAT_NAMES = "sglang, vllm, megatron, tensorrt-llm, bigmoeonedge, mbolt, olmoe, esft, moe-policylang, imatrix"
EXAMPLES = (
    "moetool import --detect dump_0.pt",
    "moetool import sglang dump_0.pt dump_1.pt -o trace.parquet",
    "moetool import imatrix imatrix.gguf -o loads.parquet",
)


@speaks_errors
def import_files(
    name: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help=f"{FORMAT_NAMES}; or auto, which looks at the files. With --detect, a file instead.",
            show_default=False,
        ),
    ],
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE", help="Files or folders of one recording.", show_default=False
        ),
    ] = None,
    detect: importing.DetectOption = False,
    model: importing.ModelOption = None,
    layers: importing.RoutedLayersOption = None,
    num_layers: importing.NumLayersOption = None,
    num_experts: importing.NumExpertsOption = None,
    top_k: importing.TopKOption = None,
    layer_offset: importing.LayerOffsetOption = None,
    micro_batch_size: importing.MicroBatchOption = None,
    output_format: FormatOption = None,
    output: importing.TargetOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn what other tools record of routing into a trace or a load table.

    Formats with tokens become a trace, which every command reads. Formats that only count experts
    become a load table, which balance, place and select read. What a format lacks is left out,
    and the summary on stderr says so; --format json prints the summary to stdout. With --detect,
    the exit code is 3 if a file is of no known format.
    """
    if detect:
        _detect([name, *(files or [])], output_format, output, force=force, quiet=quiet)
        return
    if not files:
        raise UsageError(
            f"'{name}' is followed by no file.",
            hint="Write moetool import FORMAT FILE… -o trace.parquet, or look first with --detect.",
        )
    if output is None or str(output) == "-":
        raise UsageError(
            "What is imported needs a file.", hint="Add -o trace.parquet, or look with --detect."
        )
    with show_status(is_quiet=quiet) as show:
        show("starting")
        from moetool.interchange.imports.run import import_trace
        from moetool.report.imports import RESULT_RENDERERS

        show(f"importing {', '.join(files[:3])}")
        result = import_trace(
            name,
            files,
            output,
            model=model,
            layers=parse_layers(layers),
            num_layers=num_layers,
            num_experts=num_experts,
            top_k=top_k,
            layer_offsets=parse_optional_numbers(layer_offset, option="--layer-offset"),
            micro_batch_size=micro_batch_size,
            overwrite=force,
        )
    chosen = output_format or ReportFormat.TABLE
    if chosen is ReportFormat.TABLE:
        if not quiet:
            sys.stderr.write(RESULT_RENDERERS[chosen](result, see_terminal(sys.stderr)))
        return
    sys.stdout.write(RESULT_RENDERERS[chosen](result))


def _detect(
    files: list[str],
    output_format: ReportFormat | None,
    output: Path | None,
    *,
    force: bool,
    quiet: bool,
) -> None:
    with show_status(is_quiet=quiet) as show:
        show("starting")
        from moetool.interchange.imports.detect import detect_formats, refuse_unknown
        from moetool.report.imports import DETECTION_RENDERERS

    chosen = choose_report_format(output_format, output)
    check_report_path(output, force=force, inputs=[Path(file) for file in files])
    with show_status(is_quiet=quiet) as show:
        show(f"looking at {', '.join(files[:3])}")
        found = detect_formats(files)
    if len(found) == 1:
        refuse_unknown(found)
    print_or_write(DETECTION_RENDERERS[chosen](found, see_output(output)), output, force=force)
    sys.stdout.flush()
    refuse_unknown(found)
