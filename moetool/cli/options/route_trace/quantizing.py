"""Declare the options of `moetool route-trace` that quantize weights while they load."""

from __future__ import annotations

from typing import Annotated

import typer

from moetool.cli.options.shared import FLAG
from moetool.quantized.kinds import Quantization

_PANEL = "Quantization"

QuantizationOption = Annotated[
    Quantization,
    typer.Option(
        metavar="KIND",
        case_sensitive=False,
        help="Quantize weights by bitsandbytes while they load, one layer after the other: none, "
        "int8, nf4 or fp4.",
        rich_help_panel=_PANEL,
    ),
]
DoubleQuantization = Annotated[
    bool,
    typer.Option(
        "--double-quant",
        metavar=FLAG,
        help="Quantize the scales of 4-bit weights too.",
        rich_help_panel=_PANEL,
    ),
]
QuantizeExperts = Annotated[
    bool,
    typer.Option(
        "--quantize-experts/--no-quantize-experts",
        help="Quantize routed experts too, or linear layers only, as transformers does.",
        rich_help_panel=_PANEL,
    ),
]
