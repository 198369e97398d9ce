"""The quantization that a configuration states: its fields, its method, and all of it in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Longer names, and names of several lines, are junk and not shown.
_LONGEST_NAME = 40
# Fields that state it, newer names first.
_FIELDS = ("quantization_config", "compression_config", "quantization")
_LARGEST_COUNT = 1 << 32


def find_stated(config: Mapping[str, object] | PreTrainedConfig) -> Mapping[str, Any]:
    """Return the fields in which a configuration states its quantization; empty if it states none.

    Args:
        config: A config.json, or what transformers made of it, whose classes may add fields.
    """
    return _find_stated(config)[1]


def find_method(config: Mapping[str, object] | PreTrainedConfig) -> str | None:
    """Return the method that a configuration states, such as `fp8`; None if it states none."""
    method = find_stated(config).get("quant_method")
    # transformers keeps it as a member of an enumeration.
    method = getattr(method, "value", method)
    return method if isinstance(method, str) else None


def name_quantization(config: Mapping[str, object]) -> str | None:
    """Return the format of a checkpoint's weights, such as `fp8, blocks of 128 x 128`.

    None if config.json states none. The files may still be quantized, if another file says so.
    """
    name, stated = _find_stated(config)
    if name is None:
        return None
    method = _as_name(stated.get("quant_method"))
    if method is None:
        # MLX names neither itself nor its method, and states the same under two names.
        is_mlx = isinstance(_get(config, "quantization"), Mapping) and "quant_algo" not in stated
        method = "mlx" if is_mlx else "unnamed method"
    return ", ".join(dict.fromkeys((method, *_describe(stated), *_describe_experts(config))))


def _find_stated(config: object) -> tuple[str | None, Mapping[str, Any]]:
    """Return the name and the contents of the field that states the quantization."""
    for holder in (config, _get_text_config(config)):
        for name in _FIELDS:
            stated = _get(holder, name)
            # Once weights are loaded, transformers keeps an object in its place.
            stated = stated.to_dict() if hasattr(stated, "to_dict") else stated
            # TensorRT-LLM lists every setting, with null for those that are not used.
            if isinstance(stated, Mapping) and any(v is not None for v in stated.values()):
                return name, stated
    return None, {}


def _get(holder: object, name: str) -> Any:
    return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)


def _get_text_config(config: object) -> object:
    if isinstance(config, Mapping):
        return config.get("text_config")
    find: Any = getattr(config, "get_text_config", None)
    try:
        return find() if find else None
    except ValueError:
        # It has several of them.
        return None


def _describe(stated: Mapping[str, object]) -> Iterator[str]:
    bits = _as_count(stated.get("bits"))
    if bits is not None:
        yield f"{bits} bits"
    for name in ("format", "quant_algo", "weights", "mode", "quantization"):
        word = _as_name(stated.get(name))
        if word is not None:
            yield word.lower()
    if stated.get("double_quantization") is True:
        yield "double quantization"
    if stated.get("quantize_experts") is False:
        yield "without experts"
    if stated.get("load_in_4bit") is True:
        yield _as_name(stated.get("bnb_4bit_quant_type")) or "4 bits"
    if stated.get("load_in_8bit") is True:
        yield "int8"
    block = stated.get("weight_block_size")
    if isinstance(block, list | tuple) and len(block) == 2:
        height, width = (_as_count(size) for size in block)
        if height is not None and width is not None:
            yield f"blocks of {height} x {width}"
    groups = stated.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            yield from _describe_weights(weights)
    yield from _describe_group(stated)
    books = _as_count(stated.get("num_codebooks")), _as_count(stated.get("nbits_per_codebook"))
    if None not in books:
        yield f"codebooks {books[0]} x {books[1]} bits"


def _describe_experts(config: Mapping[str, object]) -> Iterator[str]:
    """Yield the dtype of DeepSeek-V4's experts, if it differs from that of all other weights."""
    word = _as_name(config.get("expert_dtype"))
    if word is not None:
        yield f"experts in {word.lower()}"


def _describe_weights(weights: Mapping[str, object]) -> Iterator[str]:
    """Yield the settings of compressed-tensors for the weights of some layers."""
    kind, bits = _as_name(weights.get("type")), _as_count(weights.get("num_bits"))
    if kind is not None and bits is not None:
        yield f"{kind}{bits}"
    yield from _describe_group(weights)


def _describe_group(stated: Mapping[str, object]) -> Iterator[str]:
    size = _as_count(stated.get("group_size"))
    if size is not None:
        yield f"groups of {size}"


def _as_name(value: object) -> str | None:
    if not isinstance(value, str) or not value.isprintable():
        return None
    return value if 0 < len(value) <= _LONGEST_NAME else None


def _as_count(value: object) -> int | None:
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    # Python refuses to print numbers with thousands of digits.
    return value if 0 < value < _LARGEST_COUNT else None
