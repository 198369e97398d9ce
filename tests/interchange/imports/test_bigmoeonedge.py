"""BigMoeOnEdge's route traces give back the decisions that they were written from."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pytest

from moetool import import_trace
from moetool.errors import InputError
from tests.interchange.imports.known import Known, find_decisions, make_known, read_imported

HEAD = "# route_trace v1\n# model=/m/a b.gguf arch=x n_layer=4 n_expert=8 n_expert_used=2\n"
COLUMNS = "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes"


def write_bigmoe(path: Path, known: Known, *, weight: str = "", columns: str = COLUMNS) -> Path:
    """Write a prompt as a turn: a prefill layer by layer, then token by token."""
    lines = [f"{HEAD}# layer=1 expert_bytes=64 dense_bytes=9", columns]
    for turn, prompt in enumerate(known.prompts):
        split = min(prompt.num_prompt_tokens, prompt.num_rows)
        places = [(layer, step) for layer in known.routed for step in range(split)]
        places += [
            (layer, step) for step in range(split, prompt.num_rows) for layer in known.routed
        ]
        for layer, step in places:
            for slot in range(known.top_k):
                shown = weight or repr(float(prompt.weights[step, layer, slot]))
                expert = prompt.experts[step, layer, slot]
                lines.append(
                    f"{turn},{int(step >= split)},{step},{layer},{slot},{expert},{shown},0,64"
                )
    path.write_text("\n".join(lines) + "\n")
    return path


def name_turns(known: Known) -> dict[str, str]:
    return {each.prompt_id: f"turn{number}" for number, each in enumerate(known.prompts)}


@pytest.mark.parametrize("bytes_per_block", [None, 200])
def test_a_round_trip_gives_the_same_decisions(
    bytes_per_block: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = make_known(7)
    path = write_bigmoe(tmp_path / "route.csv", known)
    if bytes_per_block is not None:
        # So small that decisions are cut between blocks.
        read = pa.csv.ReadOptions
        monkeypatch.setattr(
            "pyarrow.csv.ReadOptions", lambda **given: read(block_size=bytes_per_block, **given)
        )
    result = import_trace("bigmoeonedge", path, tmp_path / "t.parquet")
    frame, metadata = read_imported(result.path)
    expected = known.decisions(with_weights=True, prompt_ids=name_turns(known))
    found = find_decisions(frame)
    assert found.keys() == expected.keys()
    for key, (experts, weights) in expected.items():
        assert found[key][0] == experts
        assert found[key][1] == pytest.approx(weights)
    assert metadata["model"] == "/m/a b.gguf"
    assert {(each["num_experts"], each["top_k"]) for each in metadata["layers"]} == {(8, 2)}
    decode = frame[frame["phase"] == "decode"]
    expected_rows = sum(
        max(0, each.num_rows - each.num_prompt_tokens) for each in known.prompts
    ) * len(known.routed)
    assert len(decode) == 2 * expected_rows


def test_weights_that_are_nan_are_not_imported(tmp_path: Path) -> None:
    known = make_known(8)
    path = write_bigmoe(tmp_path / "route.csv", known, weight="nan")
    result = import_trace("bigmoeonedge", path, tmp_path / "t.parquet")
    frame, _ = read_imported(result.path)
    assert "weight" not in frame
    expected = known.decisions(with_weights=False, prompt_ids=name_turns(known))
    assert find_decisions(frame) == expected


def test_skipped_experts_make_a_trace_inexact(tmp_path: Path) -> None:
    path = tmp_path / "route.csv"
    rows = "0,0,0,1,0,3,0.7,0,64,0\n0,0,0,1,1,5,0.3,0,64,1\n"
    path.write_text(f"{HEAD}{COLUMNS},dropped\n{rows}")
    result = import_trace("bigmoeonedge", path, tmp_path / "t.parquet")
    _, metadata = read_imported(result.path)
    assert metadata["exact"] is False
    assert any("1 assignment of the router were skipped" in note for note in result.notes)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0,0,0,1,1,3,0.7,0,64\n", "has slot 1 where 0 follows"),
        ("0,0,0,1,0,3,0.7,0\n", "has a row that can't be read"),
        ("0,0,0,1,0,,0.7,0,64\n", "has a row without 'expert'"),
        ("0,5,0,1,0,3,0.7,0,64\n", "has a phase other than 0 and 1"),
        ("0,0,0,1,0,9,0.7,0,64\n", "has expert 9 in layer 1"),
        ("0,0,0,1,0,3,-0.7,0,64\n", "has the weight -0.7 in layer 1"),
        ("0,0,-4,1,0,3,0.7,0,64\n", "has -4 as 'step'"),
        ("", "hold no decisions"),
    ],
)
def test_what_is_wrong_with_a_row_is_named(rows: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "route.csv").write_text(f"{HEAD}{COLUMNS}\n{rows}")
    with pytest.raises(InputError, match=message):
        import_trace("bigmoeonedge", tmp_path / "route.csv", tmp_path / "t.parquet")
    assert [each.name for each in tmp_path.iterdir()] == ["route.csv"]


def test_a_last_layer_with_fewer_tokens_is_noted_only_if_it_has_fewer(tmp_path: Path) -> None:
    path = write_bigmoe(tmp_path / "route.csv", make_known(8))
    whole = import_trace("bigmoeonedge", path, tmp_path / "t.parquet")
    assert not any("last" in note for note in whole.notes)
    head, *rows = path.read_text().partition(f"{COLUMNS}\n")[2].splitlines()
    rows = [head, *rows]
    num_tokens = sum(row.split(",")[3:5] == ["1", "0"] for row in rows)
    kept = [row for row in rows if row.split(",")[3] != "3" or row.startswith("0,")]
    num_last = sum(row.split(",")[3:5] == ["3", "0"] for row in kept)
    assert 0 < num_last < num_tokens
    path.write_text("\n".join([f"{HEAD}{COLUMNS}", *kept]) + "\n")
    cut = import_trace("bigmoeonedge", path, tmp_path / "t.parquet", overwrite=True)
    (note,) = cut.notes
    assert note.startswith(f"Layer 3, the last one, has {num_last} tokens of {num_tokens}: ")
