"""fp8 and mxfp4, whose modules are transformers' own, on one GPU, with and without their packages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moetool.memory.answers.implementation import DEQUANTIZED, PACKED, Implementation, Origin
from moetool.memory.loaded.loaded_format import LoadedFormat, OlderGpus, sum_up, word_capability
from moetool.memory.loaded.packed.fp8 import convert_to_fp8, find_undividable
from moetool.memory.loaded.packed.mxfp4 import convert_to_mxfp4, pack_mxfp4

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The compute capabilities that transformers' quantizers ask for; they dequantize on older GPUs.
_FP8_SINCE, _MXFP4_SINCE = (8, 9), (7, 5)
# Raised by transformers' quantizer for models and settings that it can't handle.
_CANT_CONVERT = (AssertionError, AttributeError, TypeError, ValueError)
_ACCELERATE = "accelerate"
_TRITON = "triton>=3.4"
_FP8_DEPENDS = (
    "GPUs before compute capability 8.9 get the weights dequantized, and this GPU's compute "
    "capability is unknown."
)
_FP8_NEEDS_KERNELS = (
    "transformers loads them in fp8 without `kernels` too, but raises an ImportError in the first "
    "forward pass, because the kernels that multiply them come from the Hub through that package."
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
_NOT_GPT_OSS = "transformers packs mxfp4 only in the experts of gpt-oss, which this model lacks."


def find_fp8(
    stated: Mapping[str, Any],
    skeleton: PreTrainedModel,
    *,
    compute_capability: tuple[int, int] | None,
) -> LoadedFormat:
    """Return block fp8 as transformers loads it.

    Args:
        stated: The configuration's quantization settings.
        skeleton: The model in full precision, on the meta device. It is left as it is.
        compute_capability: The GPU's; None if it is unknown.
    """
    packed = None
    try:
        packed = convert_to_fp8(skeleton, stated)
    except _CANT_CONVERT as error:
        if compute_capability is None or compute_capability >= _FP8_SINCE:
            reason = f"transformers can't load them ({error})."
            return LoadedFormat(
                reason=reason, implementations=(Implementation(None, failure=reason),)
            )
    num_packed_bytes = None if packed is None else sum_up(packed)
    in_fp8 = (
        Implementation(
            PACKED, (_ACCELERATE, _name_kernels()), (), num_packed_bytes, Origin.MODULES
        ),
        Implementation(
            PACKED,
            (_ACCELERATE,),
            ("kernels",),
            num_packed_bytes,
            Origin.MODULES,
            failure=_FP8_NEEDS_KERNELS,
        ),
    )
    matrix = None if packed is None else find_undividable(packed)
    cant = None if matrix is None else f"it can't dequantize {matrix}"
    older = OlderGpus(_FP8_SINCE, cant)
    if compute_capability is None:
        return LoadedFormat(
            packed=packed,
            simulated=packed,
            reason=_FP8_DEPENDS,
            may_stay_packed=True,
            implementations=in_fp8,
            older=older,
        )
    if compute_capability >= _FP8_SINCE:
        return LoadedFormat(
            num_packed_bytes,
            is_dequantized=False,
            packed=packed,
            simulated=packed,
            note=_FP8_NEEDS_KERNELS,
            implementations=in_fp8,
            older=older,
        )
    failure = None
    if cant is not None:
        failure = (
            f"transformers dequantizes fp8 on GPUs before compute capability "
            f"{word_capability(_FP8_SINCE)}, and {cant.removeprefix('it ')}."
        )
    dequantized = _dequantize(skeleton, failure=failure)
    return LoadedFormat(
        dequantized.weights_bytes,
        is_dequantized=True,
        packed=packed,
        note=_note_too_old(compute_capability, _FP8_SINCE, "fp8"),
        implementations=(dequantized,),
        failure=failure,
    )


def find_mxfp4(
    stated: Mapping[str, Any],
    skeleton: PreTrainedModel,
    *,
    compute_capability: tuple[int, int] | None,
    is_traced: bool,
) -> LoadedFormat:
    """Return mxfp4 as transformers loads it.

    Args:
        stated: The configuration's quantization settings.
        skeleton: The model in full precision, on the meta device. It is left as it is.
        compute_capability: The GPU's; None if it is unknown.
        is_traced: Whether the model is loaded to be traced.
    """
    packed = pack_mxfp4(skeleton, stated, compute_capability=compute_capability)
    dequantized = _dequantize(skeleton)
    note = None
    if is_traced:
        note = _TRACED_MXFP4
    elif compute_capability is not None and compute_capability < _MXFP4_SINCE:
        note = _note_too_old(compute_capability, _MXFP4_SINCE, "mxfp4")
    if note is not None:
        return LoadedFormat(
            dequantized.weights_bytes,
            is_dequantized=True,
            packed=packed,
            note=note,
            implementations=(dequantized,),
        )
    if packed is None:
        return LoadedFormat(reason=_NOT_GPT_OSS, may_stay_packed=True)
    converted = convert_to_mxfp4(skeleton, stated, compute_capability=compute_capability)
    return LoadedFormat(
        packed=packed,
        simulated=converted,
        reason=_MXFP4_DEPENDS,
        may_stay_packed=True,
        older=OlderGpus(_MXFP4_SINCE),
        implementations=(
            Implementation(
                PACKED,
                (_ACCELERATE, _name_kernels(), _TRITON),
                (),
                sum_up(converted),
                Origin.MODULES,
            ),
            Implementation(
                DEQUANTIZED,
                (_ACCELERATE,),
                ("kernels", "triton"),
                dequantized.weights_bytes,
                Origin.MODULES,
            ),
        ),
    )


def _dequantize(skeleton: PreTrainedModel, *, failure: str | None = None) -> Implementation:
    return Implementation(
        DEQUANTIZED, (_ACCELERATE,), (), sum_up(skeleton), Origin.MODULES, failure=failure
    )


def _name_kernels() -> str:
    """Return the versions of `kernels` that this transformers takes, as pip names them."""
    from transformers.utils import import_utils

    fewest = getattr(import_utils, "KERNELS_MIN_VERSION", None)
    first_too_new = getattr(import_utils, "KERNELS_MAX_VERSION", None)
    if fewest is None:
        return "kernels"
    return f"kernels>={fewest}" + ("" if first_too_new is None else f",<{first_too_new}")


def _note_too_old(has: tuple[int, int], since: tuple[int, int], name: str) -> str:
    return (
        f"transformers dequantizes these weights on GPUs before compute capability "
        f"{word_capability(since)}, whichever packages are installed; this one has "
        f"{word_capability(has)}. A GPU from {word_capability(since)} on holds them in {name}."
    )
