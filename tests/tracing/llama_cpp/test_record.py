"""GGUF models are traced through another process, whose crash leaves nothing behind.

The decisions of llama.cpp itself are compared with transformers' by `make gguf`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from moetool.errors import DenseModelError, InputError, UntraceableError
from moetool.library import trace_gguf as library
from moetool.trace.reading.reader import open_trace
from moetool.tracing.llama_cpp import record
from moetool.tracing.llama_cpp.record import LlamaCppOptions, RecordedPrompt, record_prompts
from moetool.tracing.llama_cpp.worker import Recorder, WorkerError
from moetool.tracing.prompts.prompts import Prompt
from tests.checkpoint.gguf.writer import moe_metadata, moe_tensors, write_gguf
from tests.command import RunMoetool
from tests.tracing.llama_cpp.planted_worker import LAYERS, NUM_EXPERTS, plant

PLANTED = (sys.executable, "-m", "tests.tracing.llama_cpp.planted_worker")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", moe_metadata(), moe_tensors())


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let traces come from the stand-in."""

    def run(path: Path, prompts: list[str], options: LlamaCppOptions) -> Iterator[RecordedPrompt]:
        return record_prompts(path, prompts, options, command=PLANTED)

    monkeypatch.setattr(library, "record_prompts", run)


def prompts_of(*texts: str) -> list[Prompt]:
    return [Prompt(f"p{n}", "words", text, "here") for n, text in enumerate(texts)]


@pytest.mark.usefixtures("planted")
def test_rows_are_the_planted_decisions_by_falling_weight(path: Path, tmp_path: Path) -> None:
    prompts = prompts_of("one two three", "a longer prompt")
    result = library.trace_gguf(path, prompts, tmp_path / "t.parquet")
    assert (result.num_prompts, result.num_tokens, result.num_rows) == (2, 6, 6 * 2 * 2)
    source = open_trace(tmp_path / "t.parquet")
    assert source.metadata is not None
    assert source.metadata.complete
    assert source.metadata.model == str(path)
    assert {(each.layer, each.num_experts, each.top_k) for each in source.metadata.layers} == {
        (layer, NUM_EXPERTS, 2) for layer in LAYERS
    }
    import pandas as pd

    rows = pd.read_parquet(tmp_path / "t.parquet")
    assert set(rows["phase"]) == {"prefill"}
    for number, prompt in enumerate(prompts):
        for layer in LAYERS:
            tokens = [len(word) for word in prompt.text.split()]
            experts, weights = plant(layer, tokens)
            of_layer = rows[(rows["prompt_id"] == f"p{number}") & (rows["layer"] == layer)]
            for rank in (0, 1):
                of_rank = of_layer[of_layer["rank"] == rank].sort_values("position")
                assert of_rank["token_id"].tolist() == tokens
                # The stand-in writes the smaller weight first.
                assert of_rank["expert"].tolist() == experts[:, 1 - rank].tolist()
                assert of_rank["weight"].tolist() == weights[:, 1 - rank].tolist()


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("please crash", UntraceableError, "ended with code 134 at prompt 2"),
        ("cut short", UntraceableError, "ended with code 0 at prompt 2"),
        ("refuse this", InputError, "the file has no tokenizer"),
        ("a dense one", UntraceableError, "computed no router"),
    ],
)
def test_what_fails_on_the_way_leaves_no_trace(
    path: Path, tmp_path: Path, text: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        library.trace_gguf(path, prompts_of("fine", text), tmp_path / "t.parquet")
    assert not (tmp_path / "t.parquet").exists()


def test_a_dense_file_is_not_run(tmp_path: Path) -> None:
    tensors = {name: each for name, each in moe_tensors().items() if "exps" not in name}
    path = write_gguf(tmp_path / "dense.gguf", moe_metadata(expert_count=0), tensors)
    with pytest.raises(DenseModelError, match="dense model"):
        library.trace_gguf(path, prompts_of("text"), tmp_path / "t.parquet")


def test_without_llama_cpp_the_command_is_named(
    path: Path, tmp_path: Path, run_moetool: RunMoetool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        record, "find_spec", lambda name: None if name == "llama_cpp" else find_spec(name)
    )
    target = tmp_path / "t.parquet"
    done = run_moetool("route-trace", path, "--prompt", "text", "-o", target)
    assert done.returncode == 3
    assert "needs llama-cpp-python" in done.stderr
    assert "pip install 'moetool[gguf]'" in done.stderr
    assert not target.exists()


@pytest.mark.parametrize(
    "arguments", [("--dtype", "float16"), ("--max-new-tokens", "4"), ("--probabilities",)]
)
def test_options_of_transformers_are_refused(
    path: Path, tmp_path: Path, run_moetool: RunMoetool, arguments: tuple[str, ...]
) -> None:
    target = tmp_path / "t.parquet"
    done = run_moetool("route-trace", path, "--prompt", "text", "-o", target, *arguments)
    assert done.returncode == 2
    assert "runs in llama.cpp" in done.stderr


def test_decisions_of_micro_batches_are_joined() -> None:
    recorder = Recorder.__new__(Recorder)
    recorder._orders = {3: [np.array([[2, 0, 1]]), np.array([[1, 2, 0], [0, 1, 2]])]}
    first, last = np.array([9.0, 9.0]), np.array([9.0, 9.0, 9.0, 9.0])
    normed = [np.array([0.7, 0.3]), np.array([0.6, 0.4, 0.8, 0.2])]
    recorder._weights = {3: {"weights": [first, last], "weights_norm": normed}}
    experts, weights, num_experts = recorder.take(3)[3]
    assert experts.tolist() == [[2, 0], [1, 2], [0, 1]]
    assert weights.tolist() == [[0.7, 0.3], [0.6, 0.4], [0.8, 0.2]]
    assert num_experts == 3
    recorder._orders = {0: [np.array([[0, 1]])]}
    recorder._weights = {0: {"weights": [np.array([1.0])]}}
    with pytest.raises(WorkerError, match="1 of 2 decisions"):
        recorder.take(2)
