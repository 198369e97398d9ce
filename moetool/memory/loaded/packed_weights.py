"""The size of weights that stay packed as they are published, by their files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moetool.anatomy.headers.other_tensors import Reason
from moetool.anatomy.headers.table import count_headers
from moetool.checkpoint.subject import Subject

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Tensors in files that the running model doesn't hold.
_NOT_HELD = (
    Reason.MTP,
    Reason.BEYOND,
    Reason.TIED_HEAD,
    Reason.SHARED_EMBEDDING,
    Reason.ADAPTERS,
    Reason.OPTIMIZER,
)


def count_packed_bytes(subject: Subject, skeleton: PreTrainedModel) -> int | None:
    """Return the bytes in the files that a model holds; None without files, or if some are missing.

    Layers that the model doesn't build are left out, and so are second copies of tensors that it
    holds only once.

    Args:
        subject: The model, with the headers of its files.
        skeleton: The model as transformers builds it.
    """
    if subject.headers is None:
        return None
    table = count_headers(subject.headers, subject.config)
    num_layers = getattr(skeleton.config.get_text_config(), "num_hidden_layers", None)
    if isinstance(num_layers, int) and table.num_layers < num_layers:
        return None
    left_out = sum(group.num_bytes for group in table.other_tensors if group.reason in _NOT_HELD)
    return sum(tensor.num_bytes for tensor in subject.headers.tensors) - left_out
