"""Numbers as people read them."""

from __future__ import annotations

import pytest

from moetool.report.text.numbers import format_p_value, format_place


@pytest.mark.parametrize(
    ("value", "num_permutations", "text"),
    [(0.25, 999, "0.250"), (1.0, 999, "1.000"), (0.001, 999, "≤ 0.001"), (0.05, 19, "≤ 0.05")],
)
def test_the_smallest_possible_p_value_is_a_bound(
    value: float, num_permutations: int, text: str
) -> None:
    assert format_p_value(value, num_permutations=num_permutations) == text


def test_a_p_value_above_the_smallest_is_never_written_as_nothing() -> None:
    assert format_p_value(2 / 10_001, num_permutations=10_000) != "0.000"


@pytest.mark.parametrize(
    ("stack", "text"), [("decoder", "L3.E5"), ("encoder", "encoder L3.E5")], ids=str
)
def test_an_expert_is_named_by_its_layer_and_number(stack: str, text: str) -> None:
    assert format_place(stack, 3, 5) == text
