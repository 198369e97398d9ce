"""The columns of a trace, and their types in Parquet and CSV."""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 1

_WORD = pa.dictionary(pa.int32(), pa.string())

TRACE_SCHEMA = pa.schema(
    [
        pa.field("prompt_id", _WORD),
        pa.field("domain", _WORD),
        pa.field("phase", _WORD),
        pa.field("position", pa.int32()),
        pa.field("token_id", pa.int32()),
        pa.field("token", _WORD),
        pa.field("stack", _WORD),
        pa.field("layer", pa.int16()),
        pa.field("rank", pa.int16()),
        pa.field("expert", pa.int16()),
        pa.field("weight", pa.float32()),
    ]
)

PROBABILITIES_SCHEMA = pa.schema(
    [
        pa.field("prompt_id", _WORD),
        pa.field("stack", _WORD),
        pa.field("layer", pa.int16()),
        pa.field("position", pa.int32()),
        pa.field("probabilities", pa.list_(pa.float16())),
    ]
)

# A table without these is not a trace; any other missing column only disables what needs it.
REQUIRED_COLUMNS = ("prompt_id", "position", "layer", "expert")

# Columns that identify a row or are counted: a table that has one needs a value in each row.
KEY_COLUMNS = (*REQUIRED_COLUMNS, "stack", "rank", "weight")


def field_of(name: str) -> pa.Field:
    """Return the field of a column; one that the schema lacks holds words."""
    return TRACE_SCHEMA.field(name) if name in TRACE_SCHEMA.names else pa.field(name, _WORD)


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema with plain instead of dictionary-encoded columns, as in CSV."""
    return pa.schema(
        [
            pa.field(
                field.name,
                field.type.value_type if pa.types.is_dictionary(field.type) else field.type,
            )
            for field in schema
        ]
    )
