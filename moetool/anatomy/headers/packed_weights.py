"""The number of weights in a tensor of packed ones, by its shape and by the tensors next to it.

Each rule is the published layout of a format. Tensors that no rule reads are unknown, because a wrong
guess would be off by a factor. The parts of a weight have the names of `name_parts`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from moetool.checkpoint.headers.tensor_headers import TensorHeader
from moetool.checkpoint.stated.packing import BITS, Packing
from moetool.registration import METHOD

INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL")

# Weights in a byte.
_STACKED = {"I8": 1, "U8": 2}
_WORD_BITS = {"I16": 16, "U16": 16, "I32": 32, "U32": 32}

# In the microscaling formats, 32 weights share a scale. It is stored as a float that is a power of
# two, or as its exponent.
_MX_GROUP = 32
_MX_SCALES = ("F8_E8M0", "U8")
_SCALES = (
    "weight_scale",
    "scale",
    "scales",
    "scale_inv",
    "weight_scale_inv",
    "weight_scales",
    "_scale",
)

_TENSORRT_SCALES = ("weights_scaling_factor", "weights_block_scaling_factor", "per_channel_scale")


def count_packed(
    weight: TensorHeader,
    parts: Mapping[str, TensorHeader],
    *,
    part: str,
    module: str,
    packing: Packing,
    sizes: Collection[int],
) -> int | None:
    """Return how many weights a tensor holds; None if their packing is unknown.

    Args:
        weight: The tensor of packed weights.
        parts: All tensors of the weight, by the part of the name that distinguishes them.
        part: The part of the tensor's own name.
        module: The module that it belongs to.
        packing: The packing that config.json states.
        sizes: Dimensions of the checkpoint's other tensors.
    """
    # bitsandbytes flattens 4-bit weights, two to a byte, into a tensor of the dtype that it is
    # configured to store them in (its `QuantState` and `bnb_4bit_quant_storage`).
    if "quant_map" in parts:
        return 2 * weight.num_bytes
    if part == "codes" and weight.dtype in INTEGERS:
        return _count_codes(weight, parts)
    # HQQ keeps the layout in tensors next to its `W_q`; sparse weights keep only those not zero.
    if part == "W_q" or "bitmask" in parts:
        return None
    if weight.dtype not in INTEGERS:
        # TensorRT-LLM keeps 4-bit integers in tensors declared as half floats.
        is_plain = weight.dtype.startswith("F8") or parts.keys().isdisjoint(_TENSORRT_SCALES)
        return weight.num_elements if is_plain else None
    # A stack of experts' matrices, each of which fills whole bytes: `moetool.quantizing.packing`.
    if packing.method == METHOD and part == "" and weight.dtype in _STACKED:
        return _STACKED[weight.dtype] * weight.num_elements
    if weight.dtype in ("I8", "U8"):
        return _count_in_bytes(weight, parts, part=part, packing=packing)
    if weight.dtype not in _WORD_BITS or len(weight.shape) < 2:
        return None
    if part == "qweight":
        return _count_in_words_by_rows(weight, parts, packing=packing)
    if part in ("weight_packed", "packed"):
        return _count_in_words_by_columns(weight, parts, packing=packing, sizes=sizes)
    if part == "weight" and weight.dtype == "U32":
        return _count_by_scales(weight, parts, module=module, packing=packing)
    return None


def _count_codes(weight: TensorHeader, parts: Mapping[str, TensorHeader]) -> int | None:
    """Count weights of AQLM: a code for each group of weights and each codebook.

    The shapes in its `QuantizedLinear`: codes `(outputs / out_group, inputs / in_group, codebooks)`,
    codebooks `(codebooks, size, out_group, in_group)`.
    """
    books = parts.get("codebooks")
    if books is None or len(books.shape) != 4 or len(weight.shape) != 3:
        return None
    num_books, _, *group = books.shape
    if weight.shape[2] != num_books:
        return None
    return weight.shape[0] * weight.shape[1] * group[0] * group[1]


def _count_in_bytes(
    weight: TensorHeader, parts: Mapping[str, TensorHeader], *, part: str, packing: Packing
) -> int | None:
    num_bytes = weight.num_elements
    # MXFP4 as gpt-oss stores it: blocks of 16 bytes, with their scales in another tensor.
    if part == "blocks":
        return 2 * num_bytes
    # bitsandbytes' 8-bit weights, with a scale for each row.
    if "SCB" in parts:
        return num_bytes
    # NVFP4 and similar formats scale a second time.
    if not parts.keys().isdisjoint(("weight_scale_2", "weight_global_scale")):
        return 2 * num_bytes
    if packing.method == "bitnet":
        # Three values in two bits, so that four rows become one.
        return 4 * num_bytes
    scale = next((parts[name] for name in _SCALES if name in parts), None)
    if scale is None or not scale.num_elements:
        return None
    per_scale, rest = divmod(num_bytes, scale.num_elements)
    if scale.dtype in _MX_SCALES:
        is_whole = rest == 0 and (per_scale * 8) % _MX_GROUP == 0
        mx_bits = per_scale * 8 // _MX_GROUP
        return num_bytes * 8 // mx_bits if is_whole and mx_bits in (4, 6, 8) else None
    if scale.dtype.startswith("F8"):
        # NVFP4 without its second scale: 16 weights share a scale.
        return 2 * num_bytes if (per_scale, rest) == (8, 0) else None
    if weight.dtype == "I8" and part != "_data._data":
        # Signed bytes are weights of eight bits, unless there is a scale for every 16 (4-bit floats
        # with scales of another dtype) or for each column (torchao's 4-bit integers).
        is_across = part == "_qdata" and scale.shape[:1] != weight.shape[:1]
        return None if (per_scale, rest) == (16, 0) or is_across else num_bytes
    bits = packing.bits
    return num_bytes * 8 // bits if bits in (2, 4, 8) else None


def _count_in_words_by_rows(
    weight: TensorHeader, parts: Mapping[str, TensorHeader], *, packing: Packing
) -> int | None:
    """Count weights of GPTQ and AWQ: inputs by outputs, with scales `(groups, outputs)`.

    GPTQ packs along the inputs into `inputs / 32 * bits` rows, so 32 weights of three bits take three
    words. Its `g_idx` has an entry for each input. AWQ packs along the outputs.
    """
    num_rows, num_columns = weight.shape[-2:]
    scales, order = parts.get("scales"), parts.get("g_idx")
    word_bits = _WORD_BITS[weight.dtype]
    if order is not None:
        num_inputs = order.shape[-1] if order.shape else 0
        row_bits, rest = divmod(num_rows * word_bits, num_inputs or 1)
        if rest or row_bits not in BITS:
            return None
        return weight.num_elements // num_rows * num_inputs
    bits = packing.bits
    if bits is None or scales is None or (weight.num_elements * word_bits) % bits:
        return None
    num_params = weight.num_elements * word_bits // bits
    group_size = packing.layouts[0][1]
    if group_size is not None and len(scales.shape) > 1 and scales.shape[-1] == num_columns:
        # If the layer has other bits than stated, the groups do not cover the inputs.
        is_covered = scales.shape[-2] == -(-num_rows * word_bits // bits // group_size)
        return num_params if is_covered else None
    return num_params


def _count_in_words_by_columns(
    weight: TensorHeader,
    parts: Mapping[str, TensorHeader],
    *,
    packing: Packing,
    sizes: Collection[int],
) -> int | None:
    """Count weights of compressed-tensors' `pack-quantized`: rows in 32-bit words, the last one padded.

    The true width is stored as data (`weight_shape`), and follows from the groups of weights that
    share a scale. Words are filled without gaps, or by older versions with `32 // bits` weights each.
    """
    scale = next((parts[name] for name in _SCALES if name in parts), None)
    num_words = weight.shape[-1]
    if scale is None:
        return None
    num_rows = weight.num_elements // num_words if num_words else 0
    num_groups = scale.shape[-1] if scale.shape else 1
    widths = {
        width
        for bits, group_size in packing.layouts
        if bits is not None and group_size is not None
        for width in [num_groups * group_size]
        if num_words in (-(-width * bits // 32), -(-width // (32 // bits)))
    }
    if len(widths) == 1:
        return num_rows * widths.pop()
    bits = packing.bits
    if bits is None or 32 % bits or any(group_size for _, group_size in packing.layouts):
        return None
    width = num_words * 32 // bits
    # With one scale for each row, the width is unknown. If another size of the model would fill the
    # same words, the row may have that width.
    is_doubtful = any(size in sizes for size in range(width - 32 // bits + 1, width))
    return None if is_doubtful and width not in sizes else num_rows * width


def _count_by_scales(
    weight: TensorHeader, parts: Mapping[str, TensorHeader], *, module: str, packing: Packing
) -> int | None:
    """Count weights of MLX: 32-bit words filled along the inputs, with a scale for each group.

    Its config.json states the size of a group, and other sizes for some modules.
    """
    scales = parts.get("scales")
    stated = packing.layouts[0] if len(packing.layouts) == 1 else (None, None)
    bits, group_size = packing.layout_of.get(module, stated)
    if scales is None or group_size is None:
        return None
    num_params = scales.num_elements * group_size
    if not num_params or weight.num_elements * 32 != num_params * (bits or 0):
        return None
    return num_params
