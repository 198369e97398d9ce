"""The size of weights that stay packed as they are published, by their shapes or their files."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from moetool.anatomy.headers.other_tensors import Reason
from moetool.anatomy.headers.table import count_headers
from moetool.checkpoint.subject import Subject

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Tensors in files that the running model doesn't hold.
_NOT_HELD = (
    Reason.MTP,
    Reason.BEYOND,
    Reason.TIED_HEAD,
    Reason.SHARED_EMBEDDING,
    Reason.ADAPTERS,
    Reason.OPTIMIZER,
)
# The OCP microscaling formats store two weights in a byte, with a byte of scale for each 32.
_MX_GROUP = 32


def count_packed_bytes(subject: Subject, skeleton: PreTrainedModel) -> int | None:
    """Return the bytes in the files that a model holds; None without files, or if some are missing.

    Layers that the model doesn't build are left out, and so are second copies of tensors that it
    holds only once.

    Args:
        subject: The model, with the headers of its files.
        skeleton: The model as transformers builds it.
    """
    if subject.headers is None:
        return None
    table = count_headers(subject.headers, subject.config)
    num_layers = getattr(skeleton.config.get_text_config(), "num_hidden_layers", None)
    if isinstance(num_layers, int) and table.num_layers < num_layers:
        return None
    left_out = sum(group.num_bytes for group in table.other_tensors if group.reason in _NOT_HELD)
    return sum(tensor.num_bytes for tensor in subject.headers.tensors) - left_out


def pack_mxfp4(skeleton: PreTrainedModel, stated: Mapping[str, Any]) -> PreTrainedModel | None:
    """Return a copy of a skeleton with experts as gpt-oss publishes them; None for other models.

    transformers packs only the experts of gpt-oss. Two inputs of a row share a byte, and every 32
    of them share one byte of scale. Biases stay as they are.

    Args:
        skeleton: The model in full precision, on the meta device. It is left as it is.
        stated: The configuration's quantization settings.
    """
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
    from transformers.quantizers.quantizers_utils import should_convert_module

    packed = copy.deepcopy(skeleton)
    left_out = stated.get("modules_to_not_convert")
    has_packed = False
    for path, module in packed.named_modules():
        if isinstance(module, GptOssExperts) and should_convert_module(path, left_out):
            for name in ("gate_up_proj", "down_proj"):
                _pack(module, name)
            has_packed = True
    return packed if has_packed else None


def _pack(module: nn.Module, name: str) -> None:
    # (num_experts, inputs, outputs) in the model, and with outputs first in the files.
    num_experts, inputs, outputs = module.get_parameter(name).shape
    rows = (num_experts, outputs)
    blocks = torch.empty((*rows, -(-inputs // 2)), dtype=torch.uint8, device="meta")
    scales = torch.empty((*rows, -(-inputs // _MX_GROUP)), dtype=torch.uint8, device="meta")
    module._parameters[name] = nn.Parameter(blocks, requires_grad=False)
    module.register_buffer(f"{name}_scales", scales)
