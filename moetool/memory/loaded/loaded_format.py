"""Formats of published weights, as transformers loads them on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from moetool.memory.answers.implementation import Implementation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The allocator rounds sizes up to this.
_BLOCK_BYTES = 512


@dataclass(frozen=True)
class LoadedFormat:
    """Stored weights after transformers has loaded them.

    Attributes:
        num_bytes: Their size on the GPU; None if unknown.
        is_dequantized: Whether they are in full precision; None if unknown.
        packed: The model with weights packed as they are published; None if shapes don't say.
        simulated: The model with modules for packed weights that run without data; None if there
            are none.
        reason: Why their size is unknown.
        note: A further caveat for the reader.
        may_stay_packed: Whether transformers can hold them as they are published.
        implementations: The ways in which transformers loads them, by packages.
        failure: Why no way works on the GPU, one sentence; None if one does.
    """

    num_bytes: int | None = None
    is_dequantized: bool | None = None
    packed: PreTrainedModel | None = None
    simulated: PreTrainedModel | None = None
    reason: str | None = None
    note: str | None = None
    may_stay_packed: bool = False
    implementations: tuple[Implementation, ...] = ()
    failure: str | None = None


def sum_up(model: PreTrainedModel) -> int:
    """Return the bytes of all parameters and buffers in the allocator's blocks."""
    tensors = (*model.parameters(), *model.buffers())
    return sum(-(-tensor.nbytes // _BLOCK_BYTES) * _BLOCK_BYTES for tensor in tensors)


def word_capability(compute_capability: tuple[int, int]) -> str:
    """Return a compute capability as NVIDIA writes it: `8.9`."""
    return ".".join(map(str, compute_capability))
