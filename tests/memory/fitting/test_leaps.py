"""Searches among batches that fit in less memory than they would take."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.memory.fitting.search import search_limits
from moetool.memory.fitting.trials import Trial

MIB = 2**20


def find_batch(limit: int, count_allocated: Callable[[int], int] | None) -> tuple[int, list[int]]:
    """Return the largest batch, and those tried, if batches from 40 on need reserve given back."""
    tried: list[int] = []

    def try_sizes(batch_size: int, num_prompt_tokens: int) -> Trial:
        if num_prompt_tokens == 64:
            tried.append(batch_size)
        return Trial(
            batch_size * 25 * MIB,
            fits=batch_size <= limit,
            allocated_bytes=count_allocated and count_allocated(batch_size),
        )

    found = search_limits(
        try_sizes,
        memory_bytes=1000 * MIB,
        batch_size=1,
        num_prompt_tokens=64,
        num_new_tokens=1,
        context=65,
    )
    return found.limits.largest_batch_size, tried


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (80, [1, 2, 32, 40, 41, 80, 81]),
        (70, [1, 2, 32, 40, 41, 80, 60, 70, 75, 72, 71]),
        (45, [1, 2, 32, 40, 41, 80, 60, 42, 44, 48, 46, 45]),
    ],
)
def test_numbers_are_tried_where_allocated_bytes_end_and_halfway_there(
    limit: int, expected: list[int]
) -> None:
    """Beyond 40, and up to 80, the memory suffices once reserve is given back."""
    step_by_step, steps = find_batch(limit, None)
    batch, tried = find_batch(limit, lambda batch_size: batch_size * 1000 * MIB // 80)
    assert batch == step_by_step == limit
    assert tried == expected
    assert len(tried) <= len(steps) + 2


@given(limit=st.integers(40, 200), allocated=st.lists(st.integers(0, 2000), min_size=1))
def test_wrong_allocated_bytes_do_not_change_the_largest_batch(
    limit: int, allocated: list[int]
) -> None:
    batch, tried = find_batch(limit, lambda size: allocated[size % len(allocated)] * MIB)
    assert batch == limit
    assert {limit, limit + 1} <= set(tried)
