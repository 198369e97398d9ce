"""Numbers and lists as people read them."""

from __future__ import annotations

import pytest

from moetool.wording import format_bytes, format_count, join_words, number_of


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 prompts"), (1, "1 prompt"), (2, "2 prompts"), (1200, "1,200 prompts")],
)
def test_one_of_a_kind_is_singular(count: int, words: str) -> None:
    assert number_of(count, "prompt") == words


@pytest.mark.parametrize(
    ("words", "sentence"), [(["a"], "a"), (["a", "b"], "a or b"), (["a", "b", "c"], "a, b or c")]
)
def test_a_list_ends_with_its_last_word(words: list[str], sentence: str) -> None:
    assert join_words(words, last="or") == sentence


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
