"""What a trace says about itself, as JSON and back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moetool.errors import InputError
from moetool.trace.metadata import TraceMetadata, parse_metadata
from tests.trace.examples import describe_layers

FULL = TraceMetadata(
    moetool="0.1.0",
    complete=True,
    exact=False,
    model="org/größe",
    revision="abc",
    layers=describe_layers(top_k=(1, 2)),
    num_prompts=3,
    num_tokens=70,
    num_decisions=140,
    max_prompt_tokens=64,
    versions={"torch": "2.8"},
    notes=("A sentence.", 'Another, with "quotes".'),
)


def change(metadata: TraceMetadata, **values: Any) -> str:
    return json.dumps(json.loads(metadata.to_json()) | values)


@pytest.mark.parametrize("metadata", [TraceMetadata(), FULL], ids=["empty", "full"])
def test_metadata_survives_the_way_through_json(metadata: TraceMetadata) -> None:
    assert parse_metadata(metadata.to_json(), source="trace") == metadata


def test_metadata_is_read_from_bytes_as_a_parquet_footer_has_them() -> None:
    assert parse_metadata(FULL.to_json().encode(), source="trace") == FULL


def test_keys_of_a_later_minor_version_are_ignored() -> None:
    layers = [{**layer, "colour": "red"} for layer in json.loads(FULL.to_json())["layers"]]
    text = change(FULL, layers=layers, weather={"sunny": True})
    assert parse_metadata(text, source="trace") == FULL


def test_keys_that_an_earlier_version_did_not_write_have_their_defaults() -> None:
    assert parse_metadata('{"schema": "moetool.trace/1"}', source="trace") == TraceMetadata()


def test_a_newer_schema_is_refused_and_an_upgrade_suggested() -> None:
    with pytest.raises(InputError, match="newer moetool") as caught:
        parse_metadata(change(FULL, schema="moetool.trace/2"), source="trace.parquet")
    assert "trace.parquet" in caught.value.message
    assert "pip install --upgrade" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "null",
        b"\xff\xfe",
        '{"schema": "other/1"}',
        '{"schema": 1.5}',
        '{"schema": "moetool.trace/1", "layers": null}',
        '{"schema": "moetool.trace/1", "layers": [{"layer": 0}]}',
        '{"schema": "moetool.trace/1", "layers": [3]}',
    ],
)
def test_what_is_no_metadata_is_refused(text: str | bytes) -> None:
    with pytest.raises(InputError, match="metadata of 'trace' can't be read"):
        parse_metadata(text, source="trace")
