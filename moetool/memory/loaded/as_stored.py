"""Checkpoints that are quantized already: their bytes in the files, and as transformers loads them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from moetool.anatomy.headers.published_format import find_quantization
from moetool.checkpoint.quantization import find_stated
from moetool.checkpoint.subject import Subject
from moetool.memory.loaded.packed_weights import count_packed_bytes, pack_mxfp4
from moetool.memory.result import Basis, StoredWeights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What the allocator rounds up to.
_BLOCK_BYTES = 512
# transformers' quantizers ask for these, and dequantize on older GPUs.
_FP8_SINCE, _MXFP4_SINCE = (8, 9), (7, 5)
# What transformers' quantizer raises for models and settings that it can't take.
_CANT_CONVERT = (AssertionError, AttributeError, TypeError, ValueError)
_NO_QUANTIZER = "transformers has no quantizer for this format."
_NOT_STATED = "config.json doesn't say how the files are quantized, so transformers can't load them as they are."
_NOT_IN_CATALOGUE = (
    "the catalogue's configuration doesn't say how the published files are quantized."
)
_MXFP4_DEPENDS = (
    "transformers keeps mxfp4 packed on GPUs from compute capability 7.5 on, where the packages "
    "`kernels` and `triton` are installed, with padding of its kernels' own; elsewhere it dequantizes "
    "it to bfloat16."
)


@dataclass(frozen=True)
class _Loaded:
    """What transformers makes of stored weights.

    Attributes:
        num_bytes: On the GPU; None if unknown.
        is_dequantized: Whether they are of full precision then; None if unknown.
        packed_bytes: Packed as they are published, as far as shapes tell it.
        reason: Why the bytes are unknown.
        note: What else is to be said.
        may_stay_packed: Whether transformers can hold them as they are published.
    """

    num_bytes: int | None = None
    is_dequantized: bool | None = None
    packed_bytes: int | None = None
    reason: str | None = None
    note: str | None = None
    may_stay_packed: bool = False


def find_stored_weights(
    subject: Subject,
    skeleton: PreTrainedModel,
    *,
    compute_capability: tuple[int, int] | None,
    is_traced: bool = False,
    is_copy: bool = False,
) -> tuple[StoredWeights | None, tuple[str, ...]]:
    """Return what a checkpoint that is quantized already takes, and what is to be said of it.

    None if nothing says that it is quantized. Bytes in files are those of their headers. Bytes on
    the GPU are those of the modules that transformers puts in place of the skeleton's, in the
    allocator's blocks of 512 bytes; where another library lays weights out, they are unknown. What
    the weights take packed follows from shapes, where the format says so, or else from the headers.

    Args:
        subject: The model.
        skeleton: The model in full precision, on the meta device. It is left as it is.
        compute_capability: The GPU's; None if it is unknown.
        is_traced: Whether it is loaded to be traced, for which mxfp4 is always dequantized.
        is_copy: Whether the figures are of a copy in another dtype.
    """
    method = find_quantization(subject)
    if method is None:
        return None, ()
    stored_bytes, notes = None, []
    if subject.headers is not None:
        stored_bytes = sum(tensor.num_bytes for tensor in subject.headers.tensors)
    else:
        notes.append(
            "Bytes as stored are unknown: no files were read. Name their folder or Hub id to know."
        )
    loaded = _find_loaded(
        _find_stated_of(subject, skeleton),
        skeleton,
        compute_capability=compute_capability,
        is_traced=is_traced,
    )
    if subject.is_from_catalogue and not find_stated(subject.config):
        loaded = replace(loaded, reason=_NOT_IN_CATALOGUE)
    packed_bytes = loaded.packed_bytes
    if packed_bytes is None:
        packed_bytes = count_packed_bytes(subject, skeleton)
    basis = Basis.UNKNOWN
    if is_copy:
        basis = Basis.COPY
    elif loaded.num_bytes is not None:
        basis = Basis.LOADED
    elif packed_bytes is not None and loaded.may_stay_packed:
        basis = Basis.PUBLISHED
    if loaded.reason is not None:
        notes.append(f"Bytes as loaded are unknown: {loaded.reason}")
    if loaded.note is not None:
        notes.append(loaded.note)
    return StoredWeights(
        method=method,
        stored_bytes=stored_bytes,
        loaded_bytes=loaded.num_bytes,
        is_dequantized=loaded.is_dequantized,
        packed_bytes=packed_bytes,
        dequantized_bytes=_count_bytes(_tensors(skeleton)),
        basis=basis,
        reason=loaded.reason,
    ), tuple(notes)


def build_as_stored(
    subject: Subject, skeleton: PreTrainedModel, stored: StoredWeights | None
) -> PreTrainedModel | None:
    """Return a model with every parameter as a GPU holds it, on the meta device.

    It can't run there, but shows what every parameter takes. None where the files tell no more than
    what all of them take together, or not even that.

    Args:
        subject: The model.
        skeleton: The model in full precision, on the meta device. It is left as it is.
        stored: What is known of its weights; None if they are not quantized.
    """
    if stored is None or stored.basis is Basis.COPY:
        return skeleton
    if stored.basis is Basis.UNKNOWN:
        return None
    if stored.is_dequantized:
        return skeleton
    stated = _find_stated_of(subject, skeleton)
    if stated.get("quant_method") == "mxfp4":
        return pack_mxfp4(skeleton, stated)
    if stated.get("quant_method") == "fp8":
        try:
            return _convert_to_fp8(skeleton, stated)
        except _CANT_CONVERT:
            return None
    return None


def _find_stated_of(subject: Subject, skeleton: PreTrainedModel) -> Mapping[str, Any]:
    """Return what the configuration says of the quantization, as transformers reads it.

    Some of its classes add to that what a config.json says elsewhere: DeepSeek-V4 the dtype of its
    experts.
    """
    stated = find_stated(subject.config)
    return {**stated, **find_stated(skeleton.config)} if stated else stated


def _find_loaded(
    stated: Mapping[str, Any],
    skeleton: PreTrainedModel,
    *,
    compute_capability: tuple[int, int] | None,
    is_traced: bool,
) -> _Loaded:
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    method = stated.get("quant_method")
    if not stated:
        return _Loaded(reason=_NOT_STATED)
    if method == "fp8":
        return _find_fp8(stated, skeleton, compute_capability=compute_capability)
    if method == "mxfp4":
        return _find_mxfp4(
            stated, skeleton, compute_capability=compute_capability, is_traced=is_traced
        )
    if method == "compressed-tensors":
        return _Loaded(
            is_dequantized=True,
            reason="transformers leaves compressed-tensors' weights packed until the first forward "
            "unpacks them for good, and by then both may lie in memory.",
        )
    if method == "nvfp4":
        return _Loaded(reason="transformers can't load stored nvfp4.")
    if method == "bitsandbytes" or method in AUTO_QUANTIZER_MAPPING:
        return _Loaded(
            reason=f"the library behind {method} lays its weights out itself.", may_stay_packed=True
        )
    return _Loaded(reason=_NO_QUANTIZER)


def _find_fp8(
    stated: Mapping[str, Any],
    skeleton: PreTrainedModel,
    *,
    compute_capability: tuple[int, int] | None,
) -> _Loaded:
    try:
        packed_bytes = _count_bytes(_tensors(_convert_to_fp8(skeleton, stated)))
    except _CANT_CONVERT as error:
        if compute_capability is None or compute_capability >= _FP8_SINCE:
            return _Loaded(reason=f"transformers can't load them ({error}).")
        packed_bytes = None
    if compute_capability is None:
        return _Loaded(packed_bytes=packed_bytes, reason=_depends(_FP8_SINCE), may_stay_packed=True)
    if compute_capability < _FP8_SINCE:
        return _Loaded(
            _count_bytes(_tensors(skeleton)),
            is_dequantized=True,
            packed_bytes=packed_bytes,
            note=_is_too_old(compute_capability, _FP8_SINCE),
        )
    return _Loaded(packed_bytes, is_dequantized=False, packed_bytes=packed_bytes)


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
    stated: Mapping[str, Any],
    skeleton: PreTrainedModel,
    *,
    compute_capability: tuple[int, int] | None,
    is_traced: bool,
) -> _Loaded:
    packed = pack_mxfp4(skeleton, stated)
    packed_bytes = None if packed is None else _count_bytes(_tensors(packed))
    full_bytes = _count_bytes(_tensors(skeleton))
    if is_traced:
        note = (
            "`moetool route-trace` loads mxfp4 in bfloat16: the kernels that compute with it as it is "
            "run past hooks."
        )
        return _Loaded(full_bytes, is_dequantized=True, packed_bytes=packed_bytes, note=note)
    if compute_capability is not None and compute_capability < _MXFP4_SINCE:
        note = _is_too_old(compute_capability, _MXFP4_SINCE)
        return _Loaded(full_bytes, is_dequantized=True, packed_bytes=packed_bytes, note=note)
    return _Loaded(packed_bytes=packed_bytes, reason=_MXFP4_DEPENDS, may_stay_packed=True)


def _depends(since: tuple[int, int]) -> str:
    return (
        f"GPUs before compute capability {since[0]}.{since[1]} get the weights dequantized, and which "
        "this one has isn't known."
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
