"""Values of large tensors of one number are those that computing them in full would give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from moetool.simulation.meta.known_values import KnownValues
from tests.simulation.meta.known import meta

SHAPE = (40, 3)


def make_ids(late: KnownValues, number: int) -> torch.Tensor:
    ids = meta(SHAPE, dtype=torch.long)
    late.know_filled(ids, number)
    return ids


REDUCTIONS: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda ids: (ids == 3).any(),
    lambda ids: (ids == 4).any(),
    lambda ids: (ids != 4).all(),
    lambda ids: ids.max(),
    lambda ids: (ids * 2 + 1).min(),
    lambda ids: (ids == 3).sum(),
    lambda ids: ids.sum(),
    lambda ids: torch.isin(ids, torch.tensor([3, 9], device=ids.device)).any(),
    lambda ids: torch.isin(ids, torch.tensor([4, 9], device=ids.device)).any(),
    lambda ids: ids.ne(4).long().mul(~(ids < 0)).eq(1).all(),
    lambda ids: ids[:, -1].eq(3).all(),
    lambda ids: torch.cat([ids, ids[:, :1]], dim=1).eq(3).all(),
    lambda ids: (torch.ones_like(ids) + torch.ones(SHAPE, device=ids.device)).eq(2).all(),
    lambda ids: ids[:, :0].eq(3).any(),
    lambda ids: (ids / 2).sum(),
]
NOT_UNIFORM: list[Callable[[torch.Tensor], torch.Tensor]] = [
    lambda ids: ids.cumsum(0).max(),
    lambda ids: torch.cat([ids, ids + 1]).eq(3).all(),
    lambda ids: (ids + torch.arange(40, device=ids.device)[:, None]).max(),
    lambda ids: ids.float().tril().sum(),
]


@pytest.mark.parametrize("reduce", [*REDUCTIONS, *NOT_UNIFORM])
def test_a_value_read_is_the_one_that_torch_computes(
    late: KnownValues, reduce: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    expected = reduce(torch.full(SHAPE, 3))
    result = reduce(make_ids(late, 3))
    assert result.dtype == expected.dtype
    assert result.item() == expected.item()


def test_tensors_of_one_number_are_not_computed_in_full(
    late: KnownValues, computed: list[object]
) -> None:
    ids = make_ids(late, 3)
    assert ids.ne(4).long().mul(~(ids < 0)).eq(1).all()
    # The answer is read from a reduction, which is found from one element of each tensor.
    assert computed == []


def test_one_number_is_read_where_rows_of_it_are_needed(late: KnownValues) -> None:
    ids = make_ids(late, 3)
    doubled = ids + ids
    assert doubled.max().item() == 6
    assert doubled.tolist() == [[6] * 3] * 40


def test_a_write_after_a_reading_changes_what_follows_and_not_what_followed(
    late: KnownValues,
) -> None:
    ids = make_ids(late, 3)
    before, view = ids + 1, ids[:, 1:]
    assert before.max().item() == 4
    assert view.max().item() == 3
    ids[0, 1] = 8
    assert before.max().item() == 4
    assert view.max().item() == ids.max().item() == 8
    assert (ids + 1).max().item() == 9
