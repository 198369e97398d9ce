"""The roles of the tensors in a checkpoint's files: parameters, packed or not, or something else.

Quantized files hold scales next to weights, and weights packed several to an element. Scales are
recognised by their names and by the weights next to them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple

from moetool.anatomy.headers.name_parts import SCALE_PARTS, WEIGHT_PARTS, split_name
from moetool.anatomy.headers.packed_weights import INTEGERS, count_packed
from moetool.checkpoint.headers.tensor_headers import TensorHeader
from moetool.checkpoint.stated.packing import Packing, read_packing

# Persistent state of modules that no training step changes. Biases that only select experts are
# parameters in the few families whose names are excluded here.
_BUFFER = re.compile(
    r"(?<!moe_statics\.)(?<!experts\.)e_score_correction_bias$"
    r"|\bexpert_bias$|router_bias$|balancing_biases$|(mlp|ffn)\.gate\.bias$"
    r"|layer_scalar$|(input|output)_(min|max)$|slope_rate$|(query|key|diagonal)_decay$"
    r"|rotary_emb\.\w*inv_freq$|running_(mean|var)$|final_logits_bias$"
)
# A cheap test before the expression above, because few of the many tensors are buffers.
_BUFFER_ENDINGS = (
    "bias",
    "biases",
    "layer_scalar",
    "_min",
    "_max",
    "slope_rate",
    "_decay",
    "inv_freq",
    "running_mean",
    "running_var",
)
# In other families, the same name is that of a buffer.
_TRAINED = {"afmoe": re.compile(r"\.mlp\.expert_bias$")}
# Tables of numbers that no format packs weights into.
_INDEX = re.compile(r"(ids?|idxs?|index|indexes|tid2eid|mask|num_batches_tracked|version|\.bias)$")


class Role(StrEnum):
    """The role of a tensor.

    Attributes:
        PARAMETER: A weight, possibly packed.
        SCALE: Data for scaling, shifting, ordering or looking up quantized weights.
        BUFFER: State that is not a parameter, such as biases that only select experts.
    """

    PARAMETER = "parameter"
    SCALE = "scale"
    BUFFER = "buffer"


class StoredTensor(NamedTuple):
    """A tensor and its role. A plain tuple, because a checkpoint may have 100,000 of them.

    Attributes:
        header: The tensor as the file describes it.
        role: The tensor's role.
        num_params: The number of parameters in it; None if its packing is unknown.
    """

    header: TensorHeader
    role: Role
    num_params: int | None


def read_stored(
    tensors: Iterable[TensorHeader], config: Mapping[str, object]
) -> list[StoredTensor]:
    """Return the tensors of a checkpoint with their roles, in their order.

    Args:
        tensors: All tensors of the checkpoint.
        config: Its config.json, which states how weights are packed.
    """
    tensors = tuple(tensors)
    split = [split_name(tensor.name) for tensor in tensors]
    groups: dict[str, dict[str, TensorHeader]] = {}
    sizes: set[int] = set()
    for (stem, part), tensor in zip(split, tensors, strict=True):
        groups.setdefault(stem, {})[part] = tensor
        sizes.update(tensor.shape)
    packing = read_packing(config)
    model_type = config.get("model_type")
    trained = _TRAINED.get(model_type) if isinstance(model_type, str) else None
    stored = []
    for (stem, part), tensor in zip(split, tensors, strict=True):
        parts = groups[stem]
        role = _find_role(tensor, parts, part=part, trained=trained)
        num_params: int | None = 0
        if role is Role.PARAMETER:
            num_params = _count(tensor, parts, part, stem, packing, sizes)
        stored.append(StoredTensor(tensor, role, num_params))
    return stored


def _find_role(
    tensor: TensorHeader,
    parts: Mapping[str, TensorHeader],
    *,
    part: str,
    trained: re.Pattern[str] | None,
) -> Role:
    if part in SCALE_PARTS:
        return Role.SCALE
    if part in WEIGHT_PARTS:
        return Role.BUFFER if _is_state(tensor, part, trained) else Role.PARAMETER
    weight = next((name for name in WEIGHT_PARTS if name in parts), None)
    if weight is not None and _is_quantized(weight, parts):
        return Role.SCALE
    # Scales whose weights are missing.
    if tensor.dtype in INTEGERS or tensor.dtype.startswith("F8"):
        return Role.SCALE
    return Role.BUFFER if _is_buffer(tensor.name, trained) else Role.PARAMETER


def _is_quantized(part: str, parts: Mapping[str, TensorHeader]) -> bool:
    dtype = parts[part].dtype
    return (
        dtype in INTEGERS
        or dtype.startswith(("F8", "F4", "F6"))
        or part == "W_q"
        or "bitmask" in parts
    )


def _is_state(tensor: TensorHeader, part: str, trained: re.Pattern[str] | None) -> bool:
    """Return whether a tensor is a module's state or a table of numbers, and not a weight."""
    if tensor.dtype not in INTEGERS:
        return part == "" and _is_buffer(tensor.name, trained)
    if part or "weight" in tensor.name.rpartition(".")[2]:
        return False
    if _INDEX.search(tensor.name):
        return True
    return not tensor.name.endswith("bias") and (
        len(tensor.shape) < 2 or tensor.dtype in ("BOOL", "I64", "U64")
    )


def _is_buffer(name: str, trained: re.Pattern[str] | None) -> bool:
    if not name.endswith(_BUFFER_ENDINGS):
        return False
    return _BUFFER.search(name) is not None and not (trained and trained.search(name))


def _count(
    tensor: TensorHeader,
    parts: Mapping[str, TensorHeader],
    part: str,
    module: str,
    packing: Packing,
    sizes: set[int],
) -> int | None:
    """Return how many parameters a tensor holds; None if its packing is unknown."""
    if part not in WEIGHT_PARTS or (part == "" and tensor.name.endswith("bias")):
        return tensor.num_elements
    return count_packed(tensor, parts, part=part, module=module, packing=packing, sizes=sizes)
