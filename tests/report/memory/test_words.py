"""Words for sizes, times and fits: no misleading sign, unit or zero."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.report.memory.words import (
    word_change,
    word_fit,
    word_seconds,
    word_sizes,
)
from tests.report.memory.estimates import GIB, MIB, make_fit


@pytest.mark.parametrize(
    ("num_bytes", "words"),
    [
        (0, "0 bytes"),
        (512, "+512 bytes"),
        (-512, "-512 bytes"),
        (3 * MIB, "+3.0 MiB"),
        (-5 * GIB, "-5.0 GiB"),
    ],
)
def test_a_difference_has_a_sign_and_a_unit(num_bytes: int, words: str) -> None:
    assert word_change(num_bytes) == words


@pytest.mark.parametrize(
    ("headroom_bytes", "words"),
    [
        (51 * GIB, "yes +51.0"),
        (0, "yes +0.01"),
        (1, "yes +0.01"),
        (-1, "no -0.01"),
        (-45 * MIB, "no -0.04"),
        (97 * MIB, "yes +0.09"),
        (98 * MIB, "yes +0.1"),
        (-1234 * GIB, "no -1234.0"),
    ],
)
def test_a_fit_has_the_gibibytes_left_or_missing(headroom_bytes: int, words: str) -> None:
    fit = make_fit("any", memory_gib=80, needs_gib=80)
    fit = replace(fit, fits=headroom_bytes >= 0, headroom_bytes=headroom_bytes)
    assert word_fit(fit) == words


@given(st.integers(-(2**45), 2**45))
def test_no_fit_is_shown_with_nothing_left_or_missing(headroom_bytes: int) -> None:
    fit = make_fit("any", memory_gib=80, needs_gib=80)
    word = word_fit(replace(fit, fits=headroom_bytes >= 0, headroom_bytes=headroom_bytes))
    assert float(word.split()[1]) != 0
    assert (float(word.split()[1]) > 0) == (headroom_bytes >= 0) == word.startswith("yes")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "unknown"),
        (0.0, "0 µs"),
        (0.00083, "830 µs"),
        (0.0009996, "1.0 ms"),
        (0.0272, "27.2 ms"),
        (0.99996, "1.0 s"),
        (1234.5, "1,234.5 s"),
    ],
)
def test_a_time_has_the_unit_that_suits_it(seconds: float | None, words: str) -> None:
    assert word_seconds(seconds) == words


def test_sizes_that_are_shown_alike_are_shown_as_one() -> None:
    assert word_sizes((GIB, GIB + 1)) == "1.0 GiB"
    assert word_sizes((GIB, 2 * GIB)) == "1.0 to 2.0 GiB"
