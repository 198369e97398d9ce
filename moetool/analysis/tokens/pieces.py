"""Pieces of a tokenizer, and the texts that they stand for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from functools import cache

# Letters that tokenizers write for a space.
_SPACES = str.maketrans("Ġ▁", "  ")


def find_token_ids(pieces: Mapping[int, str], text: str) -> tuple[int, ...]:
    """Return the ids whose piece is a text, or stands for it; in ascending order."""
    return tuple(sorted(one for one, piece in pieces.items() if text in spell_piece(piece)))


def find_similar_pieces(pieces: Iterable[str], text: str, *, most: int = 5) -> list[str]:
    """Return pieces that contain a text or differ in case or spaces only, the shortest first."""
    wanted = text.strip().casefold()
    found = {piece for piece in pieces if wanted and wanted in piece.casefold()}
    return sorted(found, key=lambda piece: (len(piece), piece))[:most]


def spell_piece(piece: str) -> Collection[str]:
    """Return the texts that a piece may stand for: itself, with spaces, and decoded from bytes.

    Byte-level tokenizers write each byte of UTF-8 as a visible letter.
    """
    spellings = {piece, piece.translate(_SPACES)}
    letters = _list_byte_letters()
    if all(letter in letters for letter in piece):
        with suppress(UnicodeDecodeError):
            spellings.add(bytes(letters[letter] for letter in piece).decode())
    return spellings


def read_piece(piece: str) -> str:
    """Return the text that a piece most likely stands for: decoded, or with spaces."""
    letters = _list_byte_letters()
    if any(ord(letter) > 127 for letter in piece) and all(letter in letters for letter in piece):
        with suppress(UnicodeDecodeError):
            return bytes(letters[letter] for letter in piece).decode()
    return piece.translate(_SPACES)


@cache
def _list_byte_letters() -> Mapping[str, int]:
    """Return the byte that each letter of a byte-level tokenizer stands for.

    Bytes that are visible characters of Latin-1 stand for themselves; the others, in order, are
    the letters from U+0100 on (Radford et al. 2019, GPT-2).
    """
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {
        **{chr(byte): byte for byte in visible},
        **{chr(256 + number): byte for number, byte in enumerate(hidden)},
    }
