"""Prompts given from Python: a path, a list of texts, or a DataFrame."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from moetool.errors import InputError, UsageError
from moetool.printable import printable
from moetool.tracing.prompts.files import BadLine, PromptFields, RawPrompt, make_row
from moetool.tracing.prompts.limits import PromptLimits
from moetool.tracing.prompts.prompts import Prompt, check_prompts, read_prompts

_HINT = "Give a list of texts, a DataFrame with a column of texts, or the path of a file or folder."


def take_prompts(
    prompts: object,
    *,
    fields: PromptFields | None = None,
    limit: int | None = None,
    limit_per_domain: int | None = None,
    chat: bool = False,
) -> list[Prompt]:
    """Return the prompts of a run.

    Args:
        prompts: The path of a file or folder, see `read_prompts`; texts; rows as dicts; or a
            DataFrame with these columns. A prompt without an id gets its running number, from 1.
        fields: The names of the columns.
        limit: Keep only this many prompts; all are checked.
        limit_per_domain: Keep only this many prompts of each domain, before `limit` applies.
        chat: Whether a chat template will be applied, so that conversations can be read.

    Raises:
        InputError: There are no prompts, or one can't be used.
        UsageError: They are none of these.
    """
    fields = fields or PromptFields()
    if isinstance(prompts, str | os.PathLike):
        path = os.fspath(prompts)
        if not isinstance(path, str):
            raise UsageError("A path can't be bytes.", hint="Give it as a string or a Path.")
        if not os.path.exists(path):
            raise InputError(
                f"No prompts at '{printable(path)}': no such file or folder.",
                hint="Name a file or folder of prompts, or give texts in a list.",
            )
        return read_prompts(
            path, fields=fields, limit=limit, limit_per_domain=limit_per_domain, chat=chat
        )
    rows = _list_records(prompts)
    return check_prompts(
        _read_rows(rows, fields),
        source="the given prompts",
        limits=PromptLimits(limit, limit_per_domain),
        chat=chat,
    )


def _list_records(prompts: object) -> Iterable[object]:
    import pandas as pd

    if isinstance(prompts, pd.DataFrame):
        known = prompts.astype(object).where(prompts.notna(), None)
        records: list[dict[Any, Any]] = known.to_dict("records")
        return records
    if isinstance(prompts, Iterable) and not isinstance(prompts, bytes | Mapping):
        return prompts
    raise UsageError(f"Prompts can't be of type {type(prompts).__name__}.", hint=_HINT)


def _read_rows(rows: Iterable[object], fields: PromptFields) -> Iterator[RawPrompt | BadLine]:
    for number, row in enumerate(rows, start=1):
        if isinstance(row, str):
            yield RawPrompt(prompt_id=None, domain=None, text=row, file="prompts", line=number)
        elif isinstance(row, Mapping):
            yield make_row(row, name="prompts", line=number, fields=fields)
        else:
            complaint = f"not a text but {type(row).__name__}"
            yield BadLine(file="prompts", line=number, complaint=complaint, hint=_HINT)
