"""Formats in which bitsandbytes can store weights when a model is loaded."""

from __future__ import annotations

from enum import StrEnum


class Quantization(StrEnum):
    """bitsandbytes' formats for weights.

    Attributes:
        NONE: Weights stay in their own dtype.
        INT8: 8-bit integers with a scale for each row.
        NF4: 4 bits whose 16 values follow a normal distribution, with a scale for each block.
        FP4: 4-bit floats with a scale for each block.
    """

    NONE = "none"
    INT8 = "int8"
    NF4 = "nf4"
    FP4 = "fp4"


class QuantizedExperts(StrEnum):
    """Treatment of routed experts when a model is quantized.

    Attributes:
        AS_LOADED: Experts as transformers loads them: bitsandbytes leaves fused ones in their dtype.
        QUANTIZED: Experts quantized like everything else.
    """

    AS_LOADED = "as-loaded"
    QUANTIZED = "quantized"
