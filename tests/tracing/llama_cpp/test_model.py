"""Prompts are run whole, piece by piece and continued, and every token's decision is kept."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from moetool.tracing.llama_cpp import worker
from moetool.tracing.llama_cpp.faults import WorkerError
from moetool.tracing.llama_cpp.model import Evaluated, GgufRun
from moetool.tracing.llama_cpp.options import LlamaCppOptions
from tests.tracing.llama_cpp.stand_in import (
    BOS,
    END,
    HEAD,
    NUM_EXPERTS,
    NUM_LAYERS,
    TOP_K,
    LlamaCpp,
    hidden_states,
    probabilities,
)

PROMPTS = ("bcadef", "f", "ka")


def make_job(**options: Any) -> dict[str, Any]:
    return {"path": "any.gguf", **asdict(LlamaCppOptions(**options))}


def evaluate(llama_cpp: LlamaCpp, **options: Any) -> list[Evaluated]:
    run = GgufRun(llama_cpp, llama_cpp.tensors, make_job(**options))
    tokens = [run.tokenize(number, text)[0] for number, text in enumerate(PROMPTS)]
    run.open(tokens)
    return [run.evaluate(number, each) for number, each in enumerate(tokens)]


def check_dense(found: Evaluated) -> None:
    """Compare decisions with those of the whole text at once."""
    hidden = hidden_states(found.tokens)
    for layer, decisions in found.decisions.items():
        probs = probabilities(layer, hidden)
        order = np.argsort(-probs, axis=1)
        assert decisions.experts.tolist() == order[:, :TOP_K].tolist()
        ranked = np.take_along_axis(probs, order, axis=1)
        chosen = ranked[:, :TOP_K]
        np.testing.assert_allclose(
            decisions.weights, chosen / chosen.sum(axis=1, keepdims=True), rtol=1e-5
        )
        if len(decisions.margins):
            margins = ranked[:, TOP_K - 1] - ranked[:, TOP_K]
            np.testing.assert_allclose(decisions.margins, margins, atol=1e-6)


@pytest.mark.parametrize("ubatch", [1, 2, 3, 100])
@pytest.mark.parametrize("with_margins", [False, True])
def test_decisions_are_those_of_the_whole_text(ubatch: int, with_margins: bool) -> None:
    found = evaluate(LlamaCpp(), ubatch=ubatch, with_margins=with_margins, max_new_tokens=4)
    for prompt, each in zip(PROMPTS, found, strict=True):
        assert each.tokens[: len(prompt) + 1] == [
            BOS,
            *(ord(letter) - ord("a") for letter in prompt),
        ]
        assert list(each.decisions) == list(range(NUM_LAYERS))
        assert all(
            len(layer.margins) == len(each.tokens) * with_margins
            for layer in each.decisions.values()
        )
        check_dense(each)


def test_each_new_token_is_the_most_likely_one_until_the_text_ends() -> None:
    found = evaluate(LlamaCpp(), max_new_tokens=30)
    for prompt, each in zip(PROMPTS, found, strict=True):
        best = (hidden_states(each.tokens) @ HEAD.T).argmax(axis=1)
        num_prompt = len(prompt) + 1
        assert each.tokens[num_prompt:] == best[num_prompt - 1 : -1].tolist()
        assert each.num_new_tokens == len(each.tokens) - num_prompt + 1
        # The last new token never runs.
        assert END not in each.tokens
        assert best[-1] == END or each.num_new_tokens == 30


def test_prompts_are_cut_and_layers_chosen() -> None:
    llama_cpp = LlamaCpp()
    options = make_job(max_prompt_tokens=3, special_tokens=False, layers=frozenset({1}))
    run = GgufRun(llama_cpp, llama_cpp.tensors, options)
    tokens, is_cut = run.tokenize(1, "bcad")
    assert (tokens, is_cut) == ([1, 2, 0], True)
    assert run.tokenize(1, [4, 5]) == ([4, 5], False)
    assert list(run.open([tokens])) == [1]
    assert run.routed_layers == list(range(NUM_LAYERS))
    found = run.evaluate(1, tokens)
    assert list(found.decisions) == [1]
    check_dense(found)
    assert run.list_texts([0, 1]) == ["<s>", "b"]


@pytest.mark.parametrize(
    ("llama_cpp", "options", "words"),
    [
        (LlamaCpp(is_loadable=False), {}, "could not load the file"),
        (LlamaCpp(has_tokenizer=False), {}, "has no tokenizer"),
        (LlamaCpp(), {"num_gpu_layers": 4}, "llama-cpp-python finds none"),
        (LlamaCpp(), {"context": 5}, "needs a context of 7 tokens, and has 5"),
        (LlamaCpp(), {"context": 9000}, "could not make a context of 9,000 tokens"),
        (LlamaCpp(), {"layers": frozenset({7})}, "layer 7 does not route"),
    ],
)
def test_what_can_not_run_is_refused(
    llama_cpp: LlamaCpp, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(WorkerError, match=words) as refused:
        evaluate(llama_cpp, **options)
    assert refused.value.hint


def test_a_failing_evaluation_is_refused() -> None:
    llama_cpp = LlamaCpp()
    llama_cpp.fails_at = 3
    with pytest.raises(WorkerError, match=r"could not evaluate prompt 0 \(code 1\)"):
        evaluate(llama_cpp, ubatch=3)


def test_models_that_write_in_no_order_are_refused() -> None:
    llama_cpp = LlamaCpp()
    llama_cpp.is_diffusion = True
    with pytest.raises(WorkerError, match="a diffusion model") as refused:
        evaluate(llama_cpp)
    assert refused.value.is_untraceable


def test_an_error_in_the_callback_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    llama_cpp = LlamaCpp()
    monkeypatch.setattr(type(llama_cpp.tensors), "read", lambda *_: b"\0" * 4)
    with pytest.raises(ValueError, match="reshape"):
        evaluate(llama_cpp)


def work(monkeypatch: pytest.MonkeyPatch, llama_cpp: LlamaCpp, **options: Any) -> bytes:
    monkeypatch.setitem(sys.modules, "llama_cpp", llama_cpp)
    monkeypatch.setattr(worker, "Ggml", lambda _: llama_cpp.tensors)
    output = io.BytesIO()
    worker.run({**make_job(**options), "prompts": list(PROMPTS)}, output)
    return output.getvalue()


def test_the_worker_writes_what_was_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO(work(monkeypatch, LlamaCpp(), max_new_tokens=2))
    opened = json.loads(written.readline())
    assert opened["routed"] == list(range(NUM_LAYERS))
    assert opened["layers"] == [[layer, TOP_K, NUM_EXPERTS] for layer in range(NUM_LAYERS)]
    for each in evaluate(LlamaCpp(), max_new_tokens=2):
        line = json.loads(written.readline())
        assert line["tokens"] == each.tokens
        assert line["num_new_tokens"] == each.num_new_tokens
        for decisions in each.decisions.values():
            assert written.read(decisions.experts.nbytes) == decisions.experts.tobytes()
            assert written.read(decisions.weights.nbytes) == decisions.weights.tobytes()
    assert not written.read()


def test_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    llama_cpp = LlamaCpp()
    llama_cpp.tensors.version = "0.26.0"
    with pytest.raises(WorkerError, match=r"runs with ggml 0\.26\.0, not its own"):
        work(monkeypatch, llama_cpp)
    monkeypatch.setattr(LlamaCpp, "__version__", "0.4.0")
    with pytest.raises(WorkerError, match=r"0\.4\.0 is not known") as refused:
        work(monkeypatch, llama_cpp)
    assert "Install 0.3.36" in refused.value.hint
