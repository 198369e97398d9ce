"""A quantizer of transformers that hands over each parameter instead of keeping it in the model.

`from_pretrained` reads, renames, fuses and quantizes parameters in the same way as for a model that is
quantized while it loads. They are written, and their places in the model stay empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizers_utils import get_module_from_name

from moetool.quantizing.choice import QuantizationChoice
from moetool.quantizing.quantizer import ExpertsConfig, ExpertsQuantizer, PackWeights
from moetool.quantizing.saving.allocator import release_freed

_METHOD = "moetool_saving"


class SavingStopped(BaseException):
    """A parameter couldn't be handed over: transformers would go on with the next one.

    Attributes:
        error: The reason.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass
class Handover:
    """The receiver of parameters.

    Attributes:
        write: Takes the name and the data of a tensor.
        unfit: Both shapes, in words, of parameters whose shape isn't the model's, by path.
    """

    write: Callable[[str, torch.Tensor], None]
    unfit: dict[str, str] = field(default_factory=dict)


@register_quantization_config(_METHOD)
class SavingConfig(ExpertsConfig):
    """The choice of what to quantize, with the receiver of parameters."""

    handover: Handover

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.quant_method = _METHOD

    def __deepcopy__(self, memo: dict[int, Any]) -> SavingConfig:
        """Return itself: the receiver is an open file."""
        return self


@register_quantizer(_METHOD)
class SavingQuantizer(ExpertsQuantizer):
    """Quantizes like its base class, one parameter at a time."""

    def param_needs_quantization(
        self, model: PreTrainedModel, param_name: str, **kwargs: Any
    ) -> bool:
        """Return whether a parameter passes through the operation that hands it over.

        Those that have another dtype than the model don't: before the operation they would be
        converted to the model's. They are few and small, and stay in the model until its end.
        """
        if super().param_needs_quantization(model, param_name, **kwargs):
            return True
        return model.get_parameter_or_buffer(param_name).dtype is model.dtype

    def get_quantize_ops(self) -> Any:
        """Return the operation that quantizes what shall be, and hands over everything."""
        config: Any = self.quantization_config
        handover: Handover = config.handover
        return _HandOver(handover, super().get_quantize_ops(), super().param_needs_quantization)


def make_saving_config(choice: QuantizationChoice, handover: Handover) -> SavingConfig:
    """Return the `quantization_config` that hands over a model's quantized parameters."""
    config = SavingConfig(
        quantization=choice.quantization.value,
        double_quantization=choice.is_double_quantized,
        quantize_experts=choice.quantizes_experts,
    )
    config.handover = handover
    return config


class _HandOver(ConversionOps):
    def __init__(
        self, handover: Handover, quantize: PackWeights, needs: Callable[..., bool]
    ) -> None:
        self.packing = quantize.packing
        self._handover = handover
        self._quantize = quantize
        self._needs = needs

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Hand over parameters, and return none for the model."""
        del source_patterns, target_patterns
        model: PreTrainedModel = kwargs["model"]
        missing_keys: set[str] = kwargs["missing_keys"]
        try:
            for path in list(input_dict):
                value = input_dict.pop(path)
                value = value[0] if isinstance(value, list) else value
                self._hand_over(path, value, model, missing_keys)
        except Exception as error:
            raise SavingStopped(error) from error
        return {}

    def _hand_over(
        self, path: str, value: torch.Tensor, model: PreTrainedModel, missing_keys: set[str]
    ) -> None:
        empty = model.get_parameter_or_buffer(path)
        module, _ = get_module_from_name(model, path)
        shape = value.shape
        if issubclass(getattr(module, "source_cls", object), Conv1D):
            shape = shape[::-1]
        if shape != empty.shape:
            seen, wanted = (" x ".join(map(str, each)) for each in (shape, empty.shape))
            self._handover.unfit[path] = f"{seen} instead of {wanted}"
            return
        parts: dict[str, Any] = {path: value}
        if self._needs(model, path):
            parts = self._quantize.convert({path: value}, [], [], model=model)
        del value
        self._write(parts, empty, missing_keys)

    def take_packed(
        self, path: str, packed: dict[str, torch.Tensor], *, model: Any, missing_keys: set[str]
    ) -> dict[str, Any]:
        """Hand over a stack of experts that is packed already, and return none for the model."""
        parts = self._quantize.take_packed(path, packed)
        packed.clear()
        try:
            self._write(parts, model.get_parameter_or_buffer(path), missing_keys)
        except Exception as error:
            raise SavingStopped(error) from error
        return {}

    def _write(self, parts: dict[str, Any], empty: Any, missing_keys: set[str]) -> None:
        for name, part in parts.items():
            missing_keys.discard(name)
            for stored, tensor in _iter_serialized(name, part):
                self._handover.write(stored, tensor)
            del part
        parts.clear()
        release_freed()
        # transformers fills in parameters that no file holds.
        empty._is_hf_initialized = True


def _iter_serialized(path: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors that hold a parameter in a file, as bitsandbytes' layers save theirs."""
    yield path, value.data
    state = getattr(value, "quant_state", None)
    if state is not None:
        for part, tensor in state.as_dict(packed=True).items():
            yield f"{path}.{part}", tensor
    elif getattr(value, "SCB", None) is not None:
        owner = path.removesuffix("weight")
        yield f"{owner}SCB", value.SCB
        # Rows, as opposed to the orders that older GPUs needed.
        yield f"{owner}weight_format", torch.tensor(0, dtype=torch.uint8)
