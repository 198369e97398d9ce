"""Metadata of a load table: where its counts come from, and whether they are exact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from moetool.errors import InputError
from moetool.plain import make_plain, show_fields
from moetool.printable import printable
from moetool.trace.metadata import FOOTER_KEY
from moetool.trace.metadata_fields import (
    LARGEST_ID,
    MOST_IDS,
    FieldError,
    Reader,
    as_count,
    as_list,
    as_object,
    as_text,
    as_texts,
    load_object,
    or_none,
    read_fields,
)

LOADS_SCHEMA = "moetool.loads/1"

# A table without these is not a load table.
REQUIRED_LOAD_COLUMNS = ("layer", "expert", "count")

Precision = Literal["exact", "lower bound", "approximate"]
PRECISIONS: tuple[Precision, ...] = ("exact", "lower bound", "approximate")


@dataclass(frozen=True)
class LoadLayer:
    """The shape of one routed layer of a load table; None where its source doesn't state it."""

    stack: str
    layer: int
    num_experts: int | None = None
    top_k: int | None = None


@dataclass(frozen=True)
class LoadMetadata:
    """Facts about the counts of a load table; None means unknown.

    Attributes:
        format: Format that the counts were imported from, as `moetool import` names it.
        model: As the user or the source named it.
        precision: `exact`; `lower bound` where a counter ran full; or `approximate`.
        layers: Those with counts, as far as their shapes are known.
        notes: Sentences that a reader of the counts should know.
    """

    schema: str = LOADS_SCHEMA
    moetool: str = ""
    format: str | None = None
    model: str | None = None
    precision: Precision = "exact"
    layers: tuple[LoadLayer, ...] = ()
    notes: tuple[str, ...] = ()

    __repr__ = show_fields

    def to_dict(self) -> dict[str, Any]:
        """Return the metadata as an object of plain values, as it is stored."""
        plain: dict[str, Any] = make_plain(self)
        return plain

    def to_footer(self) -> dict[bytes, bytes]:
        """Return the metadata as an entry of a Parquet file."""
        text = json.dumps(self.to_dict(), ensure_ascii=False, indent=1)
        return {FOOTER_KEY: text.encode(errors="backslashreplace")}


def parse_load_metadata(text: str | bytes, *, source: str) -> LoadMetadata:
    """Return the metadata in a JSON text, without keys that this version does not know.

    Args:
        text: One JSON object.
        source: File that the text belongs to, for error messages.

    Raises:
        InputError: The text is not metadata of a load table, or a field has an invalid value.
    """
    try:
        values = load_object(text)
        if values.get("schema") != LOADS_SCHEMA:
            seen = printable(repr(values.get("schema"))[:100], max_length=60)
            raise FieldError(f"schema is {seen}, not {LOADS_SCHEMA}")
        fields = read_fields(values, _READERS)
        if "layers" in values:
            fields["layers"] = _read_layers(values["layers"])
    except FieldError as error:
        raise InputError(
            f"The moetool metadata of '{printable(source)}' can't be read: {error}.",
            hint="Import again, or remove the metadata to read the table alone.",
        ) from error
    return LoadMetadata(**fields)


def has_load_columns(names: list[str] | tuple[str, ...]) -> bool:
    """Return whether a table with these columns is a load table: counts of experts, no tokens."""
    return all(name in names for name in REQUIRED_LOAD_COLUMNS) and not (
        "prompt_id" in names or "position" in names
    )


def refuse_loads(path: object) -> NoReturn:
    """Refuse a load table where a trace is needed.

    Raises:
        InputError: Always.
    """
    raise InputError(
        f"'{printable(path)}' is a load table: it counts experts, and has no tokens or prompts.",
        hint="Use balance, place or select, which take load tables, or give a trace.",
    )


def _read_layers(value: Any) -> tuple[LoadLayer, ...]:
    layers: dict[tuple[str, int], LoadLayer] = {}
    for index, item in enumerate(as_list(value, name="layers")):
        name = f"layers[{index}]"
        fields = as_object(item, name=name)
        missing = [key for key in ("stack", "layer") if key not in fields]
        if missing:
            raise FieldError(f"{name} has no {missing[0]}")
        layer = LoadLayer(**read_fields(fields, _LAYER_READERS, within=f"{name}."))
        if (layer.stack, layer.layer) in layers:
            place = f"layer {layer.layer} of {printable(layer.stack, max_length=40)}"
            raise FieldError(f"layers describes {place} twice")
        if layer.num_experts is not None and (layer.top_k or 0) > layer.num_experts:
            raise FieldError(
                f"{name}.top_k is {layer.top_k}, but it has {layer.num_experts} experts"
            )
        layers[layer.stack, layer.layer] = layer
    return tuple(layers.values())


def _as_precision(value: Any) -> Precision:
    for known in PRECISIONS:
        if value == known:
            return known
    raise FieldError(f"{printable(repr(value)[:100], max_length=60)}, not one of {PRECISIONS}")


_LAYER_READERS: Mapping[str, Reader] = {
    "stack": as_text,
    "layer": as_count(0, LARGEST_ID),
    "num_experts": or_none(as_count(1, MOST_IDS)),
    "top_k": or_none(as_count(1, MOST_IDS)),
}

_READERS: Mapping[str, Reader] = {
    "schema": as_text,
    "moetool": as_text,
    "format": or_none(as_text),
    "model": or_none(as_text),
    "precision": _as_precision,
    "notes": as_texts,
}
