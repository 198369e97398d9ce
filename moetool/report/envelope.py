"""Write reports for machines: the only place that makes JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import islice

import moetool
from moetool.plain import Tabular, make_plain
from moetool.printable import escape_json

# Their code makes the figures on models, which can change with their versions.
MODEL_LIBRARIES = ("torch", "transformers")

_ROWS_AT_ONCE = 4_096


def render_json(
    schema: str, payload: Mapping[str, object], *, libraries: Collection[str] = ()
) -> str:
    """Return a report as one JSON object: its schema, versions, then the payload.

    Dataclasses become objects and tuples become lists. JSON has no word for NaN and infinity:
    they become null. Characters that would steer a terminal are escaped.

    Args:
        schema: Name and version, such as `moetool.inspect/1`. The version changes when a key is
            removed or changes its meaning, not when one is added.
        payload: The rest of the object, in this order.
        libraries: Installed packages that the figures depend on, whose versions are written.
    """
    versions = {name: version(name) for name in libraries}
    value = {
        "schema": schema,
        "moetool": moetool.__version__,
        **({"versions": versions} if versions else {}),
        **payload,
    }
    text = json.dumps(make_plain(value), ensure_ascii=False, allow_nan=False, indent=1)
    return escape_json(text) + "\n"


def render_rows(results: Sequence[Tabular]) -> str:
    """Return the rows of at least one result as CSV; all results are of one kind."""
    rows = (row for result in results for row in result.to_rows())
    return render_csv(rows, list(results[0].column_types()))


def render_csv(rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> str:
    """Return rows as CSV under a header; a column that a row lacks, or None, is an empty cell.

    The bytes of a path that are not UTF-8 become `?`.

    Raises:
        ValueError: A row has a key that is not a column.
    """
    return "".join(iter_csv(rows, columns))


def iter_csv(rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> Iterator[str]:
    """Yield the same CSV in parts of 4,096 rows, for tables that would fill the memory.

    Raises:
        ValueError: A row has a key that is not a column.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, restval="", lineterminator="\n")
    writer.writeheader()
    left = iter(rows)
    while True:
        part = list(islice(left, _ROWS_AT_ONCE))
        writer.writerows(part)
        yield text.getvalue().encode("utf-8", "replace").decode("utf-8")
        if len(part) < _ROWS_AT_ONCE:
            return
        text.seek(0)
        text.truncate()
