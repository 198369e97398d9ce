"""Values of tensors last as long as the tensors."""

from __future__ import annotations

import torch

from moetool.simulation.meta.tensor_table import TensorTable


def test_a_value_is_that_of_the_very_tensor() -> None:
    table = TensorTable[int]()
    one, equal = torch.ones(2), torch.ones(2)
    table[one] = 5
    assert one in table
    assert equal not in table
    assert (table[one], table.get(one), table.get(equal)) == (5, 5, None)
    assert next(iter(table)) is one


def test_no_value_outlives_its_tensor() -> None:
    table = TensorTable[int]()
    for number in range(100):
        # Most have the identity of an earlier one.
        tensor = torch.ones(2)
        assert tensor not in table
        table[tensor] = number
        table[tensor] = -number
        assert table[tensor] == -number
        del tensor
        assert len(table) == 0


def test_a_tensor_that_only_another_holds_is_still_known() -> None:
    table = TensorTable[int]()
    base = torch.ones(2)
    view = base[:1]
    table[base] = 3
    identity = id(base)
    del base
    assert view._base is not None
    assert id(view._base) == identity
    assert table[view._base] == 3


def test_a_removed_value_does_not_come_back() -> None:
    table = TensorTable[int]()
    tensor = torch.ones(2)
    table[tensor] = 1
    del table[tensor]
    assert tensor not in table
    table[tensor] = 2
    assert table[tensor] == 2
