"""Megatron-LM's router traces give back sets of experts, and ranks where logits allow it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from moetool import import_trace
from moetool.errors import InputError, UsageError
from tests.interchange.imports import foreign
from tests.interchange.imports.known import Decisions, find_decisions, make_known, read_imported


def write_ranks(folder: Path, *, num_stages: int = 1) -> tuple[list[Path], Decisions]:
    """Write the files of some pipeline stages, and return what they hold."""
    known = make_known(routed=(0, 1, 2, 3))
    per_stage = 4 // num_stages
    paths = []
    for stage in range(num_stages):
        layers = tuple(range(stage * per_stage, (stage + 1) * per_stage))
        lines = [
            line
            for step, prompt in enumerate(known.prompts)
            for line in foreign.megatron_lines(
                known, prompt, step=step, layers=layers, offset=layers[0]
            )
        ]
        paths.append(foreign.write_lines(folder / f"router_trace_rank{stage}.jsonl", lines))
    names = {f"request-{step}": f"rank0/step{step}/batch0" for step in range(3)}
    return paths, known.decisions(with_weights=False, is_sorted=True, prompt_ids=names)


def test_the_lost_order_of_ranks_is_said_and_there_is_no_rank(tmp_path: Path) -> None:
    (path,), expected = write_ranks(tmp_path)
    result = import_trace("megatron", path, tmp_path / "t.parquet", num_experts=8)
    frame, metadata = read_imported(result.path)
    assert find_decisions(frame) == expected
    assert metadata["rank_order"] is False
    assert not {"rank", "weight", "phase", "token_id"} & set(frame.columns)
    assert any("order of ranks is lost" in note for note in result.notes)


def test_pipeline_stages_join_only_with_their_offsets(tmp_path: Path) -> None:
    paths, expected = write_ranks(tmp_path, num_stages=2)
    with pytest.raises(UsageError, match="number their layers from 0 in each pipeline stage"):
        import_trace("megatron", paths, tmp_path / "t.parquet")
    with pytest.raises(UsageError, match="1 layer offset was given"):
        import_trace("megatron", tmp_path, tmp_path / "t.parquet", layer_offsets=[0])
    result = import_trace("megatron", tmp_path, tmp_path / "t.parquet", layer_offsets=[0, 2])
    frame, _ = read_imported(result.path)
    assert find_decisions(frame) == expected


def test_ranks_of_one_stage_hold_other_prompts(tmp_path: Path) -> None:
    (path,), expected = write_ranks(tmp_path)
    second = tmp_path / "router_trace_rank1.jsonl"
    second.write_bytes(path.read_bytes())
    result = import_trace("megatron", [path, second], tmp_path / "t.parquet", layer_offsets=[0, 0])
    frame, _ = read_imported(result.path)
    copied = {
        (f"rank1{prompt[5:]}", position, layer): value
        for (prompt, position, layer), value in expected.items()
    }
    assert find_decisions(frame) == {**expected, **copied}


def test_micro_batches_are_numbered_and_taken_apart(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = []
    for _ in range(2):
        line = {"step": 4, "block": "decoder", "layer": 1, "num_tokens": 6, "topk": 1}
        lines.append({**line, "top_indices": [[0], [10], [1], [11], [2], [12]]})
    path = foreign.write_lines(tmp_path / "trace.jsonl", lines)
    result = import_trace("megatron", path, tmp_path / "t.parquet", micro_batch_size=2)
    found = find_decisions(read_imported(result.path)[0])
    assert found == {
        (f"rank0/step4/batch{micro}/seq{sequence}", position, 1): (
            (position + 10 * sequence,),
            None,
        )
        for micro in range(2)
        for sequence in range(2)
        for position in range(3)
    }
    with pytest.raises(InputError, match="not 4 sequences"):
        import_trace("megatron", path, tmp_path / "u.parquet", micro_batch_size=4)


def test_layers_that_predict_further_tokens_are_stacks_of_their_own(tmp_path: Path) -> None:
    line: dict[str, Any] = {"step": 0, "num_tokens": 1, "topk": 2, "layer": 0}
    line["top_indices"] = [[0, 1]]
    lines: list[dict[str, Any]] = [
        {**line, "block": "decoder"},
        {"mtp_idx": 0, **line, "block": "mtp"},
        {**line, "block": "mtp", "mtp_idx": 1},
    ]
    path = foreign.write_lines(tmp_path / "trace.jsonl", lines)
    result = import_trace("megatron", path, tmp_path / "t.parquet", layer_offsets=[5])
    frame, _ = read_imported(result.path)
    places = set(zip(frame["stack"].astype(str), frame["layer"], strict=True))
    assert places == {("decoder", 5), ("mtp", 0), ("mtp.1", 0)}


def to_bfloat16(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return torch.from_numpy(values).to(torch.bfloat16).to(torch.float64).numpy()


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "sqrtsoftplus"])
@pytest.mark.parametrize("has_bias", [False, True])
def test_logits_and_the_router_state_give_ranks_and_weights_back(
    function: str, has_bias: bool, tmp_path: Path
) -> None:
    random = np.random.default_rng(3)
    num_tokens, num_experts, top_k = 20, 8, 3
    logits = to_bfloat16(random.normal(0, 2, (num_tokens, num_experts)))
    bias = random.normal(0, 0.2, num_experts).astype(np.float32) if has_bias else None
    given = torch.from_numpy(logits)
    # As Megatron-LM computes them.
    if function == "softmax":
        scores = torch.softmax(given, dim=-1)
    elif function == "sigmoid":
        scores = torch.sigmoid(given)
    else:
        scores = torch.nn.functional.softplus(given).sqrt()
    for_choice = scores if bias is None else scores + torch.from_numpy(bias)
    chosen = torch.topk(for_choice, top_k).indices
    line = {
        "step": 0,
        "block": "decoder",
        "layer": 1,
        "num_tokens": num_tokens,
        "topk": top_k,
        "logit_offset": 0,
        "logit_bytes": 2 * logits.size,
        "logit_shape": list(logits.shape),
        "top_indices": np.sort(chosen.numpy(), axis=1).tolist(),
    }
    path = foreign.write_lines(tmp_path / "router_trace_rank0.jsonl", [line])
    halves = given.to(torch.bfloat16).view(torch.int16).numpy().tobytes()
    (tmp_path / "logits_rank0.bin").write_bytes(halves)
    state = {
        "weight": torch.zeros(num_experts, 4),
        "expert_bias": None if bias is None else torch.from_numpy(bias),
        "score_function": function,
        "topk": top_k,
    }
    torch.save({("decoder", None, 1): state}, tmp_path / "router_state_rank0.pt")
    result = import_trace("megatron", path, tmp_path / "t.parquet", num_experts=num_experts)
    frame, metadata = read_imported(result.path)
    assert metadata["rank_order"] is True
    found = find_decisions(frame)
    for token in range(num_tokens):
        own = scores[token, chosen[token]]
        order = torch.argsort(own, descending=True).tolist()
        experts, weights = found["rank0/step0/batch0", token, 1]
        assert experts == tuple(int(chosen[token, index]) for index in order)
        assert weights == pytest.approx(
            [float(own[index] / own.sum()) for index in order], rel=1e-5
        )
    assert not any("would choose other experts" in note for note in result.notes)


def test_logits_without_a_state_give_nothing_back(tmp_path: Path) -> None:
    (path,), expected = write_ranks(tmp_path)
    (tmp_path / "logits_rank0.bin").write_bytes(b"\0" * 64)
    frame, metadata = read_imported(import_trace("megatron", path, tmp_path / "t.parquet").path)
    assert find_decisions(frame) == expected
    assert metadata["rank_order"] is False


def test_a_last_line_that_breaks_off_is_left_out_with_a_note(tmp_path: Path) -> None:
    (path,), expected = write_ranks(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    result = import_trace("megatron", path, tmp_path / "t.parquet", num_experts=8)
    frame, metadata = read_imported(result.path)
    kept = {key: value for key, value in expected.items() if key[0] != "rank0/step2/batch0"}
    found = find_decisions(frame)
    assert {key: found[key] for key in kept} == kept
    assert metadata["complete"] is False
    assert any("breaks off in its last line" in note for note in result.notes)
    path.write_bytes(whole.replace(b'"step": 1', b'"step": x'))
    with pytest.raises(InputError, match="line 5 is not JSON"):
        import_trace("megatron", path, tmp_path / "u.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block": "encoder"}, "'block' is missing"),
        ({"topk": 3}, "not"),
        (
            {"top_indices": [[0], [1, 2]]},
            "holds no list of lists of whole numbers as 'top_indices'",
        ),
        ({"top_indices": [[0.5]]}, "'top_indices'"),
        ({"layer": -1}, "'layer'"),
        ({"step": None}, "'step'"),
        ({"top_indices": [[0, 900]]}, "has expert 900 in layer 1"),
        ({"top_indices": [[7, 7]]}, "has expert 7 twice"),
    ],
)
def test_what_is_wrong_with_a_line_is_named(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    line = {"step": 0, "block": "decoder", "layer": 1, "num_tokens": 1, "topk": 2}
    path = tmp_path / "trace.jsonl"
    path.write_text(json.dumps({**line, "top_indices": [[0, 1]], **change}) + "\n")
    with pytest.raises(InputError, match=message):
        import_trace("megatron", path, tmp_path / "t.parquet", num_experts=8)
    assert not (tmp_path / "t.parquet").exists()
