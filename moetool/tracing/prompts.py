"""From what `--prompts` names to a list of checked prompts."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from moetool.errors import InputError
from moetool.trace.decisions import NO_DOMAIN
from moetool.tracing.prompt_files import READERS, BadLine, PromptFields, RawPrompt, read_jsonl

# How many bad lines an error names before it counts the rest.
_LINES_SHOWN = 4


@dataclass(frozen=True)
class Prompt:
    """One text to trace.

    Attributes:
        prompt_id: Unique among the prompts of a run.
        domain: Its label, `(none)` without one.
        text: Not empty.
        place: Where it came from, for messages: `file:line`.
    """

    prompt_id: str
    domain: str
    text: str
    place: str


def read_prompts(
    source: str, *, fields: PromptFields | None = None, limit: int | None = None
) -> list[Prompt]:
    """Return the prompts in a file, in a folder's files in name order, or on stdin (`-`).

    The domain is the row's own, else, in a folder, the file's stem. A prompt without an id gets
    its running number, from 1.

    Args:
        source: A .jsonl, .csv, .parquet or .txt file, a folder of them, or `-`.
        fields: The names of the columns.
        limit: Keep only the first so many prompts; all are checked.

    Raises:
        InputError: The source is missing or empty, or a prompt in it can't be used.
    """
    fields = fields or PromptFields()
    if source == "-":
        return _check(
            read_jsonl(sys.stdin.buffer, name="stdin", fields=fields), source="stdin", limit=limit
        )
    if not source.strip():
        raise InputError(
            "No prompts at '': the name is empty.", hint="Name a file or folder of prompts."
        )
    path = Path(source)
    # os.path answers no where pathlib raises: a long text is no path.
    if os.path.isdir(path):
        files = [file for file in sorted(path.iterdir()) if file.suffix in READERS]
        if not files:
            raise InputError(
                f"'{path}' holds no prompts.",
                hint=f"Prompts are files ending in {', '.join(READERS)}.",
            )
        rows = (
            row.with_default_domain(file.stem) for file in files for row in _read_file(file, fields)
        )
        return _check(rows, source=f"'{path}'", limit=limit)
    if not os.path.isfile(path):
        raise InputError(
            f"No prompts at '{source}': no such file or folder.",
            hint="Name a file or folder of prompts, or pass one with --prompt TEXT.",
        )
    if path.suffix not in READERS:
        raise InputError(
            f"'{path}' is of no known kind of prompts.",
            hint=f"Prompts are files ending in {', '.join(READERS)}.",
        )
    return _check(_read_file(path, fields), source=f"'{path}'", limit=limit)


def make_prompt(text: str) -> list[Prompt]:
    """Return the one prompt of `--prompt TEXT`.

    Raises:
        InputError: The text is empty.
    """
    return _check(
        [RawPrompt(prompt_id=None, domain=None, text=text, file="--prompt", line=1)],
        source="--prompt",
        limit=None,
    )


def hash_prompts(prompts: Iterable[Prompt]) -> str:
    """Return the SHA-256 of every prompt's id, domain and text, in order."""
    digest = hashlib.sha256()
    for prompt in prompts:
        for part in (prompt.prompt_id, prompt.domain, prompt.text):
            encoded = part.encode()
            # The length keeps neighbouring parts from running into one another.
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()


def _read_file(path: Path, fields: PromptFields) -> Iterator[RawPrompt | BadLine]:
    reader: Callable[..., Iterator[RawPrompt | BadLine]] = READERS[path.suffix]
    try:
        with path.open("rb") as file:
            yield from reader(file, name=str(path), fields=fields)
    except OSError as error:
        raise InputError(
            f"Can't read '{path}': {error.strerror or error}.",
            hint="Check the file and its permissions.",
        ) from error


def _check(rows: Iterable[RawPrompt | BadLine], *, source: str, limit: int | None) -> list[Prompt]:
    """Return the prompts among the rows, or raise for the bad ones, all at once."""
    prompts: list[Prompt] = []
    bad: list[BadLine] = []
    place_of: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        if isinstance(row, BadLine):
            bad.append(row)
            continue
        prompt_id = str(number) if row.prompt_id is None else row.prompt_id
        if not _is_unicode(prompt_id + (row.domain or "") + row.text):
            bad.append(row.complain("half a surrogate pair", hint="Escape whole characters."))
        elif not row.text.strip():
            bad.append(row.complain("empty prompt", hint="Remove it, or give it a text."))
        elif prompt_id in place_of:
            bad.append(
                row.complain(
                    f"duplicate id {prompt_id!r}, first seen at {place_of[prompt_id]}",
                    hint="Give every prompt an id of its own, or none at all.",
                )
            )
        else:
            place_of[prompt_id] = row.place
            prompts.append(
                Prompt(
                    prompt_id=prompt_id,
                    domain=row.domain or NO_DOMAIN,
                    text=row.text,
                    place=row.place,
                )
            )
    if bad:
        raise _error(bad)
    if not prompts:
        raise InputError(f"There are no prompts in {source}.", hint="Give at least one prompt.")
    return prompts[:limit]


def _is_unicode(text: str) -> bool:
    """Return whether a text can be encoded; JSON's escapes can spell what no encoding holds."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _error(bad: list[BadLine]) -> InputError:
    """Return one error for all bad lines: the first in full, the next by place, the rest counted."""
    first, *others = bad
    facts = []
    if others:
        shown = [line.place for line in others[: _LINES_SHOWN - 1]]
        more = len(others) - len(shown)
        facts.append(f"also: {', '.join(shown)}" + (f" and {more:,} more" if more else ""))
    return InputError(f"{first.place}: {first.complaint}.", hint=first.hint, facts=facts)
