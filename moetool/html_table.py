"""A small table of HTML, as notebooks show a result: colours of the page, and text that is inert."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from moetool.printable import printable

_LONGEST_CELL, _LONGEST_WORDS = 60, 300
_LEFT, _RIGHT = (f' style="text-align:{side}"' for side in ("left", "right"))
# Notebooks would typeset what stands between dollar signs.
_START = '<div class="tex2jax_ignore mathjax_ignore" style="overflow-x:auto">'


def show_rows(
    headline: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, more: str
) -> str:
    """Return a headline, some rows as a table, and a sentence below it.

    Args:
        headline: In bold.
        rows: Each with a value for every column.
        columns: Names of the columns, in order.
        more: What is not shown, and where it is.
    """
    head = "".join(f'<th scope="col"{_align(rows, name)}>{_word(name)}</th>' for name in columns)
    body = "".join(
        "<tr>"
        + "".join(f"<td{_align(rows, name)}>{_word(row[name])}</td>" for name in columns)
        + "</tr>"
        for row in rows
    )
    return _put_together(headline, f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>", more)


def show_values(headline: str, values: Mapping[str, Any], *, more: str) -> str:
    """Return a headline, a table with a row for each name and value, and a sentence below it."""
    body = "".join(
        f'<tr><th scope="row"{_LEFT}>{_word(name)}</th><td{_LEFT}>{_word(value)}</td></tr>'
        for name, value in values.items()
    )
    return _put_together(headline, f"<tbody>{body}</tbody>", more)


def _put_together(headline: str, table: str, more: str) -> str:
    title = html.escape(printable(headline, max_length=_LONGEST_WORDS))
    return (
        f"{_START}<p><strong>{title}</strong></p>"
        f"<table>{table}</table>"
        f"<p><small>{html.escape(printable(more, max_length=_LONGEST_WORDS))}</small></p></div>"
    )


def _align(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    numbers = all(isinstance(row[name], int | float | None) for row in rows)
    return _RIGHT if numbers else _LEFT


def _word(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return html.escape(printable(value, max_length=_LONGEST_CELL))
