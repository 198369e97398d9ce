"""The tail of the F distribution, against scipy's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import f as f_distribution

from moetool.analysis.statistics.f_distribution import find_f_tail

DEGREES = st.floats(0.2, 20_000)


@given(st.floats(0, 1000), DEGREES, DEGREES)
def test_the_tail_is_that_of_scipy(ratio: float, numerator: float, denominator: float) -> None:
    expected = float(f_distribution.sf(ratio, numerator, denominator))
    found = find_f_tail(ratio, numerator, denominator)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_tables_of_quantiles_are_met() -> None:
    for ratio, numerator, denominator in ((161.4476, 1, 1), (4.4590, 2, 8), (2.2967, 10, 22)):
        assert find_f_tail(ratio, numerator, denominator) == pytest.approx(0.05, rel=1e-3)


def test_limits() -> None:
    assert find_f_tail(0.0, 3, 5) == 1
    assert find_f_tail(float("inf"), 3, 5) == 0
