"""The quantization method that a loaded configuration names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def find_quantization_method(config: PreTrainedConfig) -> str | None:
    """Return the method by which a checkpoint is quantized; None if it is not."""
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return None
    if isinstance(quantization, dict):
        return str(quantization.get("quant_method"))
    method = getattr(quantization, "quant_method", quantization)
    return str(getattr(method, "value", method))
