"""From the bytes of one prompts file to its rows, good and bad, each with its line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import BinaryIO

FORMAT_HINT = "See sample_prompts/README.md for the format."


@dataclass(frozen=True)
class PromptFields:
    """The names of the columns that hold a prompt's parts."""

    prompt_id: str = "id"
    text: str = "text"
    domain: str = "domain"


@dataclass(frozen=True)
class BadLine:
    """A row that holds no prompt."""

    file: str
    line: int
    complaint: str
    hint: str

    @property
    def place(self) -> str:
        """`file:line`, as editors take it."""
        return f"{self.file}:{self.line}"

    def with_default_domain(self, _domain: str) -> BadLine:
        """Return the row as it is."""
        return self


@dataclass(frozen=True)
class RawPrompt:
    """A row as it stands in its file; None where it says nothing."""

    prompt_id: str | None
    domain: str | None
    text: str
    file: str
    line: int

    @property
    def place(self) -> str:
        """`file:line`, as editors take it."""
        return f"{self.file}:{self.line}"

    def with_default_domain(self, domain: str) -> RawPrompt:
        """Return the row under a domain, unless it names its own."""
        return self if self.domain is not None else replace(self, domain=domain)

    def complain(self, complaint: str, *, hint: str) -> BadLine:
        """Return the row as a bad one."""
        return BadLine(file=self.file, line=self.line, complaint=complaint, hint=hint)


def read_jsonl(file: BinaryIO, *, name: str, fields: PromptFields) -> Iterator[RawPrompt | BadLine]:
    """Yield a JSON-lines file's rows; blank lines are skipped."""
    for number, text in _decode_lines(file, name):
        if isinstance(text, BadLine):
            yield text
        elif text.strip():
            yield _parse_json_line(text, name=name, line=number, fields=fields)


def read_text(file: BinaryIO, *, name: str, fields: PromptFields) -> Iterator[RawPrompt | BadLine]:
    """Yield a text file's lines, each a prompt."""
    del fields
    for number, text in _decode_lines(file, name):
        if isinstance(text, BadLine):
            yield text
        else:
            line = text.rstrip("\r\n")
            yield RawPrompt(prompt_id=None, domain=None, text=line, file=name, line=number)


def read_csv(file: BinaryIO, *, name: str, fields: PromptFields) -> Iterator[RawPrompt | BadLine]:
    """Yield a CSV file's rows; the first line names the columns."""
    csv.field_size_limit(2**31 - 1)  # the default refuses prompts beyond 128 KiB
    try:
        reader = csv.DictReader(
            io.StringIO(file.read().decode("utf-8-sig"), newline=""), strict=True
        )
        columns = list(reader.fieldnames or [])
        if fields.text not in columns:
            yield _missing_text(columns, name=name, line=1, fields=fields)
            return
        for row in reader:
            named = {key: value for key, value in row.items() if key is not None and value != ""}
            if row[fields.text] == "":
                named[fields.text] = ""
            yield _make_row(named, name=name, line=reader.line_num, fields=fields)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        yield _not_utf8(name, line)
    except csv.Error as error:
        yield BadLine(
            file=name,
            line=reader.reader.line_num,
            complaint=f"broken CSV: {error}",
            hint=FORMAT_HINT,
        )


def read_parquet(
    file: BinaryIO, *, name: str, fields: PromptFields
) -> Iterator[RawPrompt | BadLine]:
    """Yield a Parquet file's rows; the line is the row's number, from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(file)
        columns = parquet.schema_arrow.names
        if fields.text not in columns:
            yield _missing_text(columns, name=name, line=1, fields=fields)
            return
        wanted = (fields.prompt_id, fields.text, fields.domain)
        number = 0
        for batch in parquet.iter_batches(columns=[c for c in columns if c in wanted]):
            for row in batch.to_pylist():
                number += 1
                yield _make_row(row, name=name, line=number, fields=fields)
    except pa.ArrowException as error:
        yield BadLine(
            file=name,
            line=1,
            complaint=f"not a Parquet file: {str(error).splitlines()[0].rstrip('.')}",
            hint="Write the file again.",
        )


READERS: Mapping[str, Callable[..., Iterator[RawPrompt | BadLine]]] = {
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".txt": read_text,
}


def _decode_lines(file: BinaryIO, name: str) -> Iterator[tuple[int, str | BadLine]]:
    for number, line in enumerate(file, start=1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            yield number, _not_utf8(name, number)


def _parse_json_line(
    text: str, *, name: str, line: int, fields: PromptFields
) -> RawPrompt | BadLine:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        complaint = f"not JSON: {error}"
        return BadLine(file=name, line=line, complaint=complaint, hint=FORMAT_HINT)
    if not isinstance(row, dict):
        complaint = f"expected an object, found {type(row).__name__}"
        return BadLine(file=name, line=line, complaint=complaint, hint=FORMAT_HINT)
    return _make_row(row, name=name, line=line, fields=fields)


def _make_row(
    row: Mapping[str, object], *, name: str, line: int, fields: PromptFields
) -> RawPrompt | BadLine:
    text = row.get(fields.text)
    if not isinstance(text, str):
        if fields.text not in row:
            return _missing_text(list(row), name=name, line=line, fields=fields)
        kind = "null" if text is None else f"no string but {type(text).__name__}"
        complaint = f"'{fields.text}' is {kind}"
        return BadLine(file=name, line=line, complaint=complaint, hint=FORMAT_HINT)
    prompt_id, domain = row.get(fields.prompt_id), row.get(fields.domain)
    for key, value in ((fields.prompt_id, prompt_id), (fields.domain, domain)):
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):
            complaint = f"'{key}' is no word but {type(value).__name__}"
            return BadLine(file=name, line=line, complaint=complaint, hint=FORMAT_HINT)
    return RawPrompt(
        prompt_id=None if prompt_id in (None, "") else str(prompt_id),
        domain=None if domain in (None, "") else str(domain),
        text=text,
        file=name,
        line=line,
    )


def _missing_text(columns: list[str], *, name: str, line: int, fields: PromptFields) -> BadLine:
    seen = ", ".join(str(column) for column in columns) or "nothing"
    others = [name for name in columns if name not in (fields.prompt_id, fields.domain)]
    return BadLine(
        file=name,
        line=line,
        complaint=f"expected a '{fields.text}', found {seen}",
        hint=f"Name the field with --text-field {others[0]}." if others else FORMAT_HINT,
    )


def _not_utf8(name: str, line: int) -> BadLine:
    return BadLine(
        file=name, line=line, complaint="not UTF-8", hint="Convert the file to UTF-8 first."
    )
