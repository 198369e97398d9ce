"""Counted by structure, a model of transformers has the parameters that its skeleton has."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from moetool.anatomy.components import Component
from moetool.anatomy.parameters import ActiveDefinition, ActiveRange, ParameterTable
from moetool.anatomy.structure.chosen import Choice
from moetool.anatomy.structure.module_structure import ModuleStructure
from moetool.anatomy.structure.table import count_structure
from tests.anatomy.counting import count_family
from tests.families.tiny.models import available
from tests.families.tiny.proof import unreadable_families


def list_active(table: ParameterTable) -> Mapping[str, ActiveRange | None]:
    return {
        **{name.value: table.count_active(name) for name in ActiveDefinition},
        **{component.value: table.count_active_of(component) for component in Component},
    }


@pytest.mark.parametrize("name", available())
def test_a_family_has_the_same_parameters_by_structure(name: str) -> None:
    family = count_family(name)
    structure = ModuleStructure.of(family.skeleton)
    numbers = family.top_k.values()
    choices = {
        layer: Choice(number, number)
        for layer, number in zip(structure.layers, numbers, strict=False)
        if number is not None
    }

    table = count_structure(structure, choices)

    assert table.total == family.table.total == sum(p.numel() for p in family.skeleton.parameters())
    assert table.count_components() == family.table.count_components()
    assert list_active(table) == list_active(family.table)
    assert table.is_tied == family.table.is_tied
    assert not structure.experts.is_dense
    assert not structure.entangled
    if name not in unreadable_families():
        assert len(choices) == len(structure.layers)
