"""The bytes of a GGUF header, read in order, with every length checked before it is used."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# A header of half a million tokens and their merges takes 20 MB.
_MOST_HEADER_BYTES = 256 * 2**20
# Texts take Python's time. The largest vocabularies have a million, merges included.
_MOST_TEXTS = 5_000_000
# Longer lists are counted: they are vocabularies, scores and merges.
_MOST_KEPT = 4096
# What is read at once.
CHUNK_BYTES = 4 * 2**20
_STRING, _ARRAY = 8, 9
# By GGUF's number of the type.
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?",
    10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_LENGTH = struct.Struct("<Q")


class GgufError(Exception):
    """A header breaks a rule of the format; the message says what was seen."""


@dataclass(frozen=True)
class LongList:
    """A list of a header that is too long to be kept.

    Attributes:
        count: Its items.
    """

    count: int


class Cursor:
    """A position in a header.

    Args:
        read: Returns the bytes of the file from a start to an end.
        file_bytes: Length of the whole file.
    """

    def __init__(self, read: Callable[[int, int], bytes], *, file_bytes: int) -> None:
        self._read, self._file_bytes = read, file_bytes
        self._data = bytearray()
        self._num_texts = 0
        self.position = 0

    def take(self, num_bytes: int) -> bytes:
        """Return the next bytes."""
        start = self.position
        self._skip(num_bytes)
        return bytes(self._data[start : self.position])

    def number(self, kind: str) -> Any:
        """Return the next number, of a type of `struct`."""
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def count(self, *, least_bytes: int) -> int:
        """Return a number of items, each of which takes some bytes of the rest of the file."""
        count: int = self.number("<Q")
        if count * least_bytes > self._file_bytes - self.position:
            raise GgufError(f"{count} items, for which the file is too short")
        return count

    def text(self) -> str:
        """Return the next text."""
        return self.take(self.number("<Q")).decode(errors="backslashreplace")

    def value(self) -> Any:
        """Return the next value of the metadata; a `LongList` for a long list."""
        kind = self.number("<I")
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            return self._list()
        if kind not in _SCALARS:
            raise GgufError(f"a value of the unknown type {kind}")
        return self.number(_SCALARS[kind])

    def _list(self) -> Any:
        kind = self.number("<I")
        if kind == _ARRAY:
            raise GgufError("a list of lists, which llama.cpp doesn't read")
        if kind == _STRING:
            count = self.count(least_bytes=_LENGTH.size)
            if count <= _MOST_KEPT:
                return [self.text() for _ in range(count)]
            self._skip_texts(count)
            return LongList(count)
        if kind not in _SCALARS:
            raise GgufError(f"a list of the unknown type {kind}")
        size = struct.calcsize(_SCALARS[kind])
        count = self.count(least_bytes=size)
        if count <= _MOST_KEPT:
            return [item for (item,) in struct.iter_unpack(_SCALARS[kind], self.take(count * size))]
        self._skip(count * size)
        return LongList(count)

    def _skip_texts(self, count: int) -> None:
        self._num_texts += count
        if self._num_texts > _MOST_TEXTS:
            raise GgufError(f"{self._num_texts} texts, where {_MOST_TEXTS} are allowed")
        unpack, position = _LENGTH.unpack_from, self.position
        loaded = len(self._data) - _LENGTH.size
        for _ in range(count):
            if position > loaded:
                self.position = position
                self._skip(_LENGTH.size)
                loaded = len(self._data) - _LENGTH.size
            position += _LENGTH.size + unpack(self._data, position)[0]
        self._skip(position - self.position)

    def _skip(self, num_bytes: int) -> None:
        """Move on, after checking that the bytes are there, and reading them if necessary."""
        end = self.position + num_bytes
        if end > self._file_bytes:
            raise GgufError("a header that breaks off")
        if end > _MOST_HEADER_BYTES:
            raise GgufError(f"a header of more than {_MOST_HEADER_BYTES // 2**20} MiB")
        missing = end - len(self._data)
        if missing > 0:
            start = len(self._data)
            stop = min(start + max(missing, CHUNK_BYTES), self._file_bytes)
            chunk = self._read(start, stop)
            if len(chunk) != stop - start:
                raise GgufError("a file that ends earlier than its length says")
            self._data += chunk
        self.position = end
