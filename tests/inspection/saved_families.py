"""Small models and their saved headers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache

from moetool.anatomy.components import Component
from moetool.anatomy.headers.placed_tensors import find_place, find_routed_layers, place_tensors
from moetool.anatomy.headers.stored_tensors import read_stored
from moetool.anatomy.headers.table import count_headers
from moetool.anatomy.parameters import ParameterTable
from moetool.inspection.differences import explain_differences
from moetool.inspection.figures import Difference
from tests.anatomy.counting import count_family
from tests.anatomy.header_files import Tensors, make_headers
from tests.families.tiny.configs import build_config
from tests.families.tiny.models import build_family

FAMILIES = ("mixtral", "deepseek_v3", "qwen2_moe", "gemma4_text", "switch_transformers")


@dataclass(frozen=True)
class Saved:
    """A tiny model, the tensors that it is saved as, and the component of each."""

    model: ParameterTable
    tensors: Tensors
    config: dict[str, object]
    component_of: dict[str, Component]

    def explain(self, tensors: Tensors) -> tuple[Difference, ...]:
        """Return the differences between the model and other files."""
        return explain_differences(self.model, count_headers(make_headers(tensors), self.config))


@cache
def save_family(name: str) -> Saved:
    model = build_family(name)
    tensors: Tensors = {}
    # Under the names of its modules, which are those of v5 with experts stacked.
    pointers: set[int] = set()
    for key, tensor in model.state_dict().items():
        if tensor.data_ptr() not in pointers:
            tensors[key] = ("F32", list(tensor.shape))
            pointers.add(tensor.data_ptr())
    config = build_config(name).to_dict()
    placed = place_tensors(read_stored(make_headers(tensors).tensors, config))
    routed = find_routed_layers(placed)
    component_of = {
        stored.header.name: find_place(form, layer, routed).component
        for stored, form, layer in placed
        if stored.num_params
    }
    return Saved(count_family(name).table, tensors, config, component_of)


def sum_differences(differences: tuple[Difference, ...]) -> dict[str, int]:
    """Return the surplus of parameters in the files, according to differences."""
    sums: Counter[str] = Counter()
    for difference in differences:
        sums.update(difference.components)
    return {name: number for name, number in sums.items() if number}
