"""Responses of SGLang and vLLM give back the decisions that they were written from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool import import_trace, inspect_model
from moetool.errors import InputError, UsageError
from tests.interchange.imports import foreign
from tests.interchange.imports.known import Known, find_decisions, make_known, read_imported


def check_tokens(frame: pd.DataFrame, known: Known) -> None:
    """Compare token ids and phases with those of the prompts."""
    for prompt in known.prompts:
        own = frame[frame["prompt_id"] == prompt.prompt_id]
        position = own["position"].to_numpy()
        assert own["token_id"].tolist() == prompt.ids[position].tolist()
        is_decode = position >= prompt.num_prompt_tokens
        assert own["phase"].tolist() == np.where(is_decode, "decode", "prefill").tolist()


@pytest.mark.parametrize("layout", ["sglang", "vllm", "old vllm"])
@settings(max_examples=12)
@given(seed=st.integers(0, 2**32), top_k=st.integers(2, 4), num_experts=st.integers(4, 300))
def test_a_round_trip_gives_the_same_decisions(
    layout: str, seed: int, top_k: int, num_experts: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("responses")
    known = make_known(seed, num_experts=num_experts, top_k=top_k)
    dtype = "u1" if num_experts <= 256 else "u2"
    write = {
        "sglang": foreign.sglang_response,
        "vllm": lambda prompt: foreign.vllm_response(prompt, dtype=dtype),
        "old vllm": lambda prompt: foreign.old_vllm_response(known, prompt),
    }[layout]
    path = foreign.write_lines(folder / "r.jsonl", [write(prompt) for prompt in known.prompts])
    result = import_trace(
        "auto",
        path,
        folder / "trace.parquet",
        layers=known.routed,
        num_experts=num_experts,
        top_k=top_k,
    )
    frame, metadata = read_imported(result.path)
    assert find_decisions(frame) == known.decisions(with_weights=False)
    check_tokens(frame, known)
    assert "weight" not in frame
    assert metadata["complete"] is metadata["exact"] is True
    assert metadata["rank_order"] is False
    assert [layer["layer"] for layer in metadata["layers"]] == list(known.routed)
    inferred = [note for note in result.notes if "are inferred from the tokens" in note]
    number = known.prompts[0].experts.shape[1]
    assert [note.split()[:2] for note in inferred] == (
        [[f"{number}", "layers,"]] if layout == "sglang" else []
    )
    assert {layer["num_experts"] for layer in metadata["layers"]} == {num_experts}


@pytest.mark.parametrize("write", [foreign.sglang_response, foreign.vllm_response])
def test_dense_layers_are_left_out_by_their_zeros_with_a_note(write: Any, tmp_path: Path) -> None:
    known = make_known()
    path = tmp_path / "responses.json"
    path.write_text(json.dumps([write(prompt) for prompt in known.prompts], indent=1))
    result = import_trace("auto", path, tmp_path / "trace.parquet", top_k=2, num_experts=8)
    frame, _ = read_imported(result.path)
    assert find_decisions(frame) == known.decisions(with_weights=False)
    assert any(note.startswith("Layers of zeros only") for note in result.notes)


@pytest.mark.parametrize("write", [foreign.sglang_response, foreign.vllm_response])
def test_rows_left_out_at_the_start_keep_their_positions(write: Any, tmp_path: Path) -> None:
    known = make_known(3)
    responses = [write(prompt, start=1) for prompt in known.prompts]
    path = foreign.write_lines(tmp_path / "r.jsonl", responses)
    result = import_trace(
        "auto", path, tmp_path / "t.parquet", top_k=2, num_layers=4, layers=[1, 2, 3]
    )
    frame, _ = read_imported(result.path)
    expected = known.decisions(with_weights=False)
    assert find_decisions(frame) == {key: expected[key] for key in expected if key[1] >= 1}
    check_tokens(frame, known)


@pytest.mark.parametrize("write", [foreign.sglang_response, foreign.vllm_response])
def test_without_all_token_ids_there_is_no_such_column(write: Any, tmp_path: Path) -> None:
    known = make_known(4)
    responses = [write(prompt, has_ids=number > 0) for number, prompt in enumerate(known.prompts)]
    path = foreign.write_lines(tmp_path / "r.jsonl", responses)
    result = import_trace("auto", path, tmp_path / "t.parquet", top_k=2, layers=[1, 2, 3])
    assert "token_id" not in result.columns
    frame, _ = read_imported(result.path)
    assert find_decisions(frame) == known.decisions(with_weights=False)


def test_an_openai_response_of_sglang_needs_the_number_of_layers(tmp_path: Path) -> None:
    known = make_known(num_prompts=1)
    (prompt,) = known.prompts
    path = tmp_path / "chat.json"
    content: dict[str, Any] = {"id": "r", "sglext": {"routed_experts": foreign.encode_raw(prompt)}}
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="states no number of tokens"):
        import_trace("sglang", path, tmp_path / "t.parquet", top_k=2, layers=known.routed)
    arguments: dict[str, Any] = {"top_k": 2, "layers": known.routed, "num_layers": 4}
    result = import_trace("sglang", path, tmp_path / "t.parquet", **arguments)
    frame, _ = read_imported(result.path)
    names = {prompt.prompt_id: "r"}
    assert find_decisions(frame) == known.decisions(with_weights=False, prompt_ids=names)
    assert "phase" not in result.columns
    content["usage"] = {"prompt_tokens": 1, "completion_tokens": prompt.num_rows}
    path.write_text(json.dumps(content))
    result = import_trace("sglang", path, tmp_path / "u.parquet", top_k=2, layers=known.routed)
    assert "phase" in result.columns


def test_an_npy_file_is_a_prompt_named_like_it(tmp_path: Path) -> None:
    known = make_known(num_prompts=2)
    paths = []
    for prompt in known.prompts:
        paths.append(tmp_path / f"{prompt.prompt_id}.npy")
        np.save(paths[-1], prompt.experts.astype("u1"))
    result = import_trace("vllm", paths, tmp_path / "t.csv", layers=known.routed, num_experts=8)
    frame, metadata = read_imported(result.path)
    assert find_decisions(frame) == known.decisions(with_weights=False)
    assert metadata["imported_from"] == "vllm"


def test_a_model_says_which_layers_route(tmp_path: Path, demo: Path) -> None:
    known = make_known(num_layers=6, routed=tuple(range(6)), num_experts=8)
    responses = [foreign.vllm_response(prompt) for prompt in known.prompts]
    path = foreign.write_lines(tmp_path / "r.jsonl", responses)
    result = import_trace("vllm", path, tmp_path / "t.parquet", model=str(demo))
    frame, metadata = read_imported(result.path)
    assert find_decisions(frame) == known.decisions(with_weights=False)
    assert metadata["model_type"] == "mixtral"
    assert {layer["num_experts"] for layer in metadata["layers"]} == {8}
    inspected = inspect_model(demo)
    assert inspected.parameters is not None
    assert inspected.flops is not None
    assert (metadata["total_parameters"], metadata["active_parameters"]) == (
        inspected.parameters.total,
        inspected.parameters.active_params,
    )
    assert metadata["flops_per_token"] == inspected.flops.prefill
    assert metadata["flops_prompt_tokens"] == inspected.flops.num_prompt_tokens
    assert metadata["dense_flops_per_token"] == inspected.flops.dense_prefill
    with pytest.raises(UsageError, match="--top-k contradicts"):
        import_trace("vllm", path, tmp_path / "u.parquet", model=str(demo), top_k=3)


def test_repeated_ids_and_several_choices_get_distinct_prompts(tmp_path: Path) -> None:
    known = make_known(num_prompts=2)
    first, second = (foreign.vllm_response(prompt) for prompt in known.prompts)
    first["choices"] += second["choices"]
    second["id"] = first["id"]
    path = foreign.write_lines(tmp_path / "r.jsonl", [first, second, second])
    result = import_trace("vllm", path, tmp_path / "t.parquet", layers=known.routed)
    frame, _ = read_imported(result.path)
    assert set(frame["prompt_id"].astype(str)) == {
        "request-0/0",
        "request-0/1",
        "request-0",
        "request-0#2",
    }


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"model": "other"}, {}, "is of the model 'other', but a response before"),
        ({"choices": [{"routed_experts": "@@"}]}, {}, "holds no base64"),
        ({"choices": [{"routed_experts": "AAAA"}]}, {}, "is not a .npy array"),
        ({"choices": 3}, {}, "has no routed experts of vLLM"),
        ({}, {"layers": [1, 9]}, "has 4 layers, but 2 routed ones"),
        ({}, {"layers": [0, 1, 2, 3]}, "has expert 0 twice in one decision: layer 0"),
        ({}, {"layers": [1, 2, 3], "num_experts": 3}, "ids are from 0 to 2"),
        (
            {},
            {"layers": [1, 2, 3], "top_k": 3},
            "have at most 2 experts, but the stated top-k is 3",
        ),
    ],
)
def test_what_is_wrong_with_a_response_is_named(
    change: dict[str, Any], arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    known = make_known(num_prompts=2)
    first, second = (foreign.vllm_response(prompt) for prompt in known.prompts)
    path = foreign.write_lines(tmp_path / "r.jsonl", [first, {**second, **change}])
    with pytest.raises((InputError, UsageError), match=message):
        import_trace("vllm", path, tmp_path / "t.parquet", **arguments)
    assert [each.name for each in tmp_path.iterdir()] == ["r.jsonl"]


def test_responses_without_any_routed_experts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"choices": [{"routed_experts": None}]}))
    with pytest.raises(InputError, match="each of them is null"):
        import_trace("vllm", path, tmp_path / "t.parquet")
