"""Conversions of the files of a quantized checkpoint to a model's parameters.

Names in the files are the model's own. Codes and scales of experts are parameters. Those of a linear
layer in bitsandbytes' format become one parameter.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import (
    ConversionOps,
    WeightConverter,
    build_glob_alternation,
)

_WEIGHT = "weight"


def find_operation(linears: Any) -> tuple[Any, list[str]]:
    """Return the operation by which transformers loads a quantized weight, and its tensors' names.

    Args:
        linears: transformers' quantizer of linear layers.
    """
    if hasattr(linears, "get_load_operations"):
        return linears.get_load_operations()["deserialize"], linears.serialized_names["weight"]
    # Before transformers 5.21, both are only in the conversion of quantized checkpoints.
    (conversion,) = linears.get_weight_conversions()
    return type(conversion.operations[0]), list(conversion.source_patterns)


def make_conversions(quantizer: Any, operation: Any, names: list[str]) -> list[WeightConverter]:
    """Return the conversions that load all weights, those of quantized linear layers among them.

    transformers' own would take a module that is named `…_weight` for a weight.

    Args:
        quantizer: Passed on to the operation.
        operation: transformers' operation that loads a quantized weight.
        names: Names that the tensors of a weight may have within its module.
    """
    sources = [rf"\.{re.escape(name)}$" for name in names]
    joining = LoadLinear(quantizer, operation(quantizer), dict(zip(sources, names, strict=True)))
    operations: list[ConversionOps] = [joining]
    return [WeightConverter(sources, f".{_WEIGHT}", operations)]


class LoadLinear(ConversionOps):
    """Joins the tensors of a linear layer's weight, and converts weights that aren't quantized."""

    def __init__(self, quantizer: Any, operation: Any, names: dict[str, str]) -> None:
        # Its presence keeps transformers from converting scales to the model's dtype.
        self.hf_quantizer = quantizer
        self._operation = operation
        self._names = names

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the weight under its path."""
        model: PreTrainedModel = kwargs["model"]
        full_layer_name: str = kwargs["full_layer_name"]
        tensors = {
            self._names[source]: value[0] if isinstance(value, list) else value
            for source, value in input_dict.items()
        }
        if self.hf_quantizer.is_quantized_linear(model, full_layer_name):
            if len(tensors) == 1:
                raise ValueError(f"{full_layer_name} has no scales")
            loaded = self._operation.convert(
                tensors, source_patterns=source_patterns, target_patterns=target_patterns, **kwargs
            )
            return {full_layer_name: loaded[_WEIGHT]}
        weight = tensors.pop(_WEIGHT)
        if tensors:
            raise ValueError(f"{full_layer_name} has {next(iter(tensors))}")
        return {full_layer_name: weight.to(_find_dtype(model, full_layer_name))}


def _find_dtype(model: PreTrainedModel, path: str) -> torch.dtype:
    """Return the dtype that transformers loads a plain parameter in."""
    plan: dict[str, torch.dtype] = model._get_dtype_plan(model.dtype)
    if plan:
        patterns, pattern_of, _ = build_glob_alternation(list(plan))
        found = patterns.search(path)
        if found is not None and found.lastgroup is not None:
            return plan[pattern_of[found.lastgroup]]
    dtype: torch.dtype = model.get_parameter_or_buffer(path).dtype
    return dtype
