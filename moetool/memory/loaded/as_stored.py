"""Checkpoints that are published quantized: their bytes in files, and as transformers loads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from moetool.anatomy.headers.published_format import find_quantization
from moetool.checkpoint.stated.quantization import find_stated
from moetool.checkpoint.subject import Subject
from moetool.memory.answers.figures import Basis, StoredWeights
from moetool.memory.loaded.formats_of_libraries import find_of_library
from moetool.memory.loaded.formats_of_transformers import find_fp8, find_mxfp4
from moetool.memory.loaded.loaded_format import LoadedFormat, OlderGpus, sum_up
from moetool.memory.loaded.packed_weights import count_packed_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NOT_STATED = "config.json doesn't say how the files are quantized, so transformers can't load them as they are."
_NOT_IN_CATALOGUE = (
    "the catalogue's configuration doesn't say how the published files are quantized."
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
        simulated: The model with the modules that transformers loads packed weights into, which run
            under `offer_kernels_on_meta`; None if it isn't held packed, or if they are unknown.
        failure: Why transformers can't load it on the GPU, one sentence; None if it can.
        older: GPUs on which it is dequantized; None if this is one of them, or if there are none.
    """

    weights: StoredWeights | None
    held: PreTrainedModel | None
    notes: tuple[str, ...] = ()
    simulated: PreTrainedModel | None = None
    failure: str | None = None
    older: OlderGpus | None = None


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
    in_files = count_packed_bytes(subject, skeleton)
    loaded = _find_loaded(
        _find_stated_of(subject, skeleton),
        skeleton,
        packed_bytes=in_files,
        compute_capability=compute_capability,
        is_traced=is_traced,
    )
    if subject.is_from_catalogue and not find_stated(subject.config):
        loaded = replace(loaded, reason=_NOT_IN_CATALOGUE)
    packed_bytes = in_files if loaded.packed is None else sum_up(loaded.packed)
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
        dequantized_bytes=sum_up(skeleton),
        basis=basis,
        reason=loaded.reason,
        implementations=loaded.implementations,
    )
    notes = [
        _NOT_READ if subject.headers is None else None,
        loaded.note,
        None if loaded.reason is None else f"Size of the loaded weights unknown: {loaded.reason}",
    ]
    held = _choose_held(weights, skeleton, loaded.packed)
    is_packed = held is not None and held is not skeleton
    return StoredModel(
        weights,
        held,
        tuple(note for note in notes if note is not None),
        simulated=loaded.simulated if is_packed else None,
        failure=None if is_copy else loaded.failure,
        older=None if is_copy else loaded.older,
    )


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
    packed_bytes: int | None,
    compute_capability: tuple[int, int] | None,
    is_traced: bool,
) -> LoadedFormat:
    method = stated.get("quant_method")
    if not stated:
        return LoadedFormat(reason=_NOT_STATED)
    if method == "fp8":
        return find_fp8(stated, skeleton, compute_capability=compute_capability)
    if method == "mxfp4":
        return find_mxfp4(
            stated, skeleton, compute_capability=compute_capability, is_traced=is_traced
        )
    return find_of_library(
        stated, skeleton, packed_bytes=packed_bytes, compute_capability=compute_capability
    )
