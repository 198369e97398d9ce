"""Numbers as people read them."""

from __future__ import annotations

import pytest

from moetool.report.text.numbers import format_bytes, format_count, format_p_value, format_place


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (3 * 2**20, "3.0 MiB"),
        (5 * 2**30 // 2, "2.5 GiB"),
        (2**42, "4.00 TiB"),
        (2**20 - 1, "1.0 MiB"),
        (2**30 - 1, "1.0 GiB"),
        (2**40 - 1, "1.00 TiB"),
    ],
)
def test_a_size_has_a_binary_unit(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.000K"),
        (9_999.4, "9.999K"),
        (9_999.6, "10.00K"),
        (99_999, "100.0K"),
        (999_949, "999.9K"),
        (999_950, "1.000M"),
        (46_702_792_704, "46.70B"),
        (1_600_000_000_000, "1.600T"),
        (999_900_000_000_000, "999.9T"),
        (10**18, "1.000e+18"),
    ],
)
def test_a_count_has_four_digits_and_a_decimal_unit(number: float, text: str) -> None:
    assert format_count(number) == text


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
