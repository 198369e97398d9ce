"""Quantiles and p-values of Student's t are those of scipy, within the formula's error."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as students_t

from moetool.analysis.statistics.students_t import find_p_values, find_quantiles


@pytest.mark.parametrize("degrees_of_freedom", [3.5, 4.5, 12.3, 209.0])
def test_quantiles_are_students(degrees_of_freedom: float) -> None:
    exact = students_t.ppf(0.975, degrees_of_freedom)
    assert find_quantiles(np.array([degrees_of_freedom])) == pytest.approx([exact], rel=0.01)


@pytest.mark.parametrize("degrees_of_freedom", [3.0, 4.5, 12.3, 209.0])
@pytest.mark.parametrize("t", [0.0, 0.5, 2.0, -3.0])
def test_p_values_are_students(t: float, degrees_of_freedom: float) -> None:
    exact = 2 * students_t.sf(abs(t), degrees_of_freedom)
    found = find_p_values(np.array([t]), np.array([degrees_of_freedom]))
    assert found == pytest.approx([exact], rel=0.06, abs=1e-12)


def test_a_p_value_of_the_quantile_is_that_of_the_interval() -> None:
    degrees_of_freedom = np.array([1.0, 2.7, 40.0])
    quantiles = find_quantiles(degrees_of_freedom)
    assert find_p_values(quantiles, degrees_of_freedom) == pytest.approx(0.05)


def test_the_unknown_stays_unknown() -> None:
    assert np.isnan(find_quantiles(np.array([np.nan]))).all()
    assert np.isnan(find_p_values(np.array([np.nan, 1.0]), np.array([3.0, np.nan]))).all()
