"""Extrapolation from short prompts to long ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.simulation.flops.prompt_length import SHORT_PROMPTS, extrapolate

COEFFICIENTS = st.integers(min_value=0, max_value=10**15)


@given(COEFFICIENTS, COEFFICIENTS, COEFFICIENTS, st.integers(min_value=1, max_value=10**6))
def test_a_polynomial_of_the_second_degree_is_continued_exactly(
    constant: int, linear: int, quadratic: int, length: int
) -> None:
    def flops(num_tokens: int) -> int:
        return constant + linear * num_tokens + quadratic * num_tokens**2

    short = [flops(num_tokens) for num_tokens in SHORT_PROMPTS]
    assert extrapolate(short, num_prompt_tokens=length) == flops(length)


@pytest.mark.parametrize("index", range(len(SHORT_PROMPTS)))
def test_nothing_follows_from_other_numbers(index: int) -> None:
    short = [num_tokens**2 for num_tokens in SHORT_PROMPTS]
    short[index] += 1
    assert extrapolate(short, num_prompt_tokens=100) is None


def test_what_a_window_ends_is_not_continued() -> None:
    short = [num_tokens * min(num_tokens, 20) for num_tokens in SHORT_PROMPTS]
    assert extrapolate(short, num_prompt_tokens=100) is None


def test_flops_are_whole_numbers() -> None:
    """The differences 1, 1, 1 of lengths 8 apart put a fraction between them."""
    assert extrapolate([0, 1, 2, 3], num_prompt_tokens=24) == 2
    assert extrapolate([0, 1, 2, 3], num_prompt_tokens=25) is None
