"""mxfp4 as gpt-oss is published in it: half a byte for each weight, a byte for each 32 of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from moetool.anatomy.skeleton.copies import copy_skeleton
from moetool.memory.loaded.packed.kernels_on_meta import offer_kernels_on_meta

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The OCP microscaling formats store two weights in a byte, with a byte of scale for each 32.
_MX_GROUP = 32
_MATRICES = ("gate_up_proj", "down_proj")
# On GPUs of this generation alone, kernels want weights in tiles, which pads them (outputs, bytes
# of inputs): `HopperMXValueLayout` in `kernels-community/gpt-oss-triton-kernels`.
_HOPPER = 9
_TILE_ON_HOPPER = (16, 32)


def pack_mxfp4(
    skeleton: PreTrainedModel,
    stated: Mapping[str, Any],
    *,
    compute_capability: tuple[int, int] | None = None,
) -> PreTrainedModel | None:
    """Return a copy of a skeleton with experts as a GPU holds them packed; None for other models.

    transformers packs only the experts of gpt-oss. Two inputs of a row share a byte, and every 32
    of them share one byte of scale. Biases become float32. The modules stay those of the skeleton.

    Args:
        skeleton: The model in full precision, on the meta device. It is left as it is.
        stated: The configuration's quantization settings.
        compute_capability: The GPU's; None if it is unknown, and then nothing is padded.
    """
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
    from transformers.quantizers.quantizers_utils import should_convert_module

    packed = copy_skeleton(skeleton)
    left_out = stated.get("modules_to_not_convert")
    has_packed = False
    for path, module in packed.named_modules():
        if isinstance(module, GptOssExperts) and should_convert_module(path, left_out):
            for name in _MATRICES:
                # (experts, inputs, outputs) in the model, and with outputs first in the files.
                num_experts, inputs, outputs = module.get_parameter(name).shape
                sizes = (num_experts, outputs, -(-inputs // 2))
                _replace(module, name, sizes, num_inputs=inputs, capability=compute_capability)
                bias = module.get_parameter(f"{name}_bias")
                module._parameters[f"{name}_bias"] = _make_parameter(bias.shape, torch.float32)
            has_packed = True
    return packed if has_packed else None


def convert_to_mxfp4(
    skeleton: PreTrainedModel,
    stated: Mapping[str, Any],
    *,
    compute_capability: tuple[int, int] | None = None,
) -> PreTrainedModel:
    """Return a copy of a skeleton with the modules that transformers loads packed weights into.

    They are built by transformers' own code, and run under `offer_kernels_on_meta`. Weights that
    it hides in objects of the kernels' are parameters here, and their scales are buffers.
    """
    import transformers
    from transformers.integrations.mxfp4 import Mxfp4GptOssExperts, replace_with_mxfp4_linear

    converted: Any = copy_skeleton(skeleton)
    config_class: Any = getattr(transformers, "Mxfp4Config")  # noqa: B009 - loaded lazily
    with offer_kernels_on_meta():
        replace_with_mxfp4_linear(
            converted,
            modules_to_not_convert=stated.get("modules_to_not_convert"),
            quantization_config=config_class(),
        )
    for module in converted.modules():
        if isinstance(module, Mxfp4GptOssExperts):
            for name in _MATRICES:
                num_experts, outputs, *inputs = module.get_parameter(name).shape
                num_bytes = inputs[0] if len(inputs) == 1 else inputs[0] * inputs[1]
                sizes = (num_experts, outputs, num_bytes)
                _replace(
                    module, name, sizes, num_inputs=2 * num_bytes, capability=compute_capability
                )
    model: PreTrainedModel = converted.train(skeleton.training)
    return model


def _replace(
    module: nn.Module,
    name: str,
    sizes: tuple[int, int, int],
    *,
    num_inputs: int,
    capability: tuple[int, int] | None,
) -> None:
    num_experts, outputs, num_bytes = sizes
    rows, columns = outputs, num_bytes
    if capability is not None and capability[0] == _HOPPER:
        rows, columns = (
            -(-size // tile) * tile
            for size, tile in zip((outputs, num_bytes), _TILE_ON_HOPPER, strict=True)
        )
    module._parameters[name] = _make_parameter((num_experts, rows, columns), torch.uint8)
    scales = torch.empty(
        (num_experts, outputs, -(-num_inputs // _MX_GROUP)), dtype=torch.uint8, device="meta"
    )
    module.register_buffer(f"{name}_scales", scales)


def _make_parameter(shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)
