"""Traces in several parts, and sound ones with notes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from moetool import read_trace
from moetool.errors import InputError
from moetool.trace.metadata import TraceMetadata
from moetool.trace.reading.reader import open_trace
from moetool.trace.writing.partial import partial_folder
from tests.trace.examples import (
    NUM_EXPERTS,
    break_off,
    describe_layers,
    make_rows,
    write_trace,
)
from tests.trace.reading.frames import (
    METADATA,
    change,
    count,
    make_frame,
    repeat_rows,
    write,
)


def write_parts(folder: Path, *parts: tuple[pd.DataFrame, TraceMetadata | None]) -> Path:
    folder.mkdir()
    for number, (frame, metadata) in enumerate(parts):
        write(folder / f"rank-{number}.parquet", frame, metadata=metadata)
    return folder


def rename(frame: pd.DataFrame, suffix: str) -> pd.DataFrame:
    return frame.assign(prompt_id=frame["prompt_id"].astype(str) + suffix)


def test_a_part_twice_is_refused_with_both_names(tmp_path: Path) -> None:
    folder = write_parts(tmp_path / "parts", *[(make_frame(), METADATA)] * 2)
    with pytest.raises(InputError, match=r"rank-1.parquet' has expert . twice") as caught:
        count(folder)
    assert any(fact.endswith("rank-0.parquet'") for fact in caught.value.facts)
    assert "Remove the repetition" in caught.value.hint


@pytest.mark.parametrize(
    ("one", "other", "seen"),
    [
        ({"model": "a"}, {"model": "b"}, "model a and b"),
        ({"revision": "1"}, {"revision": "2"}, "revision 1 and 2"),
        ({"quantization": None}, {"quantization": "nf4"}, "quantization None and nf4"),
        (
            {},
            {"layers": describe_layers(top_k=(2, 1))},
            "top_k 2 and 1 in layer 1 of decoder",
        ),
    ],
    ids=["model", "revision", "quantization", "top-k"],
)
def test_parts_of_two_models_are_refused(
    one: dict[str, Any], other: dict[str, Any], seen: str, tmp_path: Path
) -> None:
    folder = write_parts(
        tmp_path / "parts",
        (make_frame(), replace(METADATA, **one)),
        (rename(make_frame(), "'"), replace(METADATA, **other)),
    )
    with pytest.raises(InputError, match="come from different models") as caught:
        open_trace(folder)
    assert "rank-0.parquet" in caught.value.message
    assert "rank-1.parquet" in caught.value.message
    assert caught.value.facts == (f"seen: {seen}",)


def test_parts_with_different_layers_of_a_model_are_one_trace(tmp_path: Path) -> None:
    """The case in which each process holds some of the layers."""
    frame = make_frame()
    parts = [
        (frame[frame["layer"] == number], replace(METADATA, layers=METADATA.layers[number:][:1]))
        for number in range(2)
    ]
    counts = count(write_parts(tmp_path / "parts", *parts))
    assert counts.notes == ()
    assert [layer.layer for layer in counts.layers] == [0, 1]


def test_parts_that_may_have_routed_differently_are_noted(tmp_path: Path) -> None:
    folder = write_parts(
        tmp_path / "parts",
        (make_frame(), replace(METADATA, dtype="bfloat16")),
        (rename(make_frame(), "'"), replace(METADATA, dtype="float32")),
    )
    assert count(folder).notes == ("The parts differ in dtype: bfloat16, float32.",)
    assert read_trace(folder).attrs["notes"] == ["The parts differ in dtype: bfloat16, float32."]


def test_a_part_without_metadata_is_refused(tmp_path: Path) -> None:
    folder = write_parts(
        tmp_path / "parts", (make_frame(), METADATA), (rename(make_frame(), "'"), None)
    )
    with pytest.raises(InputError, match=r"rank-1.parquet' has no metadata, but '.*rank-0"):
        count(folder)


def test_an_unfinished_trace_is_noted(tmp_path: Path) -> None:
    target = tmp_path / "trace.parquet"
    with pytest.raises(KeyboardInterrupt):
        break_off(target, make_rows(), metadata=METADATA)
    notes = count(partial_folder(target)).notes
    assert notes == ("'part-00000.parquet' is unfinished: its run has not ended.",)


def test_an_inexact_trace_is_noted_with_its_reason(tmp_path: Path) -> None:
    metadata = replace(METADATA, exact=False, notes=("Not exact: experts drop tokens.", "Other."))
    path = write_trace(tmp_path / "trace.parquet", make_rows(), metadata=metadata)
    assert count(path).notes == ("'trace.parquet' is not exact: experts drop tokens.",)


def test_rows_that_were_removed_are_noted(tmp_path: Path) -> None:
    frame = make_frame()
    metadata = replace(METADATA, num_decisions=24)
    assert count(write(tmp_path / "whole.parquet", frame, metadata=metadata)).notes == ()
    part = frame[(frame["layer"] == 0) | (frame["prompt_id"] != "p1")]
    removed, uneven = sorted(
        count(write(tmp_path / "part.parquet", part, metadata=metadata)).notes
    )[::-1]
    assert removed.startswith("The metadata counts 24 decisions, but the rows hold 21")
    assert "layer 1 9, layer 0 12" in uneven


def test_a_layer_without_rows_is_noted(tmp_path: Path) -> None:
    frame = make_frame()
    path = write(tmp_path / "trace.parquet", frame[frame["layer"] == 1], metadata=METADATA)
    assert count(path).notes == ("The metadata lists layer 0, for which there are no rows.",)


def test_a_layer_in_which_no_expert_ran_is_noted(tmp_path: Path) -> None:
    frame = make_frame()
    frame.loc[frame["layer"] == 1, ["expert", "weight"]] = [-1, 0]
    path = write(tmp_path / "trace.parquet", frame, metadata=METADATA)
    assert count(path).notes == ("No expert ran for any of 12 decisions in layer 1.",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 4}, "--top-k says 4, but the metadata .* says 2 in layer 0"),
        ({"num_experts": 9}, "--num-experts says 9, but the metadata .* says 6 in layer 0"),
    ],
)
def test_options_that_contradict_the_metadata_are_refused(
    options: dict[str, int], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "trace.parquet", make_frame(), metadata=METADATA)
    with pytest.raises(InputError, match=message):
        count(path, **options)
    assert count(path, top_k=2, num_experts=NUM_EXPERTS).notes == ()


def test_decisions_are_counted_one_by_one_whatever_top_k_says(tmp_path: Path) -> None:
    """Rows divided by top-k would halve the tokens of a trace without metadata."""
    path = write(tmp_path / "trace.parquet", make_frame())
    counts = count(path, top_k=4, num_experts=8, validate=False)
    assert [layer.decisions.tolist() for layer in counts.layers] == [[4, 3, 5]] * 2
    with pytest.raises(InputError, match="12 of 12 decisions with fewer than 4 rows in layer 0"):
        count(path, top_k=4, num_experts=8)


def test_a_message_cannot_steer_a_terminal(tmp_path: Path) -> None:
    frame = rename(make_frame(), "\x1b[31m\n\u202e")
    for spoil in (repeat_rows, change("weight", -1.0)):
        with pytest.raises(InputError) as caught:
            count(write(tmp_path / "trace.parquet", spoil(frame)))
        for text in (caught.value.message, *caught.value.facts):
            assert text.isprintable()


def test_metadata_survives_pyarrow(tmp_path: Path) -> None:
    """The other tests write traces with pyarrow's schema, not with moetool's writer."""
    path = write(tmp_path / "trace.parquet", make_frame(), metadata=METADATA)
    assert open_trace(path).metadata == METADATA
    assert json.loads(pq.read_metadata(path).metadata[b"moetool"])["complete"]
