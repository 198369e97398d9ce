"""Pieces of a tokenizer, and the texts that they stand for."""

from __future__ import annotations

import re
from codecs import getincrementaldecoder
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache

# A byte that a tokenizer has no other piece for.
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
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


def read_pieces(pieces: Sequence[str | None]) -> list[str | None]:
    """Return the texts that the pieces of a text stand for, one after the other.

    A character whose bytes several pieces share is the text of the last of these; the others have
    none. Bytes that make no character become U+FFFD.
    """
    known = [piece for piece in pieces if piece is not None]
    has_byte_letters = any("Ġ" in piece or "Ċ" in piece for piece in known) and not any(
        "▁" in piece for piece in known
    )
    decoder = getincrementaldecoder("utf-8")(errors="replace")
    texts: list[str | None] = []
    for piece in pieces:
        content = None if piece is None else _find_bytes(piece, has_byte_letters=has_byte_letters)
        if content is not None:
            texts.append(decoder.decode(content))
            continue
        # Whatever was begun ends here.
        rest = decoder.decode(b"", final=True)
        decoder.reset()
        texts.append(None if piece is None else rest + read_piece(piece))
    rest = decoder.decode(b"", final=True)
    if rest and texts and texts[-1] is not None:
        texts[-1] += rest
    return texts


def _find_bytes(piece: str, *, has_byte_letters: bool) -> bytes | None:
    """Return the bytes that a piece stands for; None if it stands for characters."""
    if found := _BYTE.fullmatch(piece):
        return bytes([int(found[1], 16)])
    letters = _list_byte_letters()
    if has_byte_letters and all(letter in letters for letter in piece):
        return bytes(letters[letter] for letter in piece)
    return None


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
