"""Sizes followed from those seen, compared with what they were made of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.simulation.memory.cuda_kernels import count_sort_bytes
from moetool.simulation.memory.expected_sizes import expect_sizes, expect_sort_sizes

# Apart enough that one rule alone explains each kind of growth.
SEEN = [2048, 2173, 2290, 4098, 5001]

GROWTHS: dict[str, Callable[[int], int]] = {
    "constant": lambda _: 512,
    "in a line": lambda n: 24 * n + 7,
    "in blocks of 32": lambda n: 128 * -(-n // 32) * 32,
    "with the square": lambda n: 2 * n * n + 8 * n,
}


@pytest.mark.parametrize("number", [1, 100, 3000, 32_512])
def test_each_kind_of_growth_is_followed(number: int) -> None:
    sizes = np.array([[grow(each) for grow in GROWTHS.values()] for each in SEEN])
    found, is_unknown = expect_sizes(SEEN, sizes, number)
    assert found.tolist() == [grow(number) for grow in GROWTHS.values()]
    assert not is_unknown.any()


def test_sizes_that_follow_no_rule_are_unknown_and_others_are_not() -> None:
    sizes = np.array([[10, 1], [20, 7], [30, 3], [40, 11]])
    found, is_unknown = expect_sizes([1, 2, 3, 4], sizes, 5)
    assert (found[0], is_unknown.tolist()) == (50, [False, True])


def test_a_size_that_would_be_negative_is_unknown() -> None:
    _, is_unknown = expect_sizes([2, 4], np.array([[6], [1]]), 8)
    assert is_unknown.tolist() == [True]


@given(st.integers(4097, 10**6), st.sampled_from([2, 4, 8]))
def test_a_sort_takes_what_its_kernel_takes(num_rows: int, key_bytes: int) -> None:
    rows = np.array([5000, 9001, 20_011])
    sizes = np.array([count_sort_bytes(int(each), key_bytes) for each in rows])
    expected = count_sort_bytes(num_rows, key_bytes)
    assert expect_sort_sizes(rows * 8, sizes, num_rows * 8) == expected
    assert expect_sort_sizes(rows * 8, sizes + 1, num_rows * 8) is None
