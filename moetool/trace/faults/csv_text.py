"""Faults of CSV: the line that can't be read as a row of a table, and why."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, TextIO

import pyarrow as pa

from moetool.printable import printable

TEXT_HINT = "Write it again, with quotation marks around values that hold commas or line breaks."

_WHOLE_NUMBER = re.compile(r"\s*-?[0-9]+\s*")
_HEXADECIMAL = re.compile(r"\s*-?0[xX][0-9a-fA-F]+\s*")
_SHOWN = 60
# Longer ones are out of range; Python refuses those of thousands of digits.
_LONGEST_NUMBER = 100
_BLOCK = 2**20
_LONGEST_HEADER = 65_536
# A line that follows the last one, unless a value swallows it.
_LAST = "\x00end"


class CsvFault(NamedTuple):
    """A fault of a CSV file.

    Attributes:
        words: What is wrong, with its line, counted from 1; to follow a colon.
        hint: What to do; None if it is a value that doesn't fit its column.
    """

    words: str
    hint: str | None = TEXT_HINT


def explain_csv(
    path: Path, types: Mapping[str, pa.DataType], *, num_rows: int = 0
) -> CsvFault | None:
    """Return the first fault of a CSV file; None if each line looks sound.

    Args:
        path: The file.
        types: Type of each column that is read.
        num_rows: Rows that are known to be sound.
    """
    try:
        quote = find_open_quote(path)
        if quote is not None:
            return CsvFault(f"a quotation mark in line {quote:,} isn't closed")
        with _open(path) as file:
            return _find_fault(_Lines(file), types, num_rows=num_rows)
    except OSError:
        return None


def read_names(path: Path, *, delimiter: str = ",") -> list[str]:
    """Return the names in the first line of a text file; none if it is empty or no text.

    Raises:
        OSError: It can't be opened.
    """
    with _open(path) as file:
        try:
            return next(csv.reader([file.readline(_LONGEST_HEADER)], delimiter=delimiter), [])
        except csv.Error:
            return []


def find_open_quote(path: Path) -> int | None:
    """Return the line with a quotation mark that isn't closed; None if there is none.

    A reader takes all that follows for one value, without an error.
    """
    with path.open("rb") as binary:
        number = sum(block.count(b'"') for block in iter(lambda: binary.read(_BLOCK), b""))
    if number % 2 == 0:
        return None
    with _open(path) as file:
        lines = _Lines(chain(file, [_LAST]))
        first = 0
        try:
            for values in lines:
                if values == [_LAST]:
                    return None
                first = lines.first
        except csv.Error:  # A value that goes on and on.
            first = lines.first
        return first


def find_line(path: Path, row: int) -> int:
    """Return the line of a CSV file, counted from 1, in which a row begins.

    Args:
        path: The file.
        row: The row's number, counted from 0 after the header.
    """
    with _open(path) as file:
        lines = _Lines(file)
        for _ in islice(lines, row + 2):  # The header is one, too.
            pass
        return lines.first


def _open(path: Path) -> TextIO:
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


class _Lines:
    """Yields the values of each line that isn't blank, and remembers where they begin.

    Attributes:
        first: The line in which the latest values begin.
    """

    def __init__(self, file: Iterable[str]) -> None:
        self.first = 0
        self._reader = csv.reader(file)

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        while True:
            self.first = self._reader.line_num + 1
            values = next(self._reader)
            if values:
                return values


def _find_fault(
    lines: _Lines, types: Mapping[str, pa.DataType], *, num_rows: int
) -> CsvFault | None:
    try:
        header = next(lines, None)
        if header is None:
            return CsvFault("it is empty", hint="Write it again.")
        for _ in islice(lines, num_rows):
            pass
        columns = [(header.index(name), name, types[name]) for name in types if name in header]
        for values in lines:
            if len(values) != len(header):
                return CsvFault(_describe_length(lines, len(values), header))
            for index, name, kind in columns:
                if not _fits(values[index], kind):
                    value = _describe_value(values[index], name, kind)
                    return CsvFault(f"{value} in line {lines.first:,}", hint=None)
    except csv.Error:
        return CsvFault(
            f"line {lines.first:,} has a value of more than {csv.field_size_limit():,} characters"
        )
    return None


def _describe_length(lines: _Lines, number: int, header: Sequence[str]) -> str:
    values = "1 value" if number == 1 else f"{number} values"
    return f"line {lines.first:,} has {values}, but the header names {len(header)} columns"


def _describe_value(value: str, name: str, kind: pa.DataType) -> str:
    if any("\udc80" <= letter <= "\udcff" for letter in value):
        return f"{name!r} isn't UTF-8 text"
    shown = printable(repr(value), max_length=_SHOWN)
    if pa.types.is_integer(kind) and _WHOLE_NUMBER.fullmatch(value):
        return f"{name!r} is {value.strip()}, out of range,"
    return f"{name!r} is {shown}"


def _fits(value: str, kind: pa.DataType) -> bool:
    if pa.types.is_integer(kind):
        if _HEXADECIMAL.fullmatch(value):
            return True
        most = 2 ** (kind.bit_width - 1)
        return not value or (
            _WHOLE_NUMBER.fullmatch(value) is not None
            and len(value) <= _LONGEST_NUMBER
            and -most <= int(value) < most
        )
    if pa.types.is_floating(kind):
        return not value or _is_float(value)
    return not any("\udc80" <= letter <= "\udcff" for letter in value)


def _is_float(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return "_" not in value
