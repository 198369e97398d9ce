"""Formats that other libraries lay out, with the packages that transformers needs to load them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moetool.anatomy.routing.moe_layers import find_experts
from moetool.memory.answers.implementation import DEQUANTIZED, PACKED, Implementation, Origin
from moetool.memory.loaded.loaded_format import LoadedFormat, sum_up, word_capability
from moetool.registration import METHOD

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NO_QUANTIZER = "transformers has no quantizer for this format."
_UNPACKED_LATER = (
    "transformers leaves compressed-tensors' weights packed until the first forward "
    "unpacks them for good, when both may lie in memory."
)
_OF_MOETOOL = (
    "moetool's quantizer keeps them as they are stored, and what computing with them takes isn't "
    "simulated."
)
_NVFP4 = "transformers can't load stored nvfp4."
_FUSED = (
    "transformers builds the experts of a layer as one parameter, and this format's integration "
    "replaces linear layers only, so nothing here confirms that packed experts are loaded at all."
)


@dataclass(frozen=True)
class _Library:
    """Requirements that transformers' quantizer checks before it loads a format.

    Attributes:
        packages: Packages, with versions, as pip names them.
        since: The first compute capability that it accepts; None for any.
    """

    packages: tuple[str, ...]
    since: tuple[int, int] | None = None


# As each `validate_environment` in transformers 5.24's `quantizers` checks it for CUDA.
_LIBRARIES = {
    "awq": _Library(("accelerate", "gptqmodel")),
    "gptq": _Library(("optimum>=1.24", "gptqmodel>=1.4.3")),
    "bitsandbytes": _Library(("accelerate", "bitsandbytes>=0.46.1")),
    "compressed-tensors": _Library(("compressed-tensors>=0.15",)),
    "fbgemm_fp8": _Library(("accelerate", "fbgemm-gpu"), since=(9, 0)),
    METHOD: _Library(("accelerate", "bitsandbytes>=0.46.1")),
    "torchao": _Library(("torchao>=0.15",)),
}


def find_of_library(
    stated: Mapping[str, Any],
    skeleton: PreTrainedModel,
    *,
    packed_bytes: int | None,
    compute_capability: tuple[int, int] | None,
) -> LoadedFormat:
    """Return a format as a library other than transformers lays it out.

    Args:
        stated: The configuration's quantization settings.
        skeleton: The model in full precision, on the meta device.
        packed_bytes: The bytes in the files that the model holds; None if unknown.
        compute_capability: The GPU's; None if it is unknown.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

    method = stated.get("quant_method")
    if method == "nvfp4":
        return LoadedFormat(reason=_NVFP4, implementations=(Implementation(None, failure=_NVFP4),))
    if method != "bitsandbytes" and method not in AUTO_QUANTIZER_MAPPING:
        return LoadedFormat(
            reason=_NO_QUANTIZER, implementations=(Implementation(None, failure=_NO_QUANTIZER),)
        )
    library = _LIBRARIES.get(str(method))
    packages = () if library is None else library.packages
    names = tuple(package.partition(">")[0] for package in packages)
    without = Implementation(
        None,
        (),
        names,
        failure=f"transformers raises an ImportError while it loads the model, because {method} "
        "needs the package.",
    )
    failure = _refuse_old(str(method), library, compute_capability)
    if method == "compressed-tensors":
        with_all = Implementation(
            DEQUANTIZED, packages, (), sum_up(skeleton), Origin.REPORTED, reason=_UNPACKED_LATER
        )
        return LoadedFormat(
            is_dequantized=True, reason=_UNPACKED_LATER, implementations=(with_all, without)
        )
    reason = f"the library behind {method} lays out its weights itself."
    doubt = _FUSED if _has_fused_experts(skeleton) else None
    if method == METHOD:
        reason, doubt = _OF_MOETOOL, None
    with_all = Implementation(
        PACKED,
        packages,
        (),
        packed_bytes,
        None if packed_bytes is None else Origin.REPORTED,
        failure=failure,
        reason=doubt or reason,
    )
    return LoadedFormat(
        reason=reason,
        note=doubt,
        may_stay_packed=True,
        implementations=(with_all, without) if names else (with_all,),
        failure=failure,
    )


def _refuse_old(
    method: str, library: _Library | None, compute_capability: tuple[int, int] | None
) -> str | None:
    since = None if library is None else library.since
    if since is None or compute_capability is None or compute_capability >= since:
        return None
    return (
        f"transformers loads {method} on GPUs from compute capability {word_capability(since)} on."
    )


def _has_fused_experts(skeleton: PreTrainedModel) -> bool:
    """Return whether a model has experts whose matrices are stacked in one parameter."""
    return any(
        parameter.ndim > 2
        for layer in find_experts(skeleton).layers
        for parameter in skeleton.get_submodule(layer.experts_path).parameters()
    )
