"""Texts of pieces that share the bytes of a character, in byte-level and other tokenizers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from moetool.analysis.tokens.pieces import read_pieces

# Visible letters for bytes, as byte-level tokenizers have them.
VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
HIDDEN = [byte for byte in range(256) if byte not in VISIBLE]
LETTERS = {
    **{byte: chr(byte) for byte in VISIBLE},
    **{byte: chr(256 + number) for number, byte in enumerate(HIDDEN)},
}


@given(text=st.text(max_size=12), cuts=st.sets(st.integers(1, 40)))
def test_the_texts_of_byte_level_pieces_are_the_text(text: str, cuts: set[int]) -> None:
    content = f" {text}".encode(errors="replace")
    bounds = [0, *sorted(cut for cut in cuts if cut < len(content)), len(content)]
    pieces = [
        "".join(LETTERS[byte] for byte in content[start:end]) for start, end in pairwise(bounds)
    ]
    assert "".join(str(found) for found in read_pieces(pieces)) == content.decode()


def test_a_character_is_the_text_of_the_last_of_its_pieces() -> None:
    first, second = (LETTERS[byte] for byte in "¿".encode())
    assert read_pieces(["Ġ", first, second, "Me"]) == [" ", "", "¿", "Me"]


def test_bytes_that_make_no_character_are_marked_as_such() -> None:
    first, _ = (LETTERS[byte] for byte in "é".encode())
    assert read_pieces(["Ġ", first, "a"]) == [" ", "", "\ufffda"]
    assert read_pieces(["Ġ", first]) == [" ", "\ufffd"]


def test_other_tokenizers_mark_spaces_and_write_single_bytes() -> None:
    pieces = ["▁é", "<0xC3>", "<0xA9>", "Â", None]
    assert read_pieces(pieces) == [" é", "", "é", "Â", None]
