"""Results as plain values: objects for JSON, rows for CSV, frames for pandas, a line for people."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from itertools import islice
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, ClassVar, get_args, get_type_hints

from moetool.choices import take_flag
from moetool.errors import UsageError
from moetool.html_table import show_rows, show_values
from moetool.wording import number_of

if TYPE_CHECKING:
    import pandas as pd

# Longer collections are shown by their length.
_ITEMS_SHOWN = 6
_TEXT_SHOWN = 120
# In a notebook.
_ROWS_SHOWN, _COLUMNS_SHOWN = 5, 9


class Tabular(ABC):
    """A result that can be shown as rows. `moetool.to_frame` puts several of them into a frame."""

    # Columns that a notebook shows; by default the first ones.
    _SHOWN: ClassVar[tuple[str, ...]] = ()

    @classmethod
    @abstractmethod
    def column_types(cls) -> Mapping[str, Any]:
        """Return the columns of the rows, in order, each with the type of its values."""

    @abstractmethod
    def to_rows(self) -> list[dict[str, Any]]:
        """Return the rows of the CSV report. Values are plain; unknown ones are None."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the object of the JSON report. Values are plain; unknown ones are None."""

    def to_frame(self) -> pd.DataFrame:
        """Return the rows of the CSV report as a DataFrame.

        Whole numbers that may be unknown are of the dtype Int64, which has room for that.
        """
        return make_frame(self.to_rows(), self.column_types())

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of the CSV report."""
        yield from self.to_rows()

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the repr, the first rows, and how to get the rest."""
        columns = list(self.column_types())
        shown = self._SHOWN or tuple(columns[:_COLUMNS_SHOWN])
        rows = list(islice(self.iter_rows(), _ROWS_SHOWN + 1))
        headline = repr(self).removeprefix("<").removesuffix(">")
        notes = len(getattr(self, "notes", ()))
        more = [
            f"all rows and {number_of(len(columns), 'column')}: .to_frame()",
            "everything: .to_dict()",
            *([f"{number_of(notes, 'note')}: .notes"] if notes else []),
        ]
        if len(rows) == 1:
            values = {name: rows[0][name] for name in shown}
            return show_values(headline, values, more=" · ".join(more))
        if len(rows) > _ROWS_SHOWN:
            more.insert(0, f"the first {_ROWS_SHOWN} rows")
        return show_rows(headline, rows[:_ROWS_SHOWN], shown, more=" · ".join(more))


def to_frame(results: Tabular | Iterable[Tabular], *, summary: bool = False) -> pd.DataFrame:
    """Return one DataFrame with the rows of several results, as their CSV report has them.

    Args:
        results: Results of one kind, at least one: of `inspect_model`, `estimate_memory`,
            `measure_specialization` or `find_fitting_models`.
        summary: Return one row for each inspected model, as `moetool inspect --summary` does.

    Raises:
        UsageError: There are none, they are of several kinds, something else is among them, or
            they have no summary.
    """
    summary = take_flag(summary, name="summary")
    found: list[Any] = [results]
    if isinstance(results, Iterable) and not isinstance(results, str | Mapping):
        found = list(results)
    kinds = list(dict.fromkeys(type(each) for each in found))
    strangers = [kind for kind in kinds if not issubclass(kind, Tabular)]
    if strangers or len(kinds) != 1:
        seen = " and ".join(kind.__name__ for kind in (strangers or kinds)[:2])
        raise UsageError(
            f"Results of the kind {strangers[0].__name__} have no rows."
            if strangers
            else f"{seen} have different columns."
            if kinds
            else "There are no results to make a frame of.",
            hint="Give results of one function in a list: inspect_model, estimate_memory, "
            "measure_specialization or find_fitting_models.",
        )
    kind: Any = kinds[0]
    if not summary:
        rows = [row for each in found for row in each.to_rows()]
        return make_frame(rows, kind.column_types())
    if not hasattr(kind, "to_summary"):
        raise UsageError(
            f"Results of the kind {kind.__name__} have no summary.", hint="Leave summary out."
        )
    return make_frame([each.to_summary() for each in found], kind.summary_types())


def make_frame(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Any]) -> pd.DataFrame:
    """Return rows as a DataFrame whose dtypes depend on the types of the columns alone.

    Args:
        rows: Each with a value for every column.
        columns: The types of the values by the column's name, such as `int | None`.
    """
    import pandas as pd

    return pd.DataFrame(
        {
            name: pd.Series([row[name] for row in rows], dtype=_choose_dtype(kind))
            for name, kind in columns.items()
        }
    )


def make_flat(item: Any) -> dict[str, Any]:
    """Return a dataclass as a row of plain values.

    The values of an object in it have its name before theirs, such as `loads_share`, or `random`
    for a `baseline`. They are None if the object is.
    """
    row: dict[str, Any] = {}
    kind: type = type(item)
    for name, inner in _list_objects(kind).items():
        value = getattr(item, name)
        if inner is None:
            row[name] = make_plain(value)
        else:
            for each in fields(inner):
                known = None if value is None else make_plain(getattr(value, each.name))
                row[f"{_name_prefix(name)}_{each.name}"] = known
    return row


def flat_types(kind: type) -> dict[str, Any]:
    """Return the type of each value in the rows of `make_flat`."""
    types: dict[str, Any] = {}
    for name, hint in get_type_hints(kind).items():
        inner = _find_dataclass(hint)
        if inner is None:
            types[name] = hint
        else:
            is_optional = NoneType in get_args(hint)
            for each, own in get_type_hints(inner).items():
                types[f"{_name_prefix(name)}_{each}"] = own | None if is_optional else own
    return types


def _name_prefix(name: str) -> str:
    return "random" if name == "baseline" else name


@cache
def _list_objects(kind: type) -> Mapping[str, Any]:
    """Return the dataclass that each field of a dataclass holds, None where it holds no object."""
    return {name: _find_dataclass(hint) for name, hint in get_type_hints(kind).items()}


def _find_dataclass(hint: Any) -> Any:
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return next((kind for kind in kinds if is_dataclass(kind)), None)


def make_plain(value: object) -> Any:
    """Return a value built of dict, list, str, int, float, bool and None.

    Dataclasses become dicts, tuples become lists, and members of enums become their values. Numbers
    and arrays of numpy become those of Python. JSON has no word for NaN and infinity: they become
    None.
    """
    if value is None or type(value) in (int, str, bool):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: make_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {make_plain(name): make_plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [make_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if hasattr(value, "tolist"):
        return make_plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_fields(value: Any) -> str:
    """Return the repr of a dataclass, with long collections and texts shown by their length."""
    shown = ", ".join(
        f"{field.name}={_shorten(getattr(value, field.name))}"
        for field in fields(value)
        if field.repr
    )
    return f"{type(value).__name__}({shown})"


def _choose_dtype(kind: Any) -> Any:
    import pandas as pd

    kinds = get_args(kind) or (kind,)
    is_optional = NoneType in kinds
    (known,) = (each for each in kinds if each is not NoneType)
    if known is bool:
        return "boolean" if is_optional else "bool"
    if known is int:
        return "Int64" if is_optional else "int64"
    if known is float:
        return "float64"
    # Before pandas 3, texts are objects, and converting them would make None a word.
    return "object" if int(pd.__version__.partition(".")[0]) < 3 else "str"


def _shorten(value: object) -> str:
    if isinstance(value, Mapping | tuple | list) and len(value) > _ITEMS_SHOWN:
        return f"<{len(value):,} items>"
    shown = repr(value)
    return shown if len(shown) <= _TEXT_SHOWN else f"<{type(value).__name__}, {len(shown):,} chars>"
