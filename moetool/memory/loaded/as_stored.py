"""Checkpoints that are published quantized: their bytes in files, and as transformers loads them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from moetool.anatomy.headers.published_format import find_quantization
from moetool.checkpoint.stated.quantization import find_stated
from moetool.checkpoint.subject import Subject
from moetool.memory.figures import Basis, StoredWeights
from moetool.memory.loaded.packed_weights import count_packed_bytes, pack_mxfp4

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The allocator rounds sizes up to this.
_BLOCK_BYTES = 512
# The compute capabilities that transformers' quantizers ask for; they dequantize on older GPUs.
_FP8_SINCE, _MXFP4_SINCE = (8, 9), (7, 5)
# Raised by transformers' quantizer for models and settings that it can't handle.
_CANT_CONVERT = (AssertionError, AttributeError, TypeError, ValueError)
_NO_QUANTIZER = "transformers has no quantizer for this format."
_NOT_STATED = "config.json doesn't say how the files are quantized, so transformers can't load them as they are."
_NOT_IN_CATALOGUE = (
    "the catalogue's configuration doesn't say how the published files are quantized."
)
_FP8_DEPENDS = (
    "GPUs before compute capability 8.9 get the weights dequantized, and this GPU's compute "
    "capability is unknown."
)
_MXFP4_DEPENDS = (
    "transformers keeps mxfp4 packed on GPUs from compute capability 7.5 on if the packages "
    "`kernels` and `triton` are installed, with padding for its kernels; otherwise it dequantizes "
    "mxfp4 to bfloat16."
)
_TRACED_MXFP4 = (
    "`moetool route-trace` loads mxfp4 in bfloat16, because the kernels that compute with packed "
    "weights bypass hooks."
)
_NOT_READ = "Size on disk unknown: no files were read. Name a folder or Hub id to get it."


@dataclass(frozen=True)
class StoredModel:
    """A model whose checkpoint may be published quantized, with its weights as a GPU holds them.

    Attributes:
        weights: The stored weights; None if nothing says that they are quantized.
        held: The model with every parameter as a GPU holds it, on the meta device, where it can't
            always run. None if only the size of all parameters together is known, or not even that.
        notes: Caveats for the reader, one sentence each.
    """

    weights: StoredWeights | None
    held: PreTrainedModel | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Loaded:
    """Stored weights after transformers has loaded them.

    Attributes:
        num_bytes: Their size on the GPU; None if unknown.
        is_dequantized: Whether they are in full precision; None if unknown.
        packed: The model with weights packed as they are published; None if shapes don't say.
        reason: Why their size is unknown.
        note: A further caveat for the reader.
        may_stay_packed: Whether transformers can hold them as they are published.
    """

    num_bytes: int | None = None
    is_dequantized: bool | None = None
    packed: PreTrainedModel | None = None
    reason: str | None = None
    note: str | None = None
    may_stay_packed: bool = False


def hold_as_stored(
    subject: Subject,
    skeleton: PreTrainedModel,
    *,
    compute_capability: tuple[int, int] | None,
    is_traced: bool = False,
    is_copy: bool = False,
) -> StoredModel:
    """Return a model with its weights as a GPU holds them, and their bytes in files and when loaded.

    Bytes in files are those of their headers. Bytes on the GPU are those of the modules that
    transformers puts in place of the skeleton's, in the allocator's blocks of 512 bytes; where
    another library lays weights out, they are unknown. Bytes of packed weights follow from shapes,
    where the format defines them, and otherwise from the headers.

    Args:
        subject: The model.
        skeleton: The model in full precision, on the meta device. It is left as it is.
        compute_capability: The GPU's; None if it is unknown.
        is_traced: Whether the model is loaded to be traced, for which mxfp4 is always dequantized.
        is_copy: Whether the figures are for a copy in another dtype.
    """
    method = find_quantization(subject)
    if method is None:
        return StoredModel(None, held=skeleton)
    loaded = _find_loaded(
        _find_stated_of(subject, skeleton),
        skeleton,
        compute_capability=compute_capability,
        is_traced=is_traced,
    )
    if subject.is_from_catalogue and not find_stated(subject.config):
        loaded = replace(loaded, reason=_NOT_IN_CATALOGUE)
    packed_bytes = (
        count_packed_bytes(subject, skeleton) if loaded.packed is None else _sum_up(loaded.packed)
    )
    basis = Basis.UNKNOWN
    if is_copy:
        basis = Basis.COPY
    elif loaded.num_bytes is not None:
        basis = Basis.LOADED
    elif packed_bytes is not None and loaded.may_stay_packed:
        basis = Basis.PUBLISHED
    weights = StoredWeights(
        method=method,
        stored_bytes=None
        if subject.headers is None
        else sum(tensor.num_bytes for tensor in subject.headers.tensors),
        loaded_bytes=loaded.num_bytes,
        is_dequantized=loaded.is_dequantized,
        packed_bytes=packed_bytes,
        dequantized_bytes=_sum_up(skeleton),
        basis=basis,
        reason=loaded.reason,
    )
    notes = [
        _NOT_READ if subject.headers is None else None,
        None if loaded.reason is None else f"Size of the loaded weights unknown: {loaded.reason}",
        loaded.note,
    ]
    held = _choose_held(weights, skeleton, loaded.packed)
    return StoredModel(weights, held, tuple(note for note in notes if note is not None))


def _choose_held(
    weights: StoredWeights, skeleton: PreTrainedModel, packed: PreTrainedModel | None
) -> PreTrainedModel | None:
    if weights.basis is Basis.UNKNOWN:
        return None
    if weights.basis is Basis.COPY or weights.is_dequantized:
        return skeleton
    return packed


def _find_stated_of(subject: Subject, skeleton: PreTrainedModel) -> Mapping[str, Any]:
    """Return the configuration's quantization settings, as transformers reads them.

    Some configuration classes add facts from elsewhere in config.json: DeepSeek-V4's adds the
    experts' dtype.
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
            "unpacks them for good, when both may lie in memory.",
        )
    if method == "nvfp4":
        return _Loaded(reason="transformers can't load stored nvfp4.")
    if method == "bitsandbytes" or method in AUTO_QUANTIZER_MAPPING:
        return _Loaded(
            reason=f"the library behind {method} lays out its weights itself.", may_stay_packed=True
        )
    return _Loaded(reason=_NO_QUANTIZER)


def _find_fp8(
    stated: Mapping[str, Any],
    skeleton: PreTrainedModel,
    *,
    compute_capability: tuple[int, int] | None,
) -> _Loaded:
    packed = None
    try:
        packed = _convert_to_fp8(skeleton, stated)
    except _CANT_CONVERT as error:
        if compute_capability is None or compute_capability >= _FP8_SINCE:
            return _Loaded(reason=f"transformers can't load them ({error}).")
    if compute_capability is None:
        return _Loaded(packed=packed, reason=_FP8_DEPENDS, may_stay_packed=True)
    if compute_capability < _FP8_SINCE:
        return _Loaded(
            _sum_up(skeleton),
            is_dequantized=True,
            packed=packed,
            note=_note_too_old(compute_capability, _FP8_SINCE),
        )
    return _Loaded(None if packed is None else _sum_up(packed), is_dequantized=False, packed=packed)


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
    note = None
    if is_traced:
        note = _TRACED_MXFP4
    elif compute_capability is not None and compute_capability < _MXFP4_SINCE:
        note = _note_too_old(compute_capability, _MXFP4_SINCE)
    if note is not None:
        return _Loaded(_sum_up(skeleton), is_dequantized=True, packed=packed, note=note)
    return _Loaded(packed=packed, reason=_MXFP4_DEPENDS, may_stay_packed=True)


def _note_too_old(has: tuple[int, int], since: tuple[int, int]) -> str:
    return (
        f"transformers dequantizes these weights on GPUs before compute capability "
        f"{since[0]}.{since[1]}; this one has {has[0]}.{has[1]}."
    )


def _sum_up(model: PreTrainedModel) -> int:
    """Return the bytes of all parameters and buffers in the allocator's blocks."""
    tensors = (*model.parameters(), *model.buffers())
    return sum(-(-tensor.nbytes // _BLOCK_BYTES) * _BLOCK_BYTES for tensor in tensors)
