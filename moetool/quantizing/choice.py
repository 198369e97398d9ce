"""The choice of a format for a model's weights, as options give it."""

from __future__ import annotations

from dataclasses import dataclass

from moetool.choices import choose, take_flag, without_effect
from moetool.quantizing.kinds import Quantization


@dataclass(frozen=True)
class QuantizationChoice:
    """The weights that are quantized while a model loads, and their format.

    Attributes:
        quantization: The format, other than `none`.
        is_double_quantized: Whether scales of 4-bit weights are quantized too.
        quantizes_experts: Whether routed experts are quantized, or linear layers only.
    """

    quantization: Quantization
    is_double_quantized: bool = False
    quantizes_experts: bool = True

    def __str__(self) -> str:
        """Return it in words, such as `nf4, double quantization, without experts`."""
        parts = [self.quantization.value]
        if self.is_double_quantized:
            parts.append("double quantization")
        if not self.quantizes_experts:
            parts.append("without experts")
        return ", ".join(parts)


def choose_quantization(
    quantization: str | None, *, double_quantization: bool = False, quantize_experts: bool = True
) -> QuantizationChoice | None:
    """Return the choice; None if weights stay as they are.

    Args:
        quantization: `nf4`, `fp4` or `int8`; None or `none` for no quantization.
        double_quantization: Quantize the scales of 4-bit weights too.
        quantize_experts: Quantize routed experts.

    Raises:
        UsageError: The format is unknown, or an option has no effect with it.
    """
    kind = Quantization.NONE
    if quantization is not None:
        kind = choose(quantization, Quantization, name="quantization")
    is_double = take_flag(double_quantization, name="double_quantization")
    with_experts = take_flag(quantize_experts, name="quantize_experts")
    if kind is Quantization.NONE:
        useless = {}
        if is_double:
            useless["--double-quant"] = "double quantization"
        if not with_experts:
            useless["--no-quantize-experts"] = "plain experts"
        if useless:
            raise without_effect(
                useless, because="nothing is quantized", unless="add --quantization"
            )
        return None
    if is_double and kind is Quantization.INT8:
        raise without_effect(
            {"--double-quant": "double quantization"},
            because="int8 has one scale for each row",
            unless="give --quantization nf4 or fp4",
        )
    return QuantizationChoice(kind, is_double, with_experts)
