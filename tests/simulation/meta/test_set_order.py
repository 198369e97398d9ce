"""A model's code goes through sets in the same order in every process."""

from __future__ import annotations

import sys
from typing import Any

from moetool.simulation.meta.set_order import going_through_sets_in_order
from tests.anatomy.counting import build_family_skeleton

# No order that strings' hashes give is likely to be that of the alphabet.
NAMES = [f"layer type {number:02}" for number in range(40)]


def test_code_and_modules_go_through_names_in_order_for_a_while() -> None:
    skeleton: Any = build_family_skeleton("mixtral")
    code: Any = sys.modules[type(skeleton).__module__]
    kept = skeleton.model.unique_layer_types = set(NAMES)
    in_layer = skeleton.model.layers[0].names = set(NAMES)
    with going_through_sets_in_order(skeleton):
        assert list(code.set(reversed(NAMES))) == NAMES
        assert list(skeleton.model.unique_layer_types) == NAMES
        assert skeleton.model.unique_layer_types == kept
        assert skeleton.model.layers[0].names is in_layer
    assert skeleton.model.unique_layer_types is kept
    assert not hasattr(code, "set")


def test_members_without_an_order_are_all_gone_through() -> None:
    skeleton: Any = build_family_skeleton("mixtral")
    skeleton.model.mixed = {1, "one", None}
    with going_through_sets_in_order(skeleton):
        assert set(skeleton.model.mixed) == {1, "one", None}
        assert len(list(skeleton.model.mixed)) == 3
