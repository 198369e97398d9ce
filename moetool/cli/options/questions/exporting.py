"""Declare the options of placements written for serving engines, and check them together."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from moetool.cli.options.shared import MODEL_PANEL
from moetool.cli.output import is_file
from moetool.errors import UsageError

EXPORT_PANEL = "Export"


class ExportTarget(StrEnum):
    """Engines that a placement is exported for; vLLM gets advice instead of a file."""

    SGLANG = "sglang"
    TENSORRT_LLM = "tensorrt-llm"
    VLLM_ASCEND = "vllm-ascend"
    EPLB = "eplb"
    KTRANSFORMERS = "ktransformers"
    VLLM = "vllm"


class MethodChoice(StrEnum):
    """Methods whose placement can be exported."""

    CONTIGUOUS = "contiguous"
    EPLB = "eplb"
    COACTIVATION = "coactivation"


HiddenLayersOption = Annotated[
    int | None,
    typer.Option(
        "--num-hidden-layers",
        min=1,
        max=10_000,
        metavar="N",
        help="Layers of the model, dense ones included, for exports that have a row for each.",
        rich_help_panel=MODEL_PANEL,
    ),
]
ExportOption = Annotated[
    ExportTarget | None,
    typer.Option(
        "--export",
        metavar="ENGINE",
        case_sensitive=False,
        help="Write --output for sglang, tensorrt-llm, vllm-ascend, eplb or ktransformers, and the "
        "report to stdout; or advise on vllm.",
        rich_help_panel=EXPORT_PANEL,
    ),
]
MethodOption = Annotated[
    MethodChoice | None,
    typer.Option(
        "--method",
        metavar="METHOD",
        case_sensitive=False,
        help="Placement to export: contiguous, eplb or coactivation. Default: coactivation, or "
        "eplb for a load table.",
        rich_help_panel=EXPORT_PANEL,
    ),
]


def check_export_options(
    export: ExportTarget | None, output: Path | None, *, method: bool, layers: str | None
) -> Path | None:
    """Return the file of the report: the output, unless that is the export's.

    Raises:
        UsageError: Options contradict each other.
    """
    if export is None:
        if method:
            raise UsageError(
                "--method chooses the placement to export, and there is no --export.",
                hint="Leave it out: the report has every method.",
            )
        return output
    if export is ExportTarget.VLLM:
        if is_file(output):
            raise UsageError(
                f"No release of vLLM reads a placement, so there is nothing to write to '{output}'.",
                hint="Leave out --output for settings of vLLM that suit the trace.",
            )
        return output
    if not is_file(output):
        raise UsageError(
            f"--export {export} needs a file to write.", hint="Name one with -o; see --help."
        )
    if layers is not None:
        raise UsageError(
            f"{export} loads a placement of every layer, and --layers leaves some out.",
            hint="Leave out --layers.",
        )
    return None
