"""The descriptions of arrays in a database of TensorStore (OCDBT), in which Orbax keeps them.

A manifest points to the root of a B+tree, whose nodes and values lie in files of a folder. Only the
values that describe arrays are read. The format is that of TensorStore's documentation,
<https://google.github.io/tensorstore/kvstore/ocdbt/index.html#storage-format>.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from moetool.errors import InputError

MANIFEST = "manifest.ocdbt"
_MANIFEST_MAGIC, _NODE_MAGIC = 0x0CDB3A2A, 0x0CDB20DE
_ZSTD = 1
# Far above the size of a node (8 MB by default), and of the description of an array.
_MAX_NODE_BYTES = 200_000_000
_MAX_VALUE_BYTES = 1_000_000
_MOST_NODES = 100_000
_MOST_ENTRIES = 1_000_000
_MOST_LEVELS = 20
_CHECKSUM_BYTES = 4
_INDIRECT = 1


class _FormatError(Exception):
    """A file breaks a rule of the format. The message is the end of a sentence."""


@dataclass(frozen=True)
class _Place:
    """A range of bytes in a file of the database.

    Attributes:
        file: Its path from the database's folder.
        base: The start of that path to which the paths in a node there are relative.
        offset: Of the first byte.
        length: Number of bytes.
    """

    file: str
    base: str
    offset: int
    length: int


def read_descriptions(folder: Path, *, is_wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Return the values of a database whose keys are wanted, by key.

    Raises:
        InputError: A file is missing or broken.
    """
    reader = _Reader(folder)
    try:
        return dict(reader.walk(is_wanted))
    except (_FormatError, OSError, ValueError) as error:
        seen = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        raise InputError(
            f"'{folder / MANIFEST}' does not lead to the arrays of a checkpoint.",
            hint="Copy the checkpoint again: files are missing or damaged.",
            facts=[f"seen: {seen.partition(chr(10))[0][:200]}"],
        ) from error


class _Reader:
    """Reads the nodes of one database."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._num_nodes = 0
        self._num_entries = 0

    def walk(self, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
        """Yield the wanted keys and values."""
        content = (self._folder / MANIFEST).read_bytes()
        height, root = _read_manifest(_Cursor(_unpack(content, _MANIFEST_MAGIC)))
        if root is not None:
            yield from self._walk_node(root, height, b"", is_wanted)

    def _walk_node(
        self, place: _Place, height: int, prefix: bytes, is_wanted: Callable[[str], bool]
    ) -> Iterator[tuple[str, bytes]]:
        self._num_nodes += 1
        if self._num_nodes > _MOST_NODES or height > _MOST_LEVELS:
            raise _FormatError("a tree without an end")
        cursor = _Cursor(_unpack(self._read(place, _MAX_NODE_BYTES), _NODE_MAGIC))
        if cursor.take(1)[0] != height:
            raise _FormatError("a node of another height than its parent's")
        files = _read_file_table(cursor, base=place.base)
        count = cursor.varint()
        self._num_entries += count
        if not 0 < self._num_entries <= _MOST_ENTRIES:
            raise _FormatError(f"more than {_MOST_ENTRIES:,} keys")
        if height:
            keys, commons = _read_keys(cursor, count, has_common=True)
            places = _read_places(cursor, files, count)
            cursor.varints(3 * count)
            for key, common, child in zip(keys, commons, places, strict=True):
                yield from self._walk_node(child, height - 1, prefix + key[:common], is_wanted)
            return
        keys, _ = _read_keys(cursor, count, has_common=False)
        lengths = cursor.varints(count)
        kinds = cursor.take(count)
        indirect = sum(kind == _INDIRECT for kind in kinds)
        ids, offsets = cursor.varints(indirect), cursor.varints(indirect)
        at = 0
        for key, length, kind in zip(keys, lengths, kinds, strict=True):
            name = (prefix + key).decode()
            if kind == _INDIRECT:
                stored = _Place(*_find(files, ids[at]), offsets[at], length)
                at += 1
                if is_wanted(name):
                    yield name, self._read(stored, _MAX_VALUE_BYTES)
            else:
                value = cursor.take(length)
                if is_wanted(name):
                    yield name, value

    def _read(self, place: _Place, max_bytes: int) -> bytes:
        if place.length > max_bytes:
            raise _FormatError(f"{place.length} bytes, where {max_bytes} are allowed")
        if place.file.startswith("/") or ".." in place.file.split("/"):
            raise _FormatError("a file outside the checkpoint")
        with (self._folder / place.file).open("rb") as file:
            file.seek(place.offset, os.SEEK_SET)
            content = file.read(place.length)
        if len(content) < place.length:
            raise _FormatError(f"{place.file:.80} breaks off")
        return content


class _Cursor:
    """Takes bytes and numbers from the start of some bytes."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def take(self, num_bytes: int) -> bytes:
        start, self._at = self._at, self._at + num_bytes
        if self._at > len(self._content):
            raise _FormatError("a node breaks off")
        return self._content[start : self._at]

    def varint(self) -> int:
        value = 0
        for shift in range(0, 64, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise _FormatError("a number longer than 64 bits")

    def varints(self, count: int) -> list[int]:
        if count > len(self._content):
            raise _FormatError("more numbers than bytes")
        return [self.varint() for _ in range(count)]


def _unpack(content: bytes, magic: int) -> bytes:
    """Return the body of a manifest or a node, without its header and checksum."""
    if len(content) < 18 or int.from_bytes(content[:4], "big") != magic:
        raise _FormatError("a file that does not begin as one of OCDBT")
    if int.from_bytes(content[4:12], "little") != len(content):
        raise _FormatError("a file of another length than it states")
    cursor = _Cursor(content[12:-_CHECKSUM_BYTES])
    version, compression = cursor.varint(), cursor.varint()
    body = cursor.take(len(content) - 12 - _CHECKSUM_BYTES - 2)
    if version != 0 or compression not in (0, _ZSTD):
        raise _FormatError(f"version {version}, compression {compression}")
    return _decompress(body) if compression == _ZSTD else body


def _decompress(content: bytes) -> bytes:
    import pyarrow as pa

    try:
        with pa.CompressedInputStream(pa.BufferReader(content), "zstd") as stream:
            body: bytes = stream.read(_MAX_NODE_BYTES + 1)
    except (pa.ArrowException, OSError) as error:
        raise _FormatError("damaged compressed bytes") from error
    if len(body) > _MAX_NODE_BYTES:
        raise _FormatError(f"a node larger than {_MAX_NODE_BYTES:,} bytes")
    return body


def _read_manifest(cursor: _Cursor) -> tuple[int, _Place | None]:
    """Return the height and the place of the newest root; no place if the database is empty."""
    cursor.take(16)
    if cursor.varint() != 0:
        raise _FormatError("a manifest in several files")
    cursor.varints(2)
    cursor.take(1)
    if cursor.varint() == _ZSTD:
        cursor.take(4)
    files = _read_file_table(cursor, base="")
    count = cursor.varint()
    if count == 0:
        raise _FormatError("no version")
    cursor.varints(count)
    heights = cursor.take(count)
    places = _read_places(cursor, files, count)
    return heights[-1], places[-1]


def _read_file_table(cursor: _Cursor, *, base: str) -> list[tuple[str, str]]:
    """Return the paths of files and their bases, from the database's folder."""
    count = cursor.varint()
    paths, lengths = _read_keys(cursor, count, has_common=True)
    return [
        (base + path.decode(), base + path[:length].decode())
        for path, length in zip(paths, lengths, strict=True)
    ]


def _read_keys(cursor: _Cursor, count: int, *, has_common: bool) -> tuple[list[bytes], list[int]]:
    """Return keys, of which each begins as the one before it, and a number for each."""
    shared = [0, *cursor.varints(count - 1)] if count else []
    own = cursor.varints(count)
    numbers = cursor.varints(count) if has_common else []
    keys: list[bytes] = []
    for start, length in zip(shared, own, strict=True):
        last = keys[-1] if keys else b""
        if start > len(last):
            raise _FormatError("a key that begins as a shorter one")
        keys.append(last[:start] + cursor.take(length))
    return keys, numbers


def _read_places(cursor: _Cursor, files: list[tuple[str, str]], count: int) -> list[_Place]:
    ids, offsets, lengths = (cursor.varints(count) for _ in range(3))
    return [
        _Place(*_find(files, number), offset, length)
        for number, offset, length in zip(ids, offsets, lengths, strict=True)
    ]


def _find(files: list[tuple[str, str]], number: int) -> tuple[str, str]:
    if number >= len(files):
        raise _FormatError("a file that is not in the table")
    return files[number]
