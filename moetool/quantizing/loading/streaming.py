"""Experts packed one after the other while their tensors are read.

transformers reads all tensors of a fused parameter before it fuses them, and holds both. Where a
checkpoint has the matrices of each expert apart, its conversions can be applied to one expert at a
time. Then one expert is unquantized in memory, and not a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers.core_model_loading import (
    Concatenate,
    ConversionOps,
    Interleave,
    MergeModulelist,
    Transpose,
    WeightConverter,
)

from moetool.quantizing.loading.stacks import find_matrix
from moetool.quantizing.packing import ExpertMatrix


def pack_while_reading(conversions: Sequence[Any]) -> list[Any]:
    """Return conversions that pack experts one by one, where they can be applied to a single one."""
    for conversion in conversions:
        if type(conversion) is WeightConverter and _is_separable(conversion.operations):
            conversion.__class__ = PackingConverter
    return list(conversions)


def _is_separable(operations: Sequence[ConversionOps]) -> bool:
    """Return whether operations stack experts along the first dimension, and leave that alone."""
    first, *others = operations
    if type(first) is not MergeModulelist or first.dim != 0:
        return False
    for operation in others:
        if type(operation) in (Concatenate, Interleave):
            dims = [getattr(operation, "dim", 0)]
        elif type(operation) is Transpose:
            dims = [operation.dim0, operation.dim1]
        else:
            return False
        if any(dim not in (1, 2, -1, -2) for dim in dims):
            return False
    return True


class PackingConverter(WeightConverter):
    """Fuses and packs one expert of a stack after the other, and hands the packed stack over.

    Whatever isn't a stack of experts that shall be packed, or can't be fused to one, is left to its
    base class.
    """

    __slots__ = ()

    def convert(
        self,
        layer_name: str,
        model: Any = None,
        config: Any = None,
        hf_quantizer: Any = None,
        loading_info: Any = None,
    ) -> dict[str, Any]:
        """Return the tensors that take the place of a parameter, by path."""
        operation: Any = self.quantization_operation
        matrix = None
        if hf_quantizer is not None and operation is not None and loading_info is not None:
            matrix = find_matrix(model, layer_name)
        if matrix is None or not self._has_all(matrix):
            converted: dict[str, Any] = super().convert(
                layer_name,
                model=model,
                config=config,
                hf_quantizer=hf_quantizer,
                loading_info=loading_info,
            )
            return converted
        details = {"model": model, "missing_keys": loading_info.missing_keys}
        weights = self._iter_experts(matrix, full_layer_name=layer_name, config=config, **details)
        packed = operation.packing.pack_each(weights, matrix)
        taken: dict[str, Any] = operation.take_packed(layer_name, packed, **details)
        return taken

    def _has_all(self, matrix: ExpertMatrix) -> bool:
        """Return whether every expert has a tensor of each kind, which is read when it is needed."""
        kinds = list(self.collected_tensors.values())
        are_all = len(kinds) == len(self.source_patterns) and all(
            len(tensors) == matrix.num_experts for tensors in kinds
        )
        return are_all and all(callable(tensor) for tensors in kinds for tensor in tensors)

    def _iter_experts(self, matrix: ExpertMatrix, **details: Any) -> Iterator[torch.Tensor]:
        """Yield the plain weights of each expert, in the order of the plain parameter."""
        collected: dict[str, list[Any]] = dict(self.collected_tensors)
        self.collected_tensors.clear()
        for expert in range(matrix.num_experts):
            parts: dict[str, Any] = {
                kind: [tensors[expert]()] for kind, tensors in collected.items()
            }
            for operation in self.operations:
                parts = operation.convert(
                    parts,
                    source_patterns=self.source_patterns,
                    target_patterns=self.target_patterns,
                    **details,
                )
            (fused,) = parts.values()
            del parts
            yield fused.squeeze(0)
            del fused
