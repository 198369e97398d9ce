"""A quantizer of transformers that packs routed experts while a model's weights load.

Importing this module registers it, so that `from_pretrained` accepts `ExpertsConfig` as its
`quantization_config`, and loads folders whose config.json states it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name
from transformers.utils.quantization_config import QuantizationConfigMixin

from moetool.anatomy.routing.moe_layers import find_experts
from moetool.quantizing.choice import QuantizationChoice
from moetool.quantizing.kinds import Quantization
from moetool.quantizing.layout import list_modules_left_out, list_packable
from moetool.quantizing.linear import make_lean
from moetool.quantizing.loading.packed_modules import list_packed_names, pack_module
from moetool.quantizing.loading.stacks import find_matrix
from moetool.quantizing.loading.streaming import pack_while_reading
from moetool.quantizing.packing import Packing
from moetool.quantizing.saving.reloading import find_operation, make_conversions
from moetool.registration import METHOD, remove_placeholders

remove_placeholders()


@register_quantization_config(METHOD)
class ExpertsConfig(QuantizationConfigMixin):
    """Linear layers in a format of bitsandbytes, and routed experts in the same format.

    Attributes:
        quantization: `nf4`, `fp4` or `int8`.
        double_quantization: Whether scales of 4-bit weights are quantized too.
        quantize_experts: Whether routed experts are quantized.
    """

    def __init__(
        self,
        quantization: str = "nf4",
        double_quantization: bool = False,
        quantize_experts: bool = True,
        **_: object,
    ) -> None:
        # transformers takes registered names as well as its own.
        self.quant_method: Any = METHOD
        self.quantization = Quantization(quantization).value
        self.double_quantization = double_quantization
        self.quantize_experts = quantize_experts

    @property
    def choice(self) -> QuantizationChoice:
        """The format, and the weights that have it."""
        return QuantizationChoice(
            Quantization(self.quantization), self.double_quantization, self.quantize_experts
        )

    @property
    def packing(self) -> Packing:
        """The format of the experts."""
        return Packing(Quantization(self.quantization), self.double_quantization)

    def make_linear_config(self) -> BitsAndBytesConfig:
        """Return the configuration of the linear layers, as transformers takes it."""
        make: Any = BitsAndBytesConfig
        if not self.packing.is_4bit:
            settings: dict[str, Any] = {"load_in_8bit": True}
        else:
            settings = {
                "load_in_4bit": True,
                "bnb_4bit_quant_type": self.quantization,
                "bnb_4bit_use_double_quant": self.double_quantization,
            }
        config: BitsAndBytesConfig = make(**settings)
        return config


@register_quantizer(METHOD)
class ExpertsQuantizer(HfQuantizer):
    """Replaces linear layers by bitsandbytes' own, and packs the matrices of experts.

    What regards linear layers is left to transformers' quantizers for bitsandbytes.
    """

    requires_calibration = False

    def __init__(self, quantization_config: ExpertsConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._config = quantization_config
        self.packing = quantization_config.packing
        make: Any = Bnb4BitHfQuantizer if self.packing.is_4bit else Bnb8BitHfQuantizer
        self._linears: Any = make(
            quantization_config.make_linear_config(), pre_quantized=self.pre_quantized
        )

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Check that bitsandbytes can run where the model shall be."""
        self._linears.validate_environment(*args, **kwargs)

    def update_device_map(self, device_map: Any) -> Any:
        """Return the device map, by default that of transformers for bitsandbytes."""
        return self._linears.update_device_map(device_map)

    def adjust_max_memory(self, max_memory: dict[str, Any]) -> dict[str, Any]:
        """Leave room for what quantizing takes."""
        adjusted: dict[str, Any] = self._linears.adjust_max_memory(max_memory)
        return adjusted

    def param_element_size(
        self, model: PreTrainedModel, param_name: str, param: torch.Tensor
    ) -> float:
        """Return the bytes of an element of a loaded parameter."""
        module, name = get_module_from_name(model, param_name)
        if name in list_packed_names(module):
            matrix = find_matrix(model, param_name)
            if matrix is None:
                return param.element_size()
            # A plain parameter may hold the place of the codes.
            shape, dtype = self.packing.list_tensors(matrix)[matrix.name]
            return math.prod(shape) * dtype.itemsize / param.numel()
        size: float = self._linears.param_element_size(model, param_name, param)
        return size

    def param_needs_quantization(
        self, model: PreTrainedModel, param_name: str, **kwargs: Any
    ) -> bool:
        """Return whether a parameter is quantized when it is loaded."""
        if find_matrix(model, param_name) is not None:
            return True
        needs: bool = self._linears.param_needs_quantization(model, param_name, **kwargs)
        return needs

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, **_: object
    ) -> PreTrainedModel:
        prepare_model(model, self._config, self._linears, is_quantized=self.pre_quantized)
        return model

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **_: object
    ) -> PreTrainedModel:
        make_lean(model)
        # `save_pretrained` would undo them. Quantized weights keep the model's own names in files.
        loaded: Any = model
        loaded._weight_conversions = []
        return model

    def get_quantize_ops(self) -> PackWeights:
        """Return the operation that follows those that fuse the weights of a parameter."""
        return PackWeights(self.packing, self._linears)

    def update_weight_conversions(
        self, weight_conversions: list[Any], model: Any = None
    ) -> list[Any]:
        """Return the conversions of files: those of quantized weights have the model's names."""
        del model
        if not self.pre_quantized:
            return pack_while_reading(weight_conversions)
        return [*make_conversions(self, *find_operation(self._linears))]

    def is_quantized_linear(self, model: PreTrainedModel, path: str) -> bool:
        """Return whether a parameter is the weight of a quantized linear layer."""
        is_weight: bool = self._linears.param_needs_quantization(model, path)
        return is_weight

    def is_serializable(self) -> bool:
        """Return whether the model can be saved: its state dict holds all that is needed."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether adapters can be trained: packed experts pass no gradients to their weights."""
        return False


class PackWeights(ConversionOps):
    """Quantizes one parameter, which is the only plain one at that time."""

    def __init__(self, packing: Packing, linears: Any) -> None:
        self.packing = packing
        self._linears = linears

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the tensors that take the place of some parameters, by path."""
        del source_patterns, target_patterns
        model: PreTrainedModel = kwargs.pop("model")
        converted: dict[str, Any] = {}
        for path, value in input_dict.items():
            weight = value[0] if isinstance(value, list) else value
            matrix = find_matrix(model, path)
            if matrix is not None:
                converted |= self.take_packed(path, self.packing.quantize(weight, matrix))
            elif self._linears.param_needs_quantization(model, path):
                operation = self._linears.get_quantize_ops()
                converted |= operation.convert({path: weight}, model=model, **kwargs)
            else:
                converted[path] = weight
        return converted

    def take_packed(
        self, path: str, packed: dict[str, torch.Tensor], **_: object
    ) -> dict[str, Any]:
        """Return the tensors that take the place of a stack of experts, by path."""
        owner = path.rpartition(".")[0]
        return {
            f"{owner}.{name}": nn.Parameter(tensor, requires_grad=False)
            for name, tensor in packed.items()
        }


def make_config(choice: QuantizationChoice) -> ExpertsConfig:
    """Return the `quantization_config` of a choice, for `from_pretrained`."""
    return ExpertsConfig(
        choice.quantization.value, choice.is_double_quantized, choice.quantizes_experts
    )


def prepare_model(
    model: PreTrainedModel, config: ExpertsConfig, linears: Any, *, is_quantized: bool
) -> None:
    """Make a model on the meta device ready to load quantized weights, in place.

    Args:
        model: With plain modules, in the dtype that it shall have.
        config: What to quantize.
        linears: transformers' quantizer for linear layers.
        is_quantized: Whether the files hold quantized weights.
    """
    found = find_experts(model)
    packable = list_packable(model, config.packing, found=found) if config.quantize_experts else []
    linears.modules_to_not_convert = list_modules_left_out(model, found=found)
    # The dtype of hidden states: by default transformers would multiply in float32.
    linears.quantization_config.bnb_4bit_compute_dtype = model.dtype
    for _, module, matrices in packable:
        pack_module(module, matrices, config.packing, keeps_plain=not is_quantized)
    replace: Any = replace_with_bnb_linear
    replace(
        model,
        modules_to_not_convert=linears.modules_to_not_convert,
        quantization_config=linears.quantization_config,
        pre_quantized=is_quantized,
    )
    _tie_scales(model, config.packing)


def _tie_scales(model: PreTrainedModel, packing: Packing) -> None:
    """Tie the scales of matrices that are tied themselves (DiffusionGemma)."""
    tied: dict[str, str] = model.all_tied_weights_keys
    for target, source in list(tied.items()):
        matrix = find_matrix(model, target)
        if matrix is None:
            continue
        for name in packing.list_tensors(matrix):
            suffix = name.removeprefix(matrix.name)
            tied[f"{target}{suffix}"] = f"{source}{suffix}"
