"""Parameters of a model that stack packed matrices."""

from __future__ import annotations

from transformers import PreTrainedModel
from transformers.quantizers.quantizers_utils import get_module_from_name

from moetool.quantizing.loading.packed_modules import find_stack
from moetool.quantizing.packing import ExpertMatrix


def find_matrix(model: PreTrainedModel, path: str) -> ExpertMatrix | None:
    """Return what the parameter at a path stacks, by its own name; None unless it is packed."""
    module, name = get_module_from_name(model, path)
    found = find_stack(module, name)
    return None if found is None else found[0]
