"""Rows of a prompts file, good and bad, each with its line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import BinaryIO, cast

from moetool.printable import printable
from moetool.tracing.prompts.messages import (
    MESSAGES,
    Messages,
    NotMessagesError,
    describe_messages,
    is_conversation,
    parse_messages,
)

FORMAT_HINT = "See sample_prompts/README.md for the format."
SMALLER_HINT = "Split it, or keep the prompts that you need."

# Limits: bytes of all files together, and bytes or characters of one row. All prompts are held in
# memory, and no model takes a text of that length.
MOST_BYTES = 200_000_000
LONGEST_ROW = 20_000_000

# Limits for the columns that an error names.
_COLUMNS_SHOWN = 10
_LONGEST_NAME = 60

# Usual names of columns with prompts, the surest first.
_LIKELY_TEXTS = (
    "prompt",
    "content",
    "question",
    "instruction",
    "query",
    "input",
    "sentence",
    "document",
    "body",
)


@dataclass(frozen=True)
class PromptFields:
    """Names of the columns that hold a prompt's id, text and domain."""

    prompt_id: str = "id"
    text: str = "text"
    domain: str = "domain"


@dataclass(frozen=True)
class BadLine:
    """A row without a usable prompt."""

    file: str
    line: int
    complaint: str
    hint: str

    @property
    def origin(self) -> str:
        """The row as `file:line`, which editors can open."""
        return f"{self.file}:{self.line}"

    def with_default_domain(self, _domain: str) -> BadLine:
        """Return the row as it is."""
        return self


@dataclass(frozen=True)
class RawPrompt:
    """A row as it is in its file; None for an id, domain or conversation that it lacks."""

    prompt_id: str | None
    domain: str | None
    text: str
    file: str
    line: int
    messages: Messages | None = None

    @property
    def origin(self) -> str:
        """The row as `file:line`, which editors can open."""
        return f"{self.file}:{self.line}"

    def with_default_domain(self, domain: str) -> RawPrompt:
        """Return the row with a domain, unless it has its own."""
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
    """Yield a text file's lines, each a prompt; blank lines are skipped."""
    del fields
    for number, text in _decode_lines(file, name):
        if isinstance(text, BadLine):
            yield text
        elif text.strip():
            line = text.rstrip("\r\n")
            yield RawPrompt(prompt_id=None, domain=None, text=line, file=name, line=number)


def read_csv(file: BinaryIO, *, name: str, fields: PromptFields) -> Iterator[RawPrompt | BadLine]:
    """Yield a CSV file's rows; the first line names the columns."""
    csv.field_size_limit(2**31 - 1)  # the default refuses prompts beyond 128 KiB
    lines = _CsvLines(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
    reader = csv.reader(lines, strict=True)
    try:
        columns = next(reader, [])
        if fields.text not in columns:
            yield missing_text(columns, name=name, line=1, fields=fields)
            return
        wanted = (fields.prompt_id, fields.text, fields.domain)
        twice = next((column for column in wanted if columns.count(column) > 1), None)
        if twice is not None:
            yield column_twice(twice, name=name)
            return
        indices = {column: index for index, column in enumerate(columns) if column in wanted}
        lines.begin_row()
        for cells in reader:
            if cells:
                row = {
                    column: cells[index] if index < len(cells) else None
                    for column, index in indices.items()
                }
                yield make_row(row, name=name, line=reader.line_num, fields=fields)
            lines.begin_row()
    except UnicodeDecodeError:
        yield _not_utf8(name, _find_undecodable_line(file))
    except csv.Error as error:
        yield BadLine(
            file=name,
            line=max(1, reader.line_num),
            complaint=f"broken CSV: {error}",
            hint=FORMAT_HINT,
        )
    finally:
        lines.release()


class _CsvLines:
    """The lines of a CSV file; rows longer than the limit are refused."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._left = LONGEST_ROW

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise csv.Error(f"a row of more than {LONGEST_ROW:,} characters")
        if not line:
            raise StopIteration
        return line

    def begin_row(self) -> None:
        """Start counting a row's characters."""
        self._left = LONGEST_ROW

    def release(self) -> None:
        """Detach from the file, so that only its owner closes it."""
        self._text.detach()


def _decode_lines(file: BinaryIO, name: str) -> Iterator[tuple[int, str | BadLine]]:
    left = MOST_BYTES
    for number in count(1):
        line = file.readline(LONGEST_ROW + 1)
        left -= len(line)
        if len(line) > LONGEST_ROW or left < 0:
            complaint = (
                f"more than {MOST_BYTES // 1_000_000:,} MB in all"
                if left < 0
                else f"more than {LONGEST_ROW // 1_000_000:,} MB in one line"
            )
            yield number, BadLine(file=name, line=number, complaint=complaint, hint=SMALLER_HINT)
            return
        if not line:
            return
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            yield number, _not_utf8(name, number)


def _find_undecodable_line(file: BinaryIO) -> int:
    """Return the number of the first line of a file that is not UTF-8."""
    file.seek(0)
    for number, line in enumerate(file, start=1):
        try:
            line.decode()
        except UnicodeDecodeError:
            return number
    return 1


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
    return make_row(row, name=name, line=line, fields=fields)


def make_row(
    row: Mapping[str, object], *, name: str, line: int, fields: PromptFields
) -> RawPrompt | BadLine:
    """Return the prompt in a row of named values, or a complaint about it.

    A conversation takes the place of a text: in the column of texts or, where there is none, in one
    that is called `messages`.
    """
    column = fields.text if fields.text in row else MESSAGES
    text, messages = row.get(column), None
    if is_conversation(text):
        try:
            messages = parse_messages(cast("list[Mapping[str, object]]", text))
        except NotMessagesError as error:
            complaint = f"'{shown_name(column)}' {error}"
            return BadLine(file=name, line=line, complaint=complaint, hint=FORMAT_HINT)
        text = describe_messages(messages)
    if not isinstance(text, str):
        if column not in row:
            return missing_text(list(row), name=name, line=line, fields=fields)
        kind = "null" if text is None else f"not a string but {type(text).__name__}"
        complaint = f"'{shown_name(column)}' is {kind}"
        return BadLine(file=name, line=line, complaint=complaint, hint=FORMAT_HINT)
    prompt_id, domain = row.get(fields.prompt_id), row.get(fields.domain)
    for key, value in ((fields.prompt_id, prompt_id), (fields.domain, domain)):
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):
            complaint = f"'{shown_name(key)}' is not a string or number but {type(value).__name__}"
            return BadLine(file=name, line=line, complaint=complaint, hint=FORMAT_HINT)
    return RawPrompt(
        prompt_id=None if prompt_id in (None, "") else str(prompt_id),
        domain=None if domain in (None, "") else str(domain),
        text=text,
        file=name,
        line=line,
        messages=messages,
    )


def missing_text(columns: Sequence[str], *, name: str, line: int, fields: PromptFields) -> BadLine:
    """Return the complaint about a row or a file that has no column of texts."""
    shown = [shown_name(column) for column in columns[:_COLUMNS_SHOWN]]
    more = len(columns) - len(shown)
    seen = ", ".join(shown) + (f" and {more:,} more" if more else "") or "nothing"
    others = [name for name in columns if name not in (fields.prompt_id, fields.domain)]
    likely = [name for name in _LIKELY_TEXTS if name in others] or others
    return BadLine(
        file=name,
        line=line,
        complaint=f"expected a '{shown_name(fields.text)}', found {seen}",
        hint=f"Name the field with --text-field {shown_name(likely[0])}."
        if likely
        else FORMAT_HINT,
    )


def column_twice(column: str, *, name: str) -> BadLine:
    """Return the complaint about a file with two columns of the same name."""
    complaint = f"the column '{shown_name(column)}' is there twice"
    return BadLine(file=name, line=1, complaint=complaint, hint="Keep one of the two.")


def shown_name(column: str) -> str:
    """Return the name of a column, from a file or an option, as a complaint holds it."""
    return printable(column, max_length=_LONGEST_NAME)


def _not_utf8(name: str, line: int) -> BadLine:
    return BadLine(
        file=name, line=line, complaint="not UTF-8", hint="Convert the file to UTF-8 first."
    )
