"""Probabilities next to a trace are read in order, a part of a layer at a time, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moetool.errors import InputError
from moetool.trace.companions import TRACE_KEY, probabilities_path
from moetool.trace.metadata import TraceMetadata
from moetool.trace.reading.probabilities import (
    LayerProbabilities,
    ProbabilitySource,
    find_probabilities,
)
from moetool.trace.reading.reader import open_trace
from moetool.trace.rows import assignment_rows, probability_rows
from moetool.trace.schema import PROBABILITIES_SCHEMA
from moetool.trace.writing.writer import TraceFile
from tests.trace.examples import describe_layers, make_layers, make_tokens

LENGTHS = (3, 1, 4)


def write_both(target: Path) -> tuple[Path, list[np.ndarray]]:
    """Write a trace of two layers with its probabilities, and return those of each layer."""
    tokens, layers = make_tokens(LENGTHS), make_layers(sum(LENGTHS), top_k=(2, 2))
    metadata = TraceMetadata(complete=True, layers=describe_layers(), score_function="softmax")
    with TraceFile(target, metadata=metadata) as sink:
        sink.write(assignment_rows(tokens, layers), probability_rows(tokens, layers))
        sink.finish(metadata)
    known = [layer.probabilities for layer in layers]
    return target, [each for each in known if each is not None]


def join_layers(parts: list[LayerProbabilities]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    return {
        layer: (
            np.concatenate([part.probabilities for part in parts if part.layer == layer]),
            np.concatenate([part.prompt for part in parts if part.layer == layer]),
        )
        for layer in sorted({part.layer for part in parts})
    }


@pytest.mark.parametrize("rows_at_once", [1 << 16, 2])
def test_every_layer_has_its_probabilities_in_order(
    tmp_path: Path, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moetool.trace.reading.probabilities._MOST_ROWS", rows_at_once)
    path, expected = write_both(tmp_path / "trace.parquet")
    source = find_probabilities(open_trace(path))
    assert source is not None
    assert source.score_function == "softmax"
    layers = join_layers(list(source))
    assert list(layers) == [0, 1]
    for layer, (probabilities, prompt) in layers.items():
        assert probabilities.tolist() == expected[layer].tolist()
        assert prompt.tolist() == np.repeat([0, 1, 2], LENGTHS).tolist()


def test_probabilities_in_memory_are_those_of_the_file(tmp_path: Path) -> None:
    path, _ = write_both(tmp_path / "trace.parquet")
    table = pq.read_table(probabilities_path(path))
    stored = find_probabilities(open_trace(path))
    assert stored is not None
    kept = ProbabilitySource(path, None, (table.slice(0, 5), table.slice(5)))
    for layer, (probabilities, _) in join_layers(list(stored)).items():
        assert join_layers(list(kept))[layer][0].tolist() == probabilities.tolist()


def test_probabilities_of_another_trace_are_not_taken(tmp_path: Path) -> None:
    path, _ = write_both(tmp_path / "trace.parquet")
    beside = probabilities_path(path)
    table = pq.read_table(beside)
    pq.write_table(table.replace_schema_metadata({TRACE_KEY: b"other.parquet"}), beside)
    assert find_probabilities(open_trace(path)) is None


def test_a_trace_without_the_file_has_none(tmp_path: Path) -> None:
    path, _ = write_both(tmp_path / "trace.parquet")
    probabilities_path(path).unlink()
    assert find_probabilities(open_trace(path)) is None


@pytest.mark.parametrize(
    ("value", "words"),
    [(float("nan"), "probability of nan in row 1"), (-0.5, "probability of -0.5 in row 1")],
)
def test_a_value_that_is_not_a_probability_is_refused(value: float, words: str) -> None:
    with pytest.raises(InputError, match=words):
        list(source_of([[0.5, 0.5], [0.5, value], [0.1, 0.9]]))


@pytest.mark.parametrize("lists", [[[0.5, 0.5], None], [[0.5, 0.5], [0.2, None]]])
def test_a_missing_value_is_refused(lists: list[list[float] | None]) -> None:
    with pytest.raises(InputError, match="'trace'"):
        list(source_of(lists))


def test_layers_may_have_different_numbers_of_experts() -> None:
    source = source_of([[0.5, 0.5], [0.2, 0.3, 0.5]], layers=[0, 1])
    assert [part.probabilities.shape for part in source] == [(1, 2), (1, 3)]


def source_of(
    lists: list[list[float] | None], layers: list[int] | None = None
) -> ProbabilitySource:
    number = len(lists)
    values = [
        None if each is None else [None if value is None else np.float16(value) for value in each]
        for each in lists
    ]
    table = pa.table(
        {
            "prompt_id": pa.array(["p"] * number).dictionary_encode(),
            "stack": pa.array(["decoder"] * number).dictionary_encode(),
            "layer": pa.array(layers or [0] * number, type=pa.int16()),
            "position": pa.array(range(number), type=pa.int32()),
            "probabilities": pa.array(values, type=pa.list_(pa.float16())),
        },
        schema=PROBABILITIES_SCHEMA,
    )
    return ProbabilitySource(Path("trace"), "softmax", (table,))
