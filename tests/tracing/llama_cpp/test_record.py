"""GGUF models are traced through another process, whose crash leaves nothing behind.

The decisions of llama.cpp itself are compared with transformers' by `make gguf`.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from moetool import read_trace, trace_model
from moetool.errors import DenseModelError, InputError, UntraceableError, UsageError
from moetool.library import trace_gguf as library
from moetool.report.imports import render_result_text
from moetool.trace.reading.reader import open_trace
from moetool.tracing.llama_cpp import record
from moetool.tracing.llama_cpp.options import LlamaCppOptions
from moetool.tracing.llama_cpp.record import RecordedPrompt, record_prompts
from moetool.tracing.prompts.prompts import Prompt
from tests.checkpoint.gguf.test_files import write_parts
from tests.checkpoint.gguf.writer import moe_metadata, moe_tensors, write_gguf
from tests.command import RunMoetool
from tests.tracing.llama_cpp.planted_worker import LAYERS, NEW_TOKENS, NUM_EXPERTS, plant

PLANTED = (sys.executable, "-m", "tests.tracing.llama_cpp.planted_worker")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", moe_metadata(), moe_tensors())


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let traces come from the stand-in."""

    def run(
        path: Path,
        prompts: list[str],
        options: LlamaCppOptions,
        *,
        routed_layers: Collection[int],
    ) -> Iterator[RecordedPrompt]:
        return record_prompts(path, prompts, options, routed_layers=routed_layers, command=PLANTED)

    monkeypatch.setattr(library, "record_prompts", run)


def prompts_of(*texts: str) -> list[Prompt]:
    return [Prompt(f"p{n}", "words", text, "here") for n, text in enumerate(texts)]


@pytest.mark.usefixtures("planted")
def test_rows_are_the_planted_decisions_by_falling_weight(path: Path, tmp_path: Path) -> None:
    prompts = prompts_of("one two three", "a far longer prompt")
    options = LlamaCppOptions(max_new_tokens=3, max_prompt_tokens=3)
    result = library.trace_gguf(path, prompts, tmp_path / "t.parquet", options=options)
    num_tokens = 2 * (3 + 2)
    assert (result.num_prompts, result.num_tokens) == (2, num_tokens)
    assert result.num_rows == num_tokens * len(LAYERS) * 2
    metadata = open_trace(tmp_path / "t.parquet").metadata
    assert metadata is not None
    assert metadata.complete
    assert metadata.model == str(path)
    assert (metadata.max_new_tokens, metadata.num_new_tokens) == (3, 6)
    assert metadata.notes == ("Recorded in llama.cpp.",)
    assert render_result_text(result).startswith("Recorded in llama.cpp\n")
    assert (metadata.max_prompt_tokens, metadata.num_cut_prompts) == (3, 1)
    assert {(each.layer, each.num_experts, each.top_k) for each in metadata.layers} == {
        (layer, NUM_EXPERTS, 2) for layer in LAYERS
    }
    rows = pd.read_parquet(tmp_path / "t.parquet")
    for number, prompt in enumerate(prompts):
        for layer in LAYERS:
            tokens = [*(len(word) for word in prompt.text.split()[:3]), *NEW_TOKENS[:2]]
            experts, weights = plant(layer, tokens)
            of_layer = rows[(rows["prompt_id"] == f"p{number}") & (rows["layer"] == layer)]
            for rank in (0, 1):
                of_rank = of_layer[of_layer["rank"] == rank].sort_values("position")
                assert of_rank["phase"].tolist() == ["prefill"] * 3 + ["decode"] * 2
                assert of_rank["token_id"].tolist() == tokens
                assert of_rank["token"].tolist() == [f"<{token}>" for token in tokens]
                # The stand-in writes the smaller weight first.
                assert of_rank["expert"].tolist() == experts[:, 1 - rank].tolist()
                assert of_rank["weight"].tolist() == weights[:, 1 - rank].tolist()


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize(
    ("text", "error", "words", "seen"),
    [
        (
            "please crash",
            UntraceableError,
            "ended with code 134 while running prompt 2",
            "seen: GGML_ASSERT(planted) failed",
        ),
        ("be killed", UntraceableError, "ended by SIGKILL while running prompt 2", None),
        ("cut short", UntraceableError, "ended with code 0 while running prompt 2", None),
        (
            "unloadable",
            InputError,
            "could not load the file",
            "seen: error loading model: planted",
        ),
        ("an unknown graph", UntraceableError, "it routes in another way", None),
        ("with fewer layers", UntraceableError, "does not run experts in layer 1", None),
    ],
)
def test_what_fails_on_the_way_leaves_no_trace(
    path: Path, tmp_path: Path, text: str, error: type[Exception], words: str, seen: str | None
) -> None:
    before = set(tmp_path.iterdir())
    with pytest.raises(error, match=words) as refused:
        library.trace_gguf(path, prompts_of("fine", text), tmp_path / "t.parquet")
    assert isinstance(refused.value, UntraceableError | InputError)
    assert refused.value.facts == (() if seen is None else (seen,))
    assert refused.value.hint
    assert set(tmp_path.iterdir()) == before


@pytest.mark.usefixtures("planted")
def test_rows_go_to_stdout_once_all_are_known(
    path: Path, tmp_path: Path, run_moetool: RunMoetool
) -> None:
    target = tmp_path / "t.csv"
    assert run_moetool("route-trace", path, "--prompt", "text", "-o", target).returncode == 0
    done = run_moetool("route-trace", path, "--prompt", "text", "--format", "csv")
    assert done.stdout == target.read_text()
    assert "rows to stdout" in done.stderr
    failed = run_moetool("route-trace", path, "--prompt", "please crash", "--format", "csv")
    assert (failed.returncode, failed.stdout) == (5, "")


@pytest.mark.usefixtures("planted")
def test_the_function_returns_the_rows_that_it_would_write(path: Path, tmp_path: Path) -> None:
    prompts = [{"id": "a", "domain": "x", "text": "one two"}, {"id": "b", "text": "three"}]
    steps: list[str] = []
    kept = trace_model(path, prompts, max_new_tokens=3, on_progress=steps.append)
    assert steps == ["running llama.cpp"]
    written = trace_model(path, prompts, max_new_tokens=3, output=tmp_path / "t.parquet")
    assert (kept.path, written.path) == (None, tmp_path / "t.parquet")
    assert kept.num_rows == written.num_rows == (2 + 1 + 2 * 2) * len(LAYERS) * 2
    assert kept.metadata == written.metadata
    assert kept.counts.groups == ("x", "(none)")
    rows = read_trace(tmp_path / "t.parquet")
    for each in (kept, written):
        pd.testing.assert_frame_equal(each.to_frame(), rows)
    pd.testing.assert_frame_equal(read_trace(kept.save(tmp_path / "saved.parquet")), rows)


def test_the_function_passes_on_the_settings_of_llama_cpp(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[LlamaCppOptions] = []

    def run(
        path: Path, prompts: list[str], options: LlamaCppOptions, *, routed_layers: Collection[int]
    ) -> Iterator[RecordedPrompt]:
        del path, prompts, routed_layers
        seen.append(options)
        raise UntraceableError("seen", hint="none")

    monkeypatch.setattr(library, "record_prompts", run)
    with pytest.raises(UntraceableError, match="seen"):
        trace_model(
            path,
            ["text"],
            special_tokens=False,
            max_prompt_tokens=9,
            layers=[1],
            max_new_tokens=2,
            n_gpu_layers=0,
            threads=3,
            ctx_size=64,
            ubatch_size=16,
            cache_type_k="f32",
            cache_type_v="q8_0",
            flash_attn="off",
        )
    assert seen == [
        LlamaCppOptions(
            special_tokens=False,
            max_prompt_tokens=9,
            layers=frozenset({1}),
            max_new_tokens=2,
            num_gpu_layers=0,
            num_threads=3,
            context=64,
            ubatch=16,
            type_k="f32",
            type_v="q8_0",
            flash_attention="off",
        )
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float16"}, "--dtype has no effect"),
        ({"resume": True}, "--resume has no effect"),
        ({"probabilities": True}, "--probabilities has no effect"),
        ({"ubatch_size": 0}, "size of a micro-batch can't be 0"),
        ({"flash_attn": "maybe"}, "'maybe'"),
    ],
)
def test_the_function_refuses_what_the_command_refuses(
    path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        trace_model(path, ["text"], **options)
    with pytest.raises(UsageError, match="--threads is about GGUF files"):
        trace_model("demo", ["text"], threads=1)


def test_a_dense_file_is_not_run(tmp_path: Path) -> None:
    tensors = {name: each for name, each in moe_tensors().items() if "exps" not in name}
    path = write_gguf(tmp_path / "dense.gguf", moe_metadata(expert_count=0), tensors)
    with pytest.raises(DenseModelError, match="dense model"):
        library.trace_gguf(path, prompts_of("text"), tmp_path / "t.parquet")


def test_layers_without_experts_and_conversations_are_refused(path: Path, tmp_path: Path) -> None:
    trace = partial(library.trace_gguf, path, output=tmp_path / "t.parquet")
    with pytest.raises(UsageError, match="Layer 5 has no experts"):
        trace(prompts_of("text"), options=LlamaCppOptions(layers=frozenset({0, 5})))
    talk = Prompt("p", "words", "text", "here", messages=({"role": "user", "content": "text"},))
    with pytest.raises(InputError, match="is a conversation"):
        trace([talk])


def cut_file(folder: Path) -> Path:
    path = write_gguf(folder / "cut.gguf", moe_metadata(), moe_tensors())
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    return path


def part_of_three(folder: Path) -> Path:
    first, _, last = write_parts(folder)
    last.unlink()
    return first


def imatrix(folder: Path) -> Path:
    return write_gguf(folder / "i.gguf", {"general.type": "imatrix"}, moe_tensors())


def adapter(folder: Path) -> Path:
    metadata = {**moe_metadata(), "general.type": "adapter"}
    return write_gguf(folder / "lora.gguf", metadata, moe_tensors())


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (cut_file, "not a complete GGUF file"),
        (part_of_three, "lacks 1 of the 3 parts"),
        (imatrix, "holds an importance matrix"),
        (adapter, "holds a LoRA adapter"),
    ],
)
def test_files_that_hold_no_whole_model_get_one_sentence(
    tmp_path: Path, run_moetool: RunMoetool, write: object, words: str
) -> None:
    assert callable(write)
    target = tmp_path / "t.parquet"
    done = run_moetool("route-trace", write(tmp_path), "--prompt", "text", "-o", target)
    assert done.returncode == 3
    assert words in done.stderr
    starts = [line.partition(":")[0] for line in done.stderr.splitlines()]
    assert (starts.count("error"), starts.count("hint")) == (1, 1)
    assert not target.exists()


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
    ("arguments", "words"),
    [
        (("--dtype", "float16"), "--dtype has no effect"),
        (
            ("--device", "cpu", "--max-new-tokens", "4", "--temperature", "1"),
            "--device and --temperature have no effect",
        ),
        (("--quantization", "nf4", "--verbose"), "--verbose and --quantization have no effect"),
        (("--chat",), "--chat has no effect"),
        (("--cache-type-k", "q9"), "'q9'"),
        (("--flash-attn", "maybe"), "'maybe'"),
    ],
)
def test_options_that_llama_cpp_does_not_have_are_refused(
    path: Path, tmp_path: Path, run_moetool: RunMoetool, arguments: tuple[str, ...], words: str
) -> None:
    target = tmp_path / "t.parquet"
    done = run_moetool("route-trace", path, "--prompt", "text", "-o", target, *arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_options_about_gguf_files_are_refused_for_other_models(run_moetool: RunMoetool) -> None:
    done = run_moetool("route-trace", "demo", "--prompt", "text", "--ctx-size", "8")
    assert done.returncode == 2
    assert "--ctx-size is about GGUF files" in done.stderr
