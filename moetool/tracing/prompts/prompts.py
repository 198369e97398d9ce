"""Prompts: read from a file, a folder or stdin, and checked."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from moetool.errors import InputError, UsageError
from moetool.git_lfs import POINTER_START, refuse_pointer
from moetool.printable import printable
from moetool.trace.decisions import NO_DOMAIN
from moetool.tracing.prompts.files import (
    LONGEST_ROW,
    MOST_BYTES,
    SMALLER_HINT,
    BadLine,
    PromptFields,
    RawPrompt,
    read_csv,
    read_jsonl,
    read_text,
)
from moetool.tracing.prompts.limits import PromptLimits
from moetool.tracing.prompts.messages import Messages
from moetool.tracing.prompts.parquet import read_parquet

READERS: Mapping[str, Callable[..., Iterator[RawPrompt | BadLine]]] = {
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".txt": read_text,
}

# All are held in memory.
_MOST_PROMPTS = 1_000_000
# Limit for ids and domains, which every row of a trace repeats.
_LONGEST_NAME = 1_000

# Bad lines that an error names before it counts the rest.
_LINES_SHOWN = 4


@dataclass(frozen=True)
class Prompt:
    """One text to trace.

    Attributes:
        prompt_id: Unique among the prompts of a run.
        domain: Its label, `(none)` without one.
        text: Not empty. Of a conversation, its messages after their roles.
        origin: Its file and line, for messages: `file:line`.
        messages: The conversation that a chat template makes a text of; None for a plain text.
    """

    prompt_id: str
    domain: str
    text: str
    origin: str
    messages: Messages | None = None


def read_prompts(
    source: str,
    *,
    fields: PromptFields | None = None,
    limit: int | None = None,
    chat: bool = False,
    limit_per_domain: int | None = None,
) -> list[Prompt]:
    """Return the prompts in a file, in a folder's files in name order, or on stdin (`-`).

    A prompt's domain is that of its row or else, in a folder, the stem of its file. A prompt without
    an id gets its running number, from 1. At most 200 MB and a million prompts are read.

    Args:
        source: A .jsonl, .csv, .parquet or .txt file, a folder of them, or `-`.
        fields: The names of the columns.
        limit: Keep only this many prompts; all are checked.
        chat: Whether a chat template will be applied, so that conversations can be read.
        limit_per_domain: Keep only this many prompts of each domain, before `limit` applies.

    Raises:
        InputError: The source is missing or empty, or a prompt in it can't be used.
    """
    fields = fields or PromptFields()
    limits = PromptLimits(limit, limit_per_domain)
    if source == "-":
        if sys.stdin is None:
            raise InputError("stdin is closed.", hint="Send JSON lines, or name a file of prompts.")
        return check_prompts(
            read_jsonl(sys.stdin.buffer, name="stdin", fields=fields),
            source="stdin",
            limits=limits,
            chat=chat,
        )
    if not source.strip():
        raise InputError(
            "No prompts at '': the name is empty.", hint="Name a file or folder of prompts."
        )
    path = Path(source)
    # Given a long text instead of a path, os.path returns False where pathlib raises.
    if os.path.isdir(path):
        files = _list_files(path)
        if not files:
            raise InputError(
                f"'{path}' holds no prompts.",
                hint=f"Prompts are files ending in {', '.join(READERS)}.",
            )
        _check_sizes(files, source=f"'{path}'")
        rows = (
            row.with_default_domain(file.stem) for file in files for row in _read_file(file, fields)
        )
        return check_prompts(rows, source=f"'{path}'", limits=limits, chat=chat)
    if not os.path.exists(path):
        raise InputError(
            f"No prompts at '{source}': no such file or folder.",
            hint="Name a file or folder of prompts, or give one prompt with --prompt TEXT.",
        )
    if path.suffix not in READERS:
        raise InputError(
            f"'{path}' is not a known kind of prompts file.",
            hint=f"Prompts are files ending in {', '.join(READERS)}.",
        )
    _check_sizes([path], source=f"'{path}'")
    return check_prompts(_read_file(path, fields), source=f"'{path}'", limits=limits, chat=chat)


def choose_prompts(
    source: str | None,
    text: str | None,
    *,
    fields: PromptFields | None = None,
    limit: int | None = None,
    chat: bool = False,
    limit_per_domain: int | None = None,
) -> list[Prompt]:
    """Return the prompts of a source, or the one prompt of a text.

    Args:
        source: See `read_prompts`.
        text: One prompt, instead of a source.
        fields: The names of the columns.
        limit: Keep only this many prompts of a source; all are checked.
        chat: Whether a chat template will be applied, so that conversations can be read.
        limit_per_domain: Keep only this many prompts of each domain, before `limit` applies.

    Raises:
        UsageError: Neither or both are given.
        InputError: See `read_prompts`.
    """
    if (source is None) == (text is None):
        raise UsageError(
            "No prompts are given."
            if source is None
            else "A source of prompts and a single prompt exclude each other.",
            hint="Give a file or folder with --prompts, or one text with --prompt.",
        )
    if text is not None:
        return make_prompt(text)
    assert source is not None
    return read_prompts(
        source, fields=fields, limit=limit, limit_per_domain=limit_per_domain, chat=chat
    )


def make_prompt(text: str) -> list[Prompt]:
    """Return a list of one prompt with this text.

    Raises:
        InputError: The text is empty.
    """
    return check_prompts(
        [RawPrompt(prompt_id=None, domain=None, text=text, file="--prompt", line=1)],
        source="--prompt",
    )


def hash_prompts(prompts: Iterable[Prompt]) -> str:
    """Return the SHA-256 of every prompt's id, domain and text or conversation, in order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        text = prompt.text if prompt.messages is None else json.dumps(prompt.messages)
        for part in (prompt.prompt_id, prompt.domain, text):
            encoded = part.encode()
            # The length keeps neighbouring parts from running into one another.
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def _list_files(folder: Path) -> list[Path]:
    """Return the files of prompts in a folder, in name order."""
    try:
        return sorted(file for file in folder.iterdir() if file.suffix in READERS)
    except OSError as error:
        raise _unreadable(folder, error) from error


def _check_sizes(files: Iterable[Path], *, source: str) -> None:
    """Refuse files that would take too long to read, and pipes, which may never end.

    Raises:
        InputError: One is not a regular file, or all together are too large.
    """
    num_bytes = 0
    for file in files:
        try:
            found = os.stat(file)
        except OSError as error:
            raise _unreadable(file, error) from error
        if not stat.S_ISREG(found.st_mode):
            raise _not_a_file(file)
        num_bytes += found.st_size
    if num_bytes > MOST_BYTES:
        raise InputError(
            f"The prompts in {source} take {num_bytes / 1e6:,.0f} MB; at most "
            f"{MOST_BYTES // 1_000_000} MB are read.",
            hint=SMALLER_HINT,
        )


def _read_file(path: Path, fields: PromptFields) -> Iterator[RawPrompt | BadLine]:
    try:
        with _open_file(path) as file:
            refuse_pointer(file.read(len(POINTER_START)), path=path)
            file.seek(0)
            yield from READERS[path.suffix](file, name=str(path), fields=fields)
    except OSError as error:
        raise _unreadable(path, error) from error


def _open_file(path: Path) -> BinaryIO:
    """Open a file, without waiting if it was replaced by a pipe since it was checked."""
    file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115  the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _not_a_file(path)
    return file


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _not_a_file(path: Path) -> InputError:
    return InputError(
        f"'{path}' is not a regular file.",
        hint="Name a file or a folder of prompts, or send JSON lines to `--prompts -`.",
    )


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"Can't read '{path}': {error.strerror or error}.",
        hint="Check the file and its permissions.",
    )


def check_prompts(
    rows: Iterable[RawPrompt | BadLine],
    *,
    source: str,
    limits: PromptLimits | None = None,
    chat: bool = False,
) -> list[Prompt]:
    """Return the prompts among the rows, or raise for the bad ones, all at once."""
    limits = limits or PromptLimits()
    prompts: list[Prompt] = []
    bad = _BadLines()
    origin_of: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        if number > _MOST_PROMPTS:
            if bad.shown:
                raise bad.as_error()
            raise InputError(
                f"There are more than {_MOST_PROMPTS:,} prompts in {source}.", hint=SMALLER_HINT
            )
        if isinstance(row, BadLine):
            bad.append(row)
            continue
        prompt_id = str(number) if row.prompt_id is None else row.prompt_id
        if not is_unicode(prompt_id + (row.domain or "") + row.text):
            bad.append(row.complain("half a surrogate pair", hint="Escape whole characters."))
        elif not row.text.strip():
            bad.append(row.complain("empty prompt", hint="Remove it, or give it a text."))
        elif row.messages is not None and not chat:
            complaint = "a conversation, which only a chat template can turn into a text"
            bad.append(row.complain(complaint, hint="Add --chat to apply the model's."))
        elif len(row.text) > LONGEST_ROW:
            complaint = f"more than {LONGEST_ROW:,} characters"
            bad.append(row.complain(complaint, hint="Shorten its text."))
        elif max(len(prompt_id), len(row.domain or "")) > _LONGEST_NAME:
            complaint = f"an id or a domain of more than {_LONGEST_NAME:,} characters"
            bad.append(row.complain(complaint, hint="Shorten it."))
        elif prompt_id in origin_of:
            bad.append(
                row.complain(
                    f"duplicate id '{printable(prompt_id)}', first seen at {origin_of[prompt_id]}",
                    hint="Give every prompt a different id, or none at all.",
                )
            )
        else:
            origin_of[prompt_id] = row.origin
            prompt = Prompt(
                prompt_id=prompt_id,
                domain=row.domain or NO_DOMAIN,
                text=row.text,
                origin=row.origin,
                messages=row.messages,
            )
            if limits.take(prompt.domain):
                prompts.append(prompt)
    if bad.shown:
        raise bad.as_error()
    if not prompts:
        raise InputError(f"There are no prompts in {source}.", hint="Give at least one prompt.")
    return prompts


class _BadLines:
    """The first few bad lines of all files, and the number of all."""

    def __init__(self) -> None:
        self.shown: list[BadLine] = []
        self._number = 0

    def append(self, line: BadLine) -> None:
        """Count one more bad line."""
        self._number += 1
        if len(self.shown) < _LINES_SHOWN:
            self.shown.append(line)

    def as_error(self) -> InputError:
        """Return one error: the first line in full, the next by file and line, the rest counted."""
        first, *others = self.shown
        facts = []
        if others:
            more = self._number - len(self.shown)
            origins = ", ".join(line.origin for line in others)
            facts.append(f"also: {origins}" + (f" and {more:,} more" if more else ""))
        return InputError(f"{first.origin}: {first.complaint}.", hint=first.hint, facts=facts)


def is_unicode(text: str) -> bool:
    """Return whether a text can be encoded: JSON's escapes can spell half a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
