"""TensorRT-LLM's expert statistic: counts by iteration, and the experts of each token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from moetool import import_trace
from moetool.errors import InputError
from moetool.report.imports import render_result_text
from moetool.trace.loads.table import open_loads
from tests.interchange.imports.known import Known, find_decisions, make_known, read_imported


def write_raw(folder: Path, known: Known, *, rank: int = 0) -> Path:
    """Write each prompt of a model as the batch of an iteration."""
    arrays: dict[str, NDArray[Any]] = {
        f"{100 + number}_{layer}": np.ascontiguousarray(prompt.experts[:, layer].astype(np.int32))
        for number, prompt in enumerate(known.prompts)
        for layer in known.routed
    }
    path = folder / f"rank{rank}_raw.safetensors"
    save_file(arrays, path)
    write_meta(folder, known)
    return path


def write_meta(folder: Path, known: Known) -> None:
    content = {"num_experts": known.num_experts, "num_experts_per_token": known.top_k}
    (folder / "meta_info.json").write_text(json.dumps(content))


def name_iterations(known: Known, *, rank: int = 0) -> dict[str, str]:
    return {
        prompt.prompt_id: f"rank{rank}/iteration{100 + number}"
        for number, prompt in enumerate(known.prompts)
    }


def test_a_round_trip_of_raw_files_gives_the_same_decisions(tmp_path: Path) -> None:
    known, other = make_known(1), make_known(2)
    write_raw(tmp_path, known, rank=0)
    write_raw(tmp_path, known, rank=1)  # Of tensor parallelism: the same tokens.
    write_raw(tmp_path, other, rank=2)
    result = import_trace("tensorrt-llm", tmp_path, tmp_path / "t.parquet")
    frame, metadata = read_imported(result.path)
    assert find_decisions(frame) == {
        **known.decisions(with_weights=False, prompt_ids=name_iterations(known)),
        **other.decisions(with_weights=False, prompt_ids=name_iterations(other, rank=2)),
    }
    assert {(each["num_experts"], each["top_k"]) for each in metadata["layers"]} == {(8, 2)}
    assert any("3 iterations with the experts of another rank" in note for note in result.notes)


def test_counts_are_summed_over_ranks(tmp_path: Path) -> None:
    known = make_known()
    counts = np.random.default_rng(0).integers(0, 99, (2, 2, 3, 8))  # ranks, iterations, layers
    for rank in range(2):
        arrays = {
            f"{100 + iteration}_{layer + 1}": counts[rank, iteration, layer]
            for iteration in range(2)
            for layer in range(3)
        }
        save_file(arrays, tmp_path / f"rank{rank}.safetensors")
    write_meta(tmp_path, known)
    result = import_trace("tensorrt-llm", tmp_path, tmp_path / "loads.parquet")
    table = open_loads(result.path)
    frame = table.to_frame().set_index(["step", "layer", "expert"])["count"]
    for iteration in range(2):
        for layer in range(3):
            for expert in range(8):
                expected = int(counts[:, iteration, layer, expert].sum())
                assert frame[100 + iteration, layer + 1, expert] == expected
    assert {each.top_k for each in table.to_counts().layers} == {2}
    assert (result.num_steps, result.num_assignments) == (2, int(counts.sum()))
    shown = " ".join(render_result_text(result).split())
    assert f"3 routed layers, 2 steps, {counts.sum():,} assignments; top-2 of 8 experts" in shown
    write_raw(tmp_path, known)
    trace = import_trace("auto", tmp_path, tmp_path / "t.parquet")
    assert trace.kind == "trace"
    assert any("`moetool import tensorrt-llm-counts` makes" in note for note in trace.notes)


def test_without_its_metadata_the_number_of_experts_is_asked_for(tmp_path: Path) -> None:
    known = make_known()
    path = write_raw(tmp_path, known)
    (tmp_path / "meta_info.json").unlink()
    result = import_trace("tensorrt-llm-raw", path, tmp_path / "t.parquet")
    assert result.num_experts is None
    frame, metadata = read_imported(result.path)
    assert metadata["layers"] == []
    assert find_decisions(frame) == known.decisions(
        with_weights=False, prompt_ids=name_iterations(known)
    )
    named = import_trace("tensorrt-llm-raw", path, tmp_path / "u.parquet", num_experts=8)
    assert named.num_experts == (8,)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"1_1": np.zeros((2, 2), dtype=np.float32)}, "is not an array of whole numbers"),
        ({"1_1": np.array([[0, 8]])}, "has expert 8 in layer 1"),
        ({"1_1": np.array([[3, 3]])}, "has expert 3 twice"),
        ({"1_1": np.array([[0, 1, 2]])}, "at most 3 experts, but the stated top-k is 2"),
        ({"1_1": np.zeros((0, 2), dtype=np.int64)}, "hold no decisions"),
        ({"other": np.array([[0, 1]])}, "holds no experts of tokens"),
        ({"1_1": np.array([1, 2])}, "holds no experts of tokens"),
    ],
)
def test_what_is_wrong_with_a_raw_file_is_named(
    arrays: dict[str, NDArray[Any]], message: str, tmp_path: Path
) -> None:
    save_file(arrays, tmp_path / "rank0_raw.safetensors")
    write_meta(tmp_path, make_known())
    with pytest.raises(InputError, match=message):
        import_trace("tensorrt-llm-raw", tmp_path, tmp_path / "t.parquet")
    assert not (tmp_path / "t.parquet").exists()


def test_negative_counts_and_ranks_of_other_sizes_are_refused(tmp_path: Path) -> None:
    save_file({"1_1": np.array([1, -2])}, tmp_path / "rank0.safetensors")
    with pytest.raises(InputError, match="holds a count below 0"):
        import_trace("tensorrt-llm-counts", tmp_path, tmp_path / "t.parquet")
    save_file({"1_1": np.array([1, 2])}, tmp_path / "rank0.safetensors")
    save_file({"1_1": np.array([1, 2, 3])}, tmp_path / "rank1.safetensors")
    with pytest.raises(InputError, match="another number of experts than another rank"):
        import_trace("tensorrt-llm-counts", tmp_path, tmp_path / "t.parquet")
