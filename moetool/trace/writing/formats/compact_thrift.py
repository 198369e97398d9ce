"""Thrift's compact protocol, read into a tree that keeps every field, known or not.

The protocol is that of `thrift-compact-protocol.md` in Thrift's documentation. A tree read from bytes
that a Thrift library wrote is written as the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class Kind(IntEnum):
    """Types, with their codes."""

    TRUE = 1
    FALSE = 2
    BYTE = 3
    I16 = 4
    I32 = 5
    I64 = 6
    DOUBLE = 7
    BINARY = 8
    LIST = 9
    SET = 10
    MAP = 11
    STRUCT = 12
    UUID = 13


@dataclass(slots=True)
class Value:
    """A value and its type.

    Attributes:
        kind: Its type; that of a truth value says which.
        content: An int, a bool, bytes, `Items`, `Pairs` or, for a struct, `Fields`. Types that are
            only passed on, as doubles are, are left as bytes. For writing, a struct may be bytes
            that `write_struct` returned.
    """

    kind: Kind
    content: Any


@dataclass(slots=True)
class Items:
    """The content of a list or a set."""

    kind: Kind
    contents: list[Any]


@dataclass(slots=True)
class Pairs:
    """The content of a map; an empty one says nothing about the types."""

    key_kind: Kind | None
    value_kind: Kind | None
    contents: list[tuple[Any, Any]]


# The fields of a struct by number, in their order.
Fields = dict[int, Value]

# By code, which takes less time than calling the class.
_KIND_OF = {int(kind): kind for kind in Kind}
_WIDTHS = {Kind.BYTE: 1, Kind.DOUBLE: 8, Kind.UUID: 16}
_INTEGERS = (Kind.I16, Kind.I32, Kind.I64)
_TRUTHS = (Kind.TRUE, Kind.FALSE)
# Longer lists have their length in a separate number, larger steps theirs.
_LARGEST_IN_HEAD = 14
_LARGEST_STEP = 15
_MOST_VARINT_BYTES = 10


def read_struct(data: bytes) -> Fields:
    """Return the struct at the start of some bytes.

    Raises:
        ValueError: The bytes are not a whole struct.
    """
    return _Reader(data).read_fields()


def write_struct(fields: Fields) -> bytes:
    """Return a struct as bytes."""
    return b"".join(_write_fields(fields))


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def read_fields(self) -> Fields:
        fields: Fields = {}
        number = 0
        while head := self._take_byte():
            step, kind = head >> 4, _find_kind(head & 15)
            number = number + step if step else self._read_integer()
            content = kind is Kind.TRUE if kind in _TRUTHS else self._read_content(kind)
            fields[number] = Value(kind, content)
        return fields

    def _read_content(self, kind: Kind) -> Any:
        if kind in _INTEGERS:
            return self._read_integer()
        if kind is Kind.BINARY:
            return self._take(self._read_varint())
        if kind is Kind.STRUCT:
            return self.read_fields()
        if kind in (Kind.LIST, Kind.SET):
            return self._read_items()
        if kind is Kind.MAP:
            return self._read_pairs()
        if kind in _TRUTHS:
            return self._take_byte() == Kind.TRUE
        return self._take(_WIDTHS[kind])

    def _read_items(self) -> Items:
        head = self._take_byte()
        length, kind = head >> 4, _find_kind(head & 15)
        if length > _LARGEST_IN_HEAD:
            length = self._read_varint()
        return Items(kind, [self._read_content(kind) for _ in range(length)])

    def _read_pairs(self) -> Pairs:
        length = self._read_varint()
        if not length:
            return Pairs(None, None, [])
        head = self._take_byte()
        kinds = _find_kind(head >> 4), _find_kind(head & 15)
        pairs = [
            (self._read_content(kinds[0]), self._read_content(kinds[1])) for _ in range(length)
        ]
        return Pairs(*kinds, pairs)

    def _read_integer(self) -> int:
        coded = self._read_varint()
        return coded >> 1 ^ -(coded & 1)

    def _read_varint(self) -> int:
        number = 0
        for index in range(_MOST_VARINT_BYTES):
            byte = self._take_byte()
            number |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return number
        raise ValueError("A number has too many bytes.")

    def _take_byte(self) -> int:
        if self._place >= len(self._data):
            raise ValueError("The bytes end within a struct.")
        byte = self._data[self._place]
        self._place += 1
        return byte

    def _take(self, length: int) -> bytes:
        taken = self._data[self._place : self._place + length]
        if len(taken) < length:
            raise ValueError("The bytes end within a struct.")
        self._place += length
        return taken


def _find_kind(code: int) -> Kind:
    kind = _KIND_OF.get(code)
    if kind is None:
        raise ValueError(f"Thrift has no type {code}.")
    return kind


def _write_fields(fields: Fields) -> Iterator[bytes]:
    last = 0
    for number, value in fields.items():
        step = number - last
        if 0 < step <= _LARGEST_STEP:
            yield bytes([step << 4 | value.kind])
        else:
            yield bytes([value.kind])
            yield _write_integer(number)
        last = number
        if value.kind not in _TRUTHS:
            yield from _write_content(value.kind, value.content)
    yield b"\0"


def _write_content(kind: Kind, content: Any) -> Iterator[bytes]:
    if kind in _INTEGERS:
        yield _write_integer(content)
    elif kind is Kind.BINARY:
        yield _write_varint(len(content))
        yield content
    elif kind is Kind.STRUCT and not isinstance(content, bytes):
        yield from _write_fields(content)
    elif isinstance(content, Items):
        length = len(content.contents)
        if length > _LARGEST_IN_HEAD:
            yield bytes([0xF0 | content.kind])
            yield _write_varint(length)
        else:
            yield bytes([length << 4 | content.kind])
        for item in content.contents:
            yield from _write_content(content.kind, item)
    elif isinstance(content, Pairs):
        yield _write_varint(len(content.contents))
        if content.key_kind is not None and content.value_kind is not None:
            yield bytes([content.key_kind << 4 | content.value_kind])
            for key, value in content.contents:
                yield from _write_content(content.key_kind, key)
                yield from _write_content(content.value_kind, value)
    elif kind in _TRUTHS:
        yield bytes([Kind.TRUE if content else Kind.FALSE])
    else:
        yield content


def _write_integer(number: int) -> bytes:
    return _write_varint(number << 1 if number >= 0 else ~number << 1 | 1)


def _write_varint(number: int) -> bytes:
    written = bytearray()
    while number >= 0x80:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)
