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
class OlderGpus:
    """GPUs on which transformers dequantizes weights that it keeps quantized on later ones.

    Attributes:
        since: The compute capability from which on it keeps them.
        failure: Why that fails, as a clause; None if it doesn't.
    """

    since: tuple[int, int]
    failure: str | None = None

    def include(self, compute_capability: tuple[int, int] | None) -> bool:
        """Return whether a GPU is one of them. One whose compute capability is unknown isn't."""
        return compute_capability is not None and compute_capability < self.since

    @property
    def note(self) -> str:
        """A sentence on their rows in a table of all GPUs."""
        start = (
            f"On GPUs before compute capability {word_capability(self.since)} transformers dequantizes "
            "these weights"
        )
        if self.failure is None:
            return f"{start}, and their rows in the table below are for that."
        return f"{start}, which fails: {self.failure}. It can't be loaded there as it is published."


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
        older: GPUs on which they are dequantized; None if this is one of them, or if there are none.
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
    older: OlderGpus | None = None


def sum_up(model: PreTrainedModel) -> int:
    """Return the bytes of all parameters and buffers in the allocator's blocks."""
    tensors = (*model.parameters(), *model.buffers())
    return sum(-(-tensor.nbytes // _BLOCK_BYTES) * _BLOCK_BYTES for tensor in tensors)


def word_capability(compute_capability: tuple[int, int]) -> str:
    """Return a compute capability as NVIDIA writes it: `8.9`."""
    return ".".join(map(str, compute_capability))
