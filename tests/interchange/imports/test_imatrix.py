"""Importance matrices of llama.cpp give back their counts, with what limits them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool import import_trace
from moetool.errors import InputError
from moetool.interchange.imports.reading.gguf import read_gguf
from moetool.trace.loads.table import open_loads
from tests.interchange.imports.foreign import write_gguf, write_imatrix


@settings(max_examples=10)
@given(
    counts=st.dictionaries(
        st.integers(0, 60), st.lists(st.integers(0, 2**24 - 1), min_size=5, max_size=5), min_size=1
    ),
    kinds=st.sampled_from([("gate", "up", "down"), ("gate_up", "down"), ("up",)]),
)
def test_a_round_trip_gives_the_same_counts(
    counts: dict[int, list[int]],
    kinds: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("imatrix")
    arrays = {layer: np.array(each, dtype=np.float32) for layer, each in counts.items()}
    path = write_imatrix(folder / "model.gguf", arrays, kinds=kinds)
    result = import_trace("imatrix", path, folder / "loads.parquet")
    table = open_loads(result.path)
    found = table.to_counts(top_k=1)
    assert {each.layer: each.assignments[0].tolist() for each in found.layers} == counts
    assert table.metadata is not None
    assert table.metadata.precision == "exact"
    assert "The counts were collected on wiki.txt." in result.notes


def test_top_k_is_the_ratio_to_what_other_weights_of_the_layers_count(tmp_path: Path) -> None:
    counts = {1: np.array([3, 5, 4, 0], dtype=np.float32), 2: np.array([6, 2, 3, 1], "f4")}
    path = write_imatrix(tmp_path / "m.gguf", counts, num_tokens=6)
    result = import_trace("imatrix", path, tmp_path / "l.parquet")
    assert result.top_k == (2,)
    assert [each.decisions.tolist() for each in open_loads(result.path).to_counts().layers] == [
        [6],
        [6],
    ]
    path = write_imatrix(tmp_path / "odd.gguf", counts, num_tokens=5)
    assert import_trace("imatrix", path, tmp_path / "odd.parquet").top_k is None


def test_full_counters_and_unlike_tensors_are_lower_bounds(tmp_path: Path) -> None:
    full = {0: np.array([2.0**24, 7], dtype=np.float32)}
    result = import_trace("imatrix", write_imatrix(tmp_path / "f.gguf", full), tmp_path / "f.csv")
    table = open_loads(result.path)
    assert table.metadata is not None
    assert table.metadata.precision == "lower bound"
    assert table.to_counts(top_k=1).notes[0].startswith("Counts are lower bounds")
    tensors = {
        "blk.0.ffn_up_exps.weight.counts": np.array([[1], [5]], dtype=np.float32),
        "blk.0.ffn_down_exps.weight.counts": np.array([[2], [4]], dtype=np.float32),
    }
    path = write_gguf(tmp_path / "u.gguf", {"general.type": "imatrix"}, tensors)
    result = import_trace("imatrix", path, tmp_path / "u.csv")
    assert open_loads(result.path).to_frame()["count"].tolist() == [2, 5]
    assert any("count differently" in note for note in result.notes)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([1.0, np.nan], "something other than counts"),
        ([1.0, -1.0], "something other than counts"),
        ([1.0, 0.5], "something other than counts"),
        ([1.0, np.inf], "something other than counts"),
        ([], "has layers of"),
    ],
)
def test_numbers_that_are_not_counts_are_refused(
    counts: list[float], message: str, tmp_path: Path
) -> None:
    path = write_imatrix(tmp_path / "m.gguf", {0: np.array(counts, dtype=np.float32)})
    with pytest.raises(InputError, match=message):
        import_trace("imatrix", path, tmp_path / "l.parquet")


def test_other_gguf_files_are_refused(tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "model.gguf", {"general.architecture": "llama"}, {})
    with pytest.raises(InputError, match="is a GGUF file, but not an importance matrix"):
        import_trace("imatrix", model, tmp_path / "l.parquet")
    dense = write_imatrix(tmp_path / "dense.gguf", {})
    with pytest.raises(InputError, match="it is of a dense model"):
        import_trace("imatrix", dense, tmp_path / "l.parquet")
    with pytest.raises(InputError, match="Several importance matrices"):
        import_trace("imatrix", [model, dense], tmp_path / "l.parquet")


def test_every_kind_of_metadata_is_read(tmp_path: Path) -> None:
    metadata = {"text": "größe", "number": 7, "texts": ["a", "b\n"]}
    tensor = np.arange(6, dtype=np.float32).reshape(2, 3)
    gguf = read_gguf(write_gguf(tmp_path / "a.gguf", metadata, {"t": tensor, "u": tensor + 1}))
    assert gguf.metadata == metadata
    assert gguf.read("t").tolist() == tensor.tolist()
    assert gguf.read("u").tolist() == (tensor + 1).tolist()
