"""The parameter table of any module, with the parameters that a token runs."""

from __future__ import annotations

from collections.abc import Mapping

from moetool.anatomy.components import TOWERS, Component
from moetool.anatomy.parameters import ParameterTable
from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.walk import walk_parameters
from moetool.anatomy.skeleton.cells import ParameterCells
from moetool.anatomy.skeleton.placement import find_known_model
from moetool.anatomy.skeleton.table import is_embedding_tied
from moetool.anatomy.structure.chosen import Choice, count_chosen
from moetool.anatomy.structure.module_structure import ModuleStructure
from moetool.anatomy.structure.placement import StructurePlacement, is_tied


def count_structure(
    structure: ModuleStructure, choices: Mapping[MoeLayer, Choice]
) -> ParameterTable:
    """Return the parameter table of a module.

    Each parameter is counted once, however many modules share it, in its own dtype; buffers are not
    counted. A token runs the experts that its layers choose and every other parameter.

    Args:
        structure: The module.
        choices: By layer, where it is known.
    """
    module, placement = structure.module, StructurePlacement(structure)
    not_run = {layer.block_path for layer in structure.layers} - {
        layer.block_path for layer in structure.run_layers
    }
    cells = ParameterCells()
    for path, parameter in walk_parameters(module):
        place = placement.place(path, parameter)
        is_run = place.component not in (*TOWERS, Component.ROUTED_EXPERTS) and not any(
            path.startswith(f"{block}.") for block in not_run
        )
        cells.add(
            parameter,
            place,
            dtype=parameter.dtype,
            num_active=parameter.numel() if is_run else 0,
        )
    for experts in structure.expert_sets:
        chosen = count_chosen(experts, choices)
        is_open = any(layer in structure.entangled for layer in experts.layers)
        for first in list(experts.parameters.held.values())[:1]:
            cells.add_active(first, None if chosen is None or is_open else chosen.active)
    doubtful = {
        *structure.experts.unreadable,
        *(sign.path for sign in structure.experts.signs),
        *(layer.block_path for layer in structure.unclear),
    }
    for path in doubtful:
        # All parameters are in doubt if the module has none itself.
        cells.forget_active(list(module.get_submodule(path).parameters()) or module.parameters())
    known = find_known_model(module)
    tied = is_tied(module) if known is None else is_embedding_tied(known)
    return ParameterTable(rows=tuple(cells.list_rows()), is_tied=tied)
