"""q-values and discoveries are those of Benjamini and Hochberg."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from moetool.analysis.statistics.discoveries import find_discoveries, find_q_values

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=20)


@given(P_VALUES)
def test_q_values_are_those_of_scipy(values: list[float]) -> None:
    q_values = find_q_values(np.array(values))
    assert q_values.tolist() == pytest.approx(false_discovery_control(values).tolist())


@given(P_VALUES, st.integers(0, 20))
def test_unknown_p_values_stay_unknown_and_do_not_count(values: list[float], place: int) -> None:
    with_unknown = np.insert(np.array(values), min(place, len(values)), np.nan)
    q_values = find_q_values(with_unknown)
    known = q_values[~np.isnan(with_unknown)]
    assert known.tolist() == find_q_values(np.array(values)).tolist()
    assert np.isnan(q_values).sum() == 1
    assert not find_discoveries(with_unknown, rate=1.0)[np.isnan(with_unknown)].any()


@given(st.lists(st.floats(0, 1), min_size=6, max_size=6))
def test_the_shape_is_kept(values: list[float]) -> None:
    flat = find_q_values(np.array(values))
    assert find_q_values(np.array(values).reshape(2, 3)).tolist() == flat.reshape(2, 3).tolist()


@given(P_VALUES, st.floats(0.01, 0.5))
def test_discoveries_follow_the_step_up_procedure(values: list[float], rate: float) -> None:
    ordered = sorted(values)
    passing = [p for rank, p in enumerate(ordered, start=1) if p * len(values) / rank <= rate]
    limit = max(passing, default=-1.0)
    discoveries = find_discoveries(np.array(values), rate=rate)
    assert discoveries.tolist() == [p <= limit for p in values]
