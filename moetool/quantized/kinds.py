"""The kinds of quantization that bitsandbytes offers as weights are loaded."""

from __future__ import annotations

from enum import StrEnum


class Quantization(StrEnum):
    """How bitsandbytes stores weights as they are loaded."""

    NONE = "none"
    INT8 = "int8"
    NF4 = "nf4"
    FP4 = "fp4"


class QuantizedExperts(StrEnum):
    """Which experts the figures are for, under quantization.

    Attributes:
        AS_LOADED: As transformers loads them: bitsandbytes leaves fused experts in their dtype.
        QUANTIZED: Quantized like everything else.
    """

    AS_LOADED = "as-loaded"
    QUANTIZED = "quantized"
