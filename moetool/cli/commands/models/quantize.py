"""Run `moetool quantize`: a checkpoint in 4 or 8 bits, its routed experts included."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moetool.cli.errors import speaks_errors
from moetool.cli.observer import TerminalObserver
from moetool.cli.options.completion import complete_models
from moetool.cli.options.route_trace.quantizing import DoubleQuantization, QuantizeExperts
from moetool.cli.options.shared import (
    FLAG,
    MODEL_PANEL,
    OUTPUT_PANEL,
    QuietOption,
    RevisionOption,
    TrustOption,
)
from moetool.errors import UsageError
from moetool.quantizing.kinds import Quantization
from moetool.wording import format_bytes, number_of

SUMMARY = "Write a checkpoint in 4 or 8 bits."
EXAMPLES = (
    "moetool quantize demo -o demo-nf4",
    "moetool quantize org/model --quantization int8 -o model-int8",
    "moetool quantize ./my-model --double-quant -o my-model-nf4",
)


@speaks_errors
def quantize(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A folder with safetensors, a Hub id (org/name) or 'demo'.",
            show_default=False,
            autocompletion=complete_models,
            rich_help_panel=MODEL_PANEL,
        ),
    ],
    quantization: Annotated[
        Quantization,
        typer.Option(
            metavar="KIND",
            case_sensitive=False,
            help="Format of bitsandbytes: nf4, fp4 or int8.",
            rich_help_panel="Quantization",
        ),
    ] = Quantization.NF4,
    double_quantization: DoubleQuantization = False,
    quantize_experts: QuantizeExperts = True,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FOLDER",
            help="The folder to write. It appears when it is complete.",
            show_default=False,
            rich_help_panel=OUTPUT_PANEL,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            metavar=FLAG,
            help="Replace a folder that this command wrote.",
            rich_help_panel=OUTPUT_PANEL,
        ),
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Write a checkpoint whose linear layers and routed experts are quantized by bitsandbytes.

    One layer is in memory at a time. moetool loads what it writes, and so does transformers after
    `import moetool`.
    """
    if output is None:
        raise UsageError("The folder to write is missing.", hint="Add -o with its name.")
    with TerminalObserver(is_quiet=quiet) as observer:
        observer.step("starting")
        from moetool.library.quantize_checkpoint import quantize_checkpoint

        observer.step(f"quantizing {model}")
        written = quantize_checkpoint(
            model,
            output,
            quantization,
            double_quant=double_quantization,
            quantize_experts=quantize_experts,
            overwrite=force,
            revision=revision,
            trust_remote_code=trust_remote_code,
            announce=observer.announce,
            advance=lambda num_done, num_all: observer.count(num_done, num_all, "tensors"),
        )
        observer.announce(
            f"wrote {output}: {format_bytes(written.tensor_bytes)} of tensors in "
            f"{number_of(written.num_files, 'file')} ({written.quantization}), made of "
            f"{format_bytes(written.source_tensor_bytes)}"
        )
