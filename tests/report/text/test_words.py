"""Words for values that may be unknown."""

from __future__ import annotations

import pytest

from moetool.report.text.words import word_count, word_range, word_share, word_size


def test_an_unknown_value_is_shown_as_unknown() -> None:
    assert (word_size(None), word_size(0)) == ("unknown", "0 bytes")
    assert (word_count(None), word_count(46_702_792_704)) == ("unknown", "46.70B")


def test_a_range_that_is_one_number_is_shown_as_one() -> None:
    assert (word_range((7, 7)), word_range((4, 7, 5))) == ("7", "4 to 7")


@pytest.mark.parametrize(
    ("share", "words"), [(0.0, "0.0%"), (1e-9, "<0.1%"), (0.0006, "0.1%"), (1.0, "100.0%")]
)
def test_a_share_of_what_is_there_is_never_nothing(share: float, words: str) -> None:
    assert word_share(share) == words
