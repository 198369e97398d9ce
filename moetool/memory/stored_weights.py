"""Checkpoints that are quantized already: their bytes in the files, and as transformers loads them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from moetool.inspection.quantization import name_quantization
from moetool.inspection.subject import Subject
from moetool.memory.result import StoredWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What the allocator rounds up to.
_BLOCK_BYTES = 512
# transformers' quantizers ask for these, and dequantize on older GPUs.
_FP8_SINCE, _MXFP4_SINCE = (8, 9), (7, 5)
# What transformers' quantizer raises for models and settings that it can't take.
_CANT_CONVERT = (AssertionError, AttributeError, TypeError, ValueError)


def find_stored_weights(
    subject: Subject,
    skeleton: PreTrainedModel,
    *,
    compute_capability: tuple[int, int] | None,
) -> tuple[StoredWeights | None, tuple[str, ...]]:
    """Return what a checkpoint that is quantized already takes, and what is to be said of it.

    None if config.json names no quantization. Bytes in files are those of their headers. Bytes on
    the GPU are those of the modules that transformers puts in place of the skeleton's, in the
    allocator's blocks of 512 bytes; where another library lays weights out, they are unknown.

    Args:
        subject: The model.
        skeleton: The model in full precision, on the meta device. It is left as it is.
        compute_capability: The GPU's; None if it is unknown.
    """
    method = name_quantization(subject.config)
    if method is None:
        return None, ()
    stated = _find_stated(subject.config)
    stored_bytes = None
    notes = []
    if subject.headers is not None:
        stored_bytes = sum(tensor.num_bytes for tensor in subject.headers.tensors)
    else:
        notes.append(
            "Bytes as stored are unknown: no files were read. Their folder or Hub id would tell."
        )
    loaded_bytes, is_dequantized, note = _find_loaded(
        stated, skeleton, compute_capability=compute_capability
    )
    if note:
        notes.append(note)
    return StoredWeights(method, stored_bytes, loaded_bytes, is_dequantized), tuple(notes)


def build_as_stored(
    subject: Subject,
    skeleton: PreTrainedModel,
    *,
    compute_capability: tuple[int, int] | None,
) -> PreTrainedModel:
    """Return a checkpoint that is quantized already as transformers loads it, on the meta device.

    It can't run there, but shows what every parameter takes. The skeleton itself where it is loaded
    in full precision, or where another library lays its weights out.

    Args:
        subject: The model.
        skeleton: The model in full precision, on the meta device. It is left as it is.
        compute_capability: The GPU's; None if it is unknown.
    """
    stated = _find_stated(subject.config)
    is_fp8 = stated.get("quant_method") == "fp8"
    if not is_fp8 or compute_capability is None or compute_capability < _FP8_SINCE:
        return skeleton
    try:
        return _convert_to_fp8(skeleton, stated)
    except _CANT_CONVERT:
        return skeleton


def _find_stated(config: Mapping[str, object]) -> Mapping[str, Any]:
    text_config = config.get("text_config")
    for holder in (config, text_config if isinstance(text_config, Mapping) else {}):
        for name in ("quantization_config", "compression_config", "quantization"):
            stated = holder.get(name)
            if isinstance(stated, Mapping) and stated:
                return stated
    return {}


def _find_loaded(
    stated: Mapping[str, Any],
    skeleton: PreTrainedModel,
    *,
    compute_capability: tuple[int, int] | None,
) -> tuple[int | None, bool | None, str | None]:
    """Return the bytes on the GPU, whether they are of full precision, and what is to be said."""
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    method = stated.get("quant_method")
    if method == "fp8":
        return _find_fp8(stated, skeleton, compute_capability=compute_capability)
    if method == "mxfp4":
        return _find_mxfp4(skeleton, compute_capability=compute_capability)
    if method == "compressed-tensors":
        return (
            None,
            True,
            "Bytes as loaded are unknown: transformers leaves compressed-tensors' weights packed "
            "until the first forward unpacks them for good, and by then both may lie in memory.",
        )
    if method == "nvfp4":
        return None, None, "Bytes as loaded are unknown: transformers can't load stored nvfp4."
    if method == "bitsandbytes" or method in AUTO_QUANTIZER_MAPPING:
        return (
            None,
            None,
            f"Bytes as loaded are unknown: the library behind {method} lays its weights out itself.",
        )
    return None, None, "Bytes as loaded are unknown: transformers has no quantizer for this format."


def _find_fp8(
    stated: Mapping[str, Any],
    skeleton: PreTrainedModel,
    *,
    compute_capability: tuple[int, int] | None,
) -> tuple[int | None, bool | None, str | None]:
    if compute_capability is None:
        return None, None, _depends(_FP8_SINCE)
    if compute_capability < _FP8_SINCE:
        return _count_bytes(_tensors(skeleton)), True, _is_too_old(compute_capability, _FP8_SINCE)
    try:
        loaded = _convert_to_fp8(skeleton, stated)
    except _CANT_CONVERT as error:
        return None, None, f"Bytes as loaded are unknown: transformers can't load them ({error})."
    return _count_bytes(_tensors(loaded)), False, None


def _convert_to_fp8(skeleton: PreTrainedModel, stated: Mapping[str, Any]) -> PreTrainedModel:
    """Return a copy of a skeleton with the modules that transformers loads fp8 into."""
    import transformers
    from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

    loaded: Any = copy.deepcopy(skeleton)
    config_class: Any = transformers.FineGrainedFP8Config
    quantizer: Any = FineGrainedFP8HfQuantizer(
        config_class.from_dict(dict(stated)), pre_quantized=True
    )
    quantizer._process_model_before_weight_loading(loaded)
    converted: PreTrainedModel = loaded
    return converted


def _find_mxfp4(
    skeleton: PreTrainedModel, *, compute_capability: tuple[int, int] | None
) -> tuple[int | None, bool | None, str | None]:
    from transformers.utils.import_utils import is_kernels_available

    full_bytes = _count_bytes(_tensors(skeleton))
    if compute_capability is None:
        return None, None, _depends(_MXFP4_SINCE)
    if compute_capability < _MXFP4_SINCE:
        return full_bytes, True, _is_too_old(compute_capability, _MXFP4_SINCE)
    if not is_kernels_available():
        return (
            full_bytes,
            True,
            "transformers dequantizes mxfp4 as it loads it where the package `kernels` is missing, "
            "as it is here.",
        )
    return (
        None,
        False,
        "Bytes as loaded are unknown: kernels from the Hub lay mxfp4 out with padding of their own.",
    )


def _depends(since: tuple[int, int]) -> str:
    return (
        "Bytes as loaded are unknown: GPUs before compute capability "
        f"{since[0]}.{since[1]} get the weights dequantized, and which this one has isn't known."
    )


def _is_too_old(has: tuple[int, int], since: tuple[int, int]) -> str:
    return (
        f"transformers dequantizes these weights as it loads them on GPUs before compute capability "
        f"{since[0]}.{since[1]}; this one has {has[0]}.{has[1]}."
    )


def _tensors(model: PreTrainedModel) -> Iterable[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _count_bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(-(-tensor.nbytes // _BLOCK_BYTES) * _BLOCK_BYTES for tensor in tensors)
