"""Declare the options of `moetool route-trace` that quantize weights while they load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from moetool.cli.options.shared import FLAG
from moetool.quantizing.kinds import Quantization

if TYPE_CHECKING:
    from moetool.quantizing.choice import QuantizationChoice

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


def read_quantization(
    quantization: Quantization, double_quantization: bool, quantize_experts: bool
) -> QuantizationChoice | None:
    """Return the format that was asked for; None if weights stay as they are.

    Raises:
        UsageError: An option has no effect with the format.
    """
    from moetool.quantizing.choice import choose_quantization

    return choose_quantization(
        quantization, double_quantization=double_quantization, quantize_experts=quantize_experts
    )
