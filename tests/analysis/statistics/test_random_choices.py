"""Random choices are distinct, as many as asked for, and as likely as each other."""

from __future__ import annotations

from collections import Counter
from math import perm

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.analysis.statistics.random_choices import draw_choices


@given(st.data(), st.integers(1, 9))
def test_decisions_have_their_numbers_of_distinct_experts(
    data: st.DataObject, num_experts: int
) -> None:
    sizes = data.draw(st.lists(st.integers(0, num_experts), max_size=8))
    choices = draw_choices(
        np.random.default_rng(0), num_experts, np.array(sizes, dtype=np.int64)
    ).tolist()
    assert len(choices) == len(sizes)
    for row, size in zip(choices, sizes, strict=True):
        assert row[size:] == [-1] * (max(sizes) - size)
        assert len(set(row[:size])) == size
        assert set(row[:size]) <= set(range(num_experts))


@pytest.mark.parametrize(("num_experts", "size"), [(4, 2), (3, 3), (5, 1)])
def test_every_ordered_choice_is_drawn_equally_often(num_experts: int, size: int) -> None:
    number = 20_000
    rows = draw_choices(np.random.default_rng(1), num_experts, np.full(number, size))
    drawn = Counter(map(tuple, rows.tolist()))
    ways = perm(num_experts, size)
    assert len(drawn) == ways
    expected = number / ways
    chi_squared = sum((count - expected) ** 2 / expected for count in drawn.values())
    # Its mean is `ways - 1`, and its standard deviation the root of twice that.
    assert chi_squared < ways - 1 + 4 * (2 * (ways - 1)) ** 0.5


def test_more_experts_than_there_are_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="3 distinct experts of 2"):
        draw_choices(np.random.default_rng(0), 2, np.array([1, 3]))
