"""Dumps of SGLang's recorder give back decisions and counts, of logical experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool import import_trace
from moetool.errors import InputError
from moetool.trace.loads.table import open_loads
from tests.interchange.imports import foreign
from tests.interchange.imports.known import (
    Decisions,
    Known,
    find_decisions,
    make_known,
    read_imported,
)

EXTEND, DECODE, MIXED = 1, 2, 3


def prefill(known: Known, **options: Any) -> dict[str, Any]:
    """Return a record of one pass that reads all prompts of a model."""
    rows = [(prompt, 0, prompt.num_rows) for prompt in known.prompts]
    return foreign.sglang_record(known, rows, forward_pass=7, mode=EXTEND, **options)


def names_of_sequences(known: Known, *, rank: int = 0) -> dict[str, str]:
    return {
        prompt.prompt_id: f"rank{rank}/pass7/seq{number}"
        for number, prompt in enumerate(known.prompts)
    }


@settings(max_examples=10)
@given(seed=st.integers(0, 2**32), num_redundant=st.integers(0, 5), num_padded=st.integers(0, 3))
def test_a_round_trip_through_a_placement_gives_the_same_decisions(
    seed: int, num_redundant: int, num_padded: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("dump")
    known = make_known(seed, top_k=3)
    placement = foreign.place_experts(known, num_redundant=num_redundant, seed=seed)
    physical = foreign.invert_placement(placement, known.num_experts)
    record = prefill(known, physical_of=physical, num_padded=num_padded)
    path = foreign.save_dump(folder / "dump.pt", [record], placement)
    result = import_trace("sglang", path, folder / "trace.parquet")
    frame, metadata = read_imported(result.path)
    expected = known.decisions(with_weights=False, prompt_ids=names_of_sequences(known))
    assert find_decisions(frame) == expected
    assert {layer["num_experts"] for layer in metadata["layers"]} == {known.num_experts}
    assert set(frame["phase"]) == {"prefill"}
    assert "weight" not in frame


def test_passes_of_a_generation_have_phases_and_positions(tmp_path: Path) -> None:
    known = make_known(5, num_prompts=2)
    first, second = known.prompts
    placement = np.tile(np.arange(8), (4, 1))
    records = [
        foreign.sglang_record(known, [(first, 0, 2)], forward_pass=1, mode=EXTEND),
        foreign.sglang_record(known, [(second, 0, 2), (first, 2, 3)], forward_pass=2, mode=MIXED)
        if first.num_rows > 2
        else foreign.sglang_record(known, [(second, 0, 2)], forward_pass=2, mode=MIXED),
        foreign.sglang_record(known, [(second, 1, 2)], forward_pass=3, mode=DECODE),
    ]
    path = foreign.save_dump(tmp_path / "dump.pt", records, placement)
    frame, _ = read_imported(import_trace("sglang", path, tmp_path / "t.parquet").path)
    phases = frame.astype({"prompt_id": str, "phase": str}).groupby("prompt_id")["phase"].unique()
    assert phases["rank0/pass1/seq0"].tolist() == ["prefill"]
    assert phases["rank0/pass2/seq0"].tolist() == ["prefill"]
    assert phases["rank0/pass3/seq0"].tolist() == ["decode"]
    if first.num_rows > 2:
        assert phases["rank0/pass2/seq1"].tolist() == ["decode"]
    decode = frame[frame["prompt_id"] == "rank0/pass3/seq0"]
    assert set(decode["position"]) == {1}
    assert set(decode["token_id"]) == {int(second.ids[1])}


def test_ranks_with_the_same_tokens_count_once_and_others_add_up(tmp_path: Path) -> None:
    known, other = make_known(1), make_known(2)
    placement = np.tile(np.arange(8), (4, 1))
    paths = [
        foreign.save_dump(tmp_path / f"{number}.pt", [record], placement)
        for number, record in enumerate(
            [prefill(known, rank=0), prefill(known, rank=1), prefill(other, rank=2)]
        )
    ]
    result = import_trace("sglang", paths, tmp_path / "t.parquet")
    frame, _ = read_imported(result.path)
    expected: Decisions = {
        **known.decisions(with_weights=False, prompt_ids=names_of_sequences(known)),
        **other.decisions(with_weights=False, prompt_ids=names_of_sequences(other, rank=2)),
    }
    assert find_decisions(frame) == expected
    assert any("1 record with the tokens" in note for note in result.notes)


def test_a_changed_placement_is_refused(tmp_path: Path) -> None:
    known = make_known()
    first, second = (foreign.place_experts(known, num_redundant=2, seed=seed) for seed in (1, 2))
    paths = [
        foreign.save_dump(tmp_path / f"{rank}.pt", [prefill(known, rank=rank)], placement)
        for rank, placement in enumerate((first, second))
    ]
    with pytest.raises(InputError, match="hold different placements"):
        import_trace("sglang", paths, tmp_path / "t.parquet")
    # Two physical experts that are copies of one logical expert now, but were not then.
    copies = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 0]] * 4)
    record = prefill(known)
    record["topk_ids_of_layer"][1, 0, :2] = torch.tensor([0, 8])
    path = foreign.save_dump(tmp_path / "moved.pt", [record], copies)
    with pytest.raises(InputError, match="rebalanced experts in between"):
        import_trace("sglang", path, tmp_path / "t.parquet")
    assert not (tmp_path / "t.parquet").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forward_mode": 5}, "forward mode 5"),
        ({"input_ids": [1]}, "1 in 'input_ids'"),
        ({"extend_seq_lens": [10_000]}, "sequences of more than its"),
        ({"extend_seq_lens": [1]}, "tokens of none of its sequences"),
        ({"topk_ids_of_layer": None}, "holds no tensor of 3 dimensions"),
        ({"topk_ids_of_layer": torch.full((4, 3, 8), 99, dtype=torch.int32)}, "physical expert 99"),
        ({"forward_pass_id": "x"}, "'forward_pass_id'"),
    ],
)
def test_what_is_wrong_with_a_record_is_named(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    known = make_known()
    record = {**prefill(known), **change}
    path = foreign.save_dump(tmp_path / "dump.pt", [record], np.tile(np.arange(8), (4, 1)))
    with pytest.raises(InputError, match=message):
        import_trace("sglang-per-token", path, tmp_path / "t.parquet")


def test_a_pass_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    record = prefill(make_known())
    path = foreign.save_dump(tmp_path / "a.pt", [record, record], np.tile(np.arange(8), (4, 1)))
    with pytest.raises(InputError, match=r"is pass 7 of rank 0, which .* is too"):
        import_trace("sglang", path, tmp_path / "t.parquet")


@settings(max_examples=8)
@given(seed=st.integers(0, 2**32), num_redundant=st.integers(0, 4))
def test_counts_by_pass_are_summed_over_ranks_and_copies(
    seed: int, num_redundant: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("passes")
    random = np.random.default_rng(seed)
    known = make_known(seed)
    placement = foreign.place_experts(known, num_redundant=num_redundant, seed=seed)
    expected: dict[tuple[int, int, int], int] = {}
    paths = []
    for rank in range(2):
        records = []
        for forward_pass in (3, 5):
            counts = random.integers(0, 100, placement.shape).astype(np.int32)
            counts[0] = 0
            records.append(
                {
                    "forward_pass_id": forward_pass,
                    "rank": rank,
                    "gatherer_key": "primary",
                    "global_physical_count": torch.from_numpy(counts),
                }
            )
            for layer in range(1, 4):
                for slot, expert in enumerate(placement[layer].tolist()):
                    key = (forward_pass, layer, expert)
                    expected[key] = expected.get(key, 0) + int(counts[layer, slot])
        paths.append(foreign.save_dump(folder / f"{rank}.pt", records, placement))
    result = import_trace("sglang", paths, folder / "loads.csv", top_k=2)
    frame = open_loads(result.path).to_frame()
    keys = zip(frame["step"], frame["layer"], frame["expert"], strict=True)
    assert dict(zip(keys, frame["count"], strict=True)) == expected
    assert (result.format, result.kind, result.top_k) == ("sglang-per-pass", "load table", (2,))


def test_a_stat_dump_gives_counts_by_step_without_empty_steps_and_dense_layers(
    tmp_path: Path,
) -> None:
    counts = np.random.default_rng(0).integers(0, 50, (4, 3, 6)).astype(np.int32)
    counts[:, 0] = 0
    counts[2] = 0
    content = {"rank": 0, "logical_count": torch.from_numpy(counts)}
    torch.save(content, tmp_path / "stat.pt")
    torch.save(torch.from_numpy(counts), tmp_path / "bare.pt")
    for name in ("stat", "bare"):
        result = import_trace("sglang", tmp_path / f"{name}.pt", tmp_path / f"{name}.parquet")
        table = open_loads(result.path)
        frame = table.to_frame()
        assert sorted(set(frame["step"])) == [0, 1, 3]
        assert sorted(set(frame["layer"])) == [1, 2]
        of_layers = table.to_counts(top_k=2).layers
        sums = counts.sum(axis=0)
        assert [each.assignments[0].tolist() for each in of_layers] == sums[1:].tolist()
    paths = [tmp_path / "stat.pt", tmp_path / "bare.pt"]
    with pytest.raises(InputError, match="already sums all ranks"):
        import_trace("sglang-stat", paths, tmp_path / "two.parquet")


@pytest.mark.parametrize(
    "content",
    [
        {"logical_count": torch.full((1, 2, 3), -1)},
        {"logical_count": torch.zeros(1, 2, 3, dtype=torch.int32)},
        {"logical_count": torch.zeros(2, 3, dtype=torch.int32)},
        {"logical_count": torch.zeros(1, 2, 3)},
        {"logical_count": torch.zeros((1, 1, 1), dtype=torch.int32).expand(10**6, 10**4, 10**4)},
        {"logical_count": [1, 2]},
        {"other": 1},
        [1, 2],
    ],
    ids=lambda content: str(content)[:30],
)
def test_a_file_of_torch_with_other_content_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "stat.pt")
    with pytest.raises(InputError):
        import_trace("sglang-stat", tmp_path / "stat.pt", tmp_path / "t.parquet")
    assert [each.name for each in tmp_path.iterdir()] == ["stat.pt"]


def test_a_token_that_occurs_twice_is_refused_as_readers_would(tmp_path: Path) -> None:
    record = prefill(make_known())
    record["positions"][1] = record["positions"][0]
    path = foreign.save_dump(tmp_path / "a.pt", [record], np.tile(np.arange(8), (4, 1)))
    with pytest.raises(InputError, match=r"What was imported has .* for one decision"):
        import_trace("sglang", path, tmp_path / "t.parquet")
    assert [each.name for each in tmp_path.iterdir()] == ["a.pt"]
