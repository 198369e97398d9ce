"""Sizes followed from those seen, compared with what they were made of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.simulation.memory.cuda_kernels import count_sort_bytes
from moetool.simulation.memory.expected_sizes import SeenSizes, expect_sort_sizes

# Apart enough that one rule alone explains each kind of growth.
SEEN = [2048, 2173, 2290, 4098, 5001]

GROWTHS: dict[str, Callable[[int], int]] = {
    "constant": lambda _: 512,
    "in a line": lambda n: 24 * n + 7,
    "in blocks of 32": lambda n: 128 * -(-n // 32) * 32,
    "with the square": lambda n: 2 * n * n + 8 * n,
    "with the square of blocks": lambda n: (-(-n // 128) + 1) ** 2,
    "as a share of 8 that is served first": lambda n: 512 * ((3 * n + 7) // 8),
    "as a share of 8 that is served last": lambda n: 512 * (3 * n // 8),
}


@pytest.mark.parametrize("number", [1, 100, 3000, 32_512])
def test_each_kind_of_growth_is_followed(number: int) -> None:
    sizes = np.array([[grow(each) for grow in GROWTHS.values()] for each in SEEN])
    found, is_unknown = SeenSizes(SEEN, sizes).expect(number)
    assert found.tolist() == [grow(number) for grow in GROWTHS.values()]
    assert not is_unknown.any()


def test_sizes_that_follow_no_rule_are_unknown_and_others_are_not() -> None:
    sizes = np.array([[10, 1], [20, 7], [30, 3], [40, 11]])
    found, is_unknown = SeenSizes([1, 2, 3, 4], sizes).expect(5)
    assert (found[0], is_unknown.tolist()) == (50, [False, True])


def test_a_size_that_would_be_negative_is_unknown() -> None:
    _, is_unknown = SeenSizes([2, 4], np.array([[6], [1]])).expect(8)
    assert is_unknown.tolist() == [True]


@given(st.integers(4097, 10**6), st.sampled_from([2, 4, 8]))
def test_a_sort_takes_what_its_kernel_takes(num_rows: int, key_bytes: int) -> None:
    rows = [5000, 9001, 20_011]
    indices = [each * 8 for each in rows]
    sizes = [count_sort_bytes(each, key_bytes) for each in rows]
    expected = count_sort_bytes(num_rows, key_bytes)
    assert expect_sort_sizes(indices, sizes, num_rows * 8) == expected
    assert expect_sort_sizes(indices, [size + 1 for size in sizes], num_rows * 8) is None


def test_a_sort_that_looks_like_a_line_is_not_followed_along_it() -> None:
    rows = [5120, 10_240]
    sizes = np.array([[each * 8, count_sort_bytes(each, 8)] for each in rows])
    (_, on_line), _ = SeenSizes(rows, sizes).expect(9217)
    (_, found), _ = SeenSizes(rows, sizes, sorts=[1]).expect(9217)
    assert found == count_sort_bytes(9217, 8) != on_line


def test_a_share_whose_turn_is_open_is_unknown_where_the_turn_matters() -> None:
    # Shares of four that are served last, and those served before them, which get one more of 407.
    numbers, shares = [4, 9, 18, 402], [1, 2, 4, 100]
    seen = SeenSizes(numbers, np.array([[512 * share] for share in shares]))
    assert seen.expect(406)[0].tolist() == [512 * 101]
    assert seen.expect(407)[1].tolist() == [True]


def test_a_parabola_between_whole_bytes_is_not_followed() -> None:
    # There is one through any three points.
    _, is_unknown = SeenSizes([2048, 2304, 2816], np.array([[289], [325], [401]])).expect(4096)
    assert is_unknown.all()
