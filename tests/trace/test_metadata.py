"""Metadata of a trace, as JSON and back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from moetool.errors import InputError
from moetool.trace.metadata import TraceMetadata, parse_metadata
from moetool.trace.model_counts import ModelCounts
from tests.trace.examples import describe_layers

FULL = TraceMetadata(
    moetool="0.1.0",
    complete=True,
    exact=False,
    model="org/größe",
    revision="abc",
    total_parameters=100,
    active_parameters=100,
    flops_per_token=60.25,
    flops_prompt_tokens=512,
    dense_flops_per_token=241.0,
    layers=describe_layers(top_k=(1, 2)),
    num_prompts=3,
    num_tokens=70,
    num_decisions=140,
    max_prompt_tokens=64,
    batch_size=8,
    max_batch_tokens=4096,
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


# Every field has its type and range

WRONG_OF_A_LAYER: dict[str, tuple[Any, ...]] = {
    "stack": (None, 3, ["decoder"]),
    "layer": ("0", None, -1, 0.5, 2**15, 10**30, True, [0]),
    "module": (None, {}),
    "router": (1, []),
    "num_experts": ("eight", "8", None, 0.5, 8.0, 0, -1, 10**6, 10**400, True, [8]),
    "num_identity_experts": (None, -1, 2**15 + 1, "0"),
    "top_k": (None, 0, -2, 7, 10**6, [2], "2", 1.5, float("nan")),
    "rule": (1,),
    "output_factor": ("1", float("nan"), float("inf"), [1.0]),
    "routing": (1, []),
    "min_rows": ("1", 0, -1, 1.5, True),
}

WRONG: dict[str, tuple[Any, ...]] = {
    "complete": (None, 1, "true", []),
    "exact": (None, 0, "false"),
    "rank_order": (None, 1, "true"),
    "model": (1, ["demo"], {}),
    "layers": (None, {}, "layers", 3, [None], [[]], ["layer"], [{}]),
    "num_tokens": (None, -1, 1.5, "3", 10**30, float("nan")),
    "num_decisions": (None, -1),
    "total_parameters": (-1, 1.5, "7B", 10**30, True, float("nan"), [7]),
    # FULL has 100 parameters.
    "active_parameters": (-1, 0.5, "all", 101, 10**400, False),
    "flops_per_token": (-0.5, "many", 1e31, 10**400, float("nan"), float("inf"), True, {}),
    "flops_prompt_tokens": (0, -1, 512.5, "512", 10**30),
    "dense_flops_per_token": (-1, float("-inf"), "dense", 10**31),
    "seed": (0.5, 2**64, "0"),
    "temperature": ("hot", float("inf"), 10**400),
    "max_prompt_tokens": (0, -1),
    "batch_size": (0, "8", 1.5),
    "max_batch_tokens": (0, True),
    "parallel": (1, ["expert"]),
    "parallel_size": (0, "2", 1.5),
    "versions": (None, [], {"torch": 2}),
    "notes": (None, "a sentence", [1], {"a": "b"}),
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in WRONG.items() for value in values]
)
def test_a_field_of_a_wrong_type_or_range_is_named(field: str, value: Any) -> None:
    with pytest.raises(
        InputError, match=rf"metadata of 'trace' can't be read: {field}\b"
    ) as caught:
        parse_metadata(change(FULL, **{field: value}), source="trace")
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in WRONG_OF_A_LAYER.items() for value in values],
)
def test_a_field_of_a_layer_is_named_with_the_layer(field: str, value: Any) -> None:
    first, second = json.loads(FULL.to_json())["layers"]
    text = change(FULL, layers=[first, {**second, field: value}])
    with pytest.raises(InputError, match=rf"can't be read: layers\[1\]\.{field} ") as caught:
        parse_metadata(text, source="trace")
    assert len(caught.value.message) < 300


def test_a_layer_that_lacks_a_field_is_named_with_the_field() -> None:
    (first, second) = json.loads(FULL.to_json())["layers"]
    del second["top_k"]
    with pytest.raises(InputError, match=r"layers\[1\] has no top_k"):
        parse_metadata(change(FULL, layers=[first, second]), source="trace")


def test_a_layer_is_described_once() -> None:
    first = json.loads(FULL.to_json())["layers"][0]
    with pytest.raises(InputError, match="describes layer 0 of decoder twice"):
        parse_metadata(change(FULL, layers=[first, first]), source="trace")


def test_every_field_is_checked() -> None:
    """A field without a reader would be silently dropped."""
    texts = {name: "a text" for name, value in json.loads(FULL.to_json()).items() if value is None}
    values: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.5,
        "seed": 2**64 - 1,
        "max_new_tokens": 7,
        "parallel_size": 4,
        "quantized_expert_bytes": 5,
        "quantized_linear_bytes": 0,
        "unquantized_bytes": 6,
    }
    layers = tuple(
        replace(
            layer,
            router="a router",
            rule="a rule",
            output_factor=2.5,
            routing="expert_choice",
            min_rows=1,
        )
        for layer in FULL.layers
    )
    whole = replace(FULL, **{**texts, **values, "layers": layers})
    assert parse_metadata(whole.to_json(), source="trace") == whole


def test_ratios_are_those_of_known_counts() -> None:
    counts = FULL.model_counts
    assert (counts.active_share, counts.flops_ratio) == (1.0, 0.25)
    assert counts.to_dict()["flops_ratio"] == 0.25
    assert TraceMetadata().model_counts == ModelCounts()
    for unknown in (
        ModelCounts(),
        replace(counts, total_parameters=None, flops_per_token=None),
        replace(counts, active_parameters=None, dense_flops_per_token=None),
        ModelCounts(total_parameters=0, active_parameters=0, flops_per_token=0.0),
        # A quotient by them is not finite.
        replace(counts, total_parameters=0, flops_per_token=1e30, dense_flops_per_token=5e-324),
    ):
        assert (unknown.active_share, unknown.flops_ratio) == (None, None)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        f'{{"schema": "moetool.trace/1", "num_tokens": {"9" * 5000}}}',
        f'{{"schema": "moetool.trace/{"9" * 5000}"}}',
        f'{{"schema": "{"x" * 300_000}"}}',
        f'{{"schema": "moetool.trace/1", "model": {json.dumps(["x"] * 100_000)}}}',
        f'{{"schema": "moetool.trace/1", "complete": "{"x" * 300_000}"}}',
        " " * 10_000_001,
    ],
    ids=["lists", "objects", "number", "version", "schema", "list", "text", "too long"],
)
def test_metadata_without_measure_is_refused_in_a_short_sentence(text: str) -> None:
    with pytest.raises(InputError, match="metadata of 'trace' can't be read") as caught:
        parse_metadata(text, source="trace")
    assert len(caught.value.message) < 300


def test_a_refusal_cannot_steer_a_terminal() -> None:
    with pytest.raises(InputError) as caught:
        parse_metadata(change(FULL, complete="\x1b[31m\n"), source="a\x1b\n.parquet")
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("one", "other", "joined"),
    [
        (None, None, None),
        ("dense", "dense", "dense"),
        (None, "dense", "dense"),
        ("dense", "token_choice", "token_choice"),
        ("token_choice", "expert_choice", "expert_choice"),
        ("dense", "expert_choice", "expert_choice"),
    ],
)
def test_two_runs_of_a_layer_are_joined(
    one: str | None, other: str | None, joined: str | None
) -> None:
    layer = FULL.layers[1]
    runs = replace(layer, top_k=2, routing=one), replace(layer, top_k=5, routing=other)
    for first, second in (runs, runs[::-1]):
        both = first.join(second)
        assert (both.routing, both.top_k, both.min_rows, both.fewest_rows) == (joined, 5, 2, 2)
        assert both.is_varied
    assert runs[0].join(runs[0]) == runs[0]
    assert runs[0].fewest_rows == 2
