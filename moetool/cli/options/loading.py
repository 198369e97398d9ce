"""Declare the options on how a model is loaded and run in an estimate, and read them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from moetool.cli.options.shared import FLAG, make_dtype_option
from moetool.errors import UsageError
from moetool.memory.scenario import Dtype, ExpertsImplementation
from moetool.quantizing.kinds import Quantization, QuantizedExperts

_LOADING_PANEL = "How the model is loaded and run"

DtypeOption = Annotated[Dtype, make_dtype_option("configuration", panel=_LOADING_PANEL)]
QuantizationOption = Annotated[
    Quantization,
    typer.Option(
        metavar="KIND",
        case_sensitive=False,
        help="Quantization by bitsandbytes while loading: none, int8, nf4 or fp4.",
        rich_help_panel=_LOADING_PANEL,
    ),
]
DoubleQuantization = Annotated[
    bool,
    typer.Option(
        "--double-quantization",
        metavar=FLAG,
        help="Quantize the scales of 4-bit weights too.",
        rich_help_panel=_LOADING_PANEL,
    ),
]
Experts = Annotated[
    QuantizedExperts,
    typer.Option(
        metavar="HOW",
        case_sensitive=False,
        help="Experts under --quantization. as-loaded: as transformers loads them, which leaves "
        "fused experts in their dtype. quantized: packed, as moetool loads them to trace.",
        rich_help_panel=_LOADING_PANEL,
    ),
]
ExpertsImplementationOption = Annotated[
    ExpertsImplementation | None,
    typer.Option(
        metavar="NAME",
        case_sensitive=False,
        help="Experts implementation: eager, grouped_mm or batched_mm. Default: transformers' "
        "choice.",
        rich_help_panel=_LOADING_PANEL,
    ),
]


def read(
    quantization: Quantization,
    double_quantization: bool,
    experts: QuantizedExperts,
    dtype: Dtype = Dtype.AUTO,
    experts_implementation: ExpertsImplementation | None = None,
) -> dict[str, Any]:
    """Return the fields of a `Scenario` that these options set.

    Raises:
        UsageError: Quantized experts are asked for, and no quantization.
    """
    if experts is QuantizedExperts.QUANTIZED and quantization is Quantization.NONE:
        raise UsageError(
            "Quantized experts were asked for, but no quantization.",
            hint="Leave out --experts, or choose --quantization int8, nf4 or fp4.",
        )
    return {
        "quantization": quantization,
        "is_double_quantized": double_quantization,
        "experts": experts,
        "dtype": dtype,
        "experts_implementation": experts_implementation,
    }
