"""`moetool route-trace --max-new-tokens` as users run it, on the demonstration checkpoint."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moetool import read_trace
from moetool.trace.metadata import TraceMetadata
from moetool.trace.reading.reader import open_trace
from moetool.wording import number_of
from tests.cli.bad_input.refusals import Attempt, Refusal, assert_refused
from tests.cli.conftest import TryAll
from tests.cli.process.started import INTERRUPTED, finish, forked_moetool, wait_until
from tests.command import Completed, RunMoetool
from tests.forked import Forks

NUM_NEW_TOKENS = 7
FIELDS = ["id", "domain", "prompt", "text", "num_new_tokens", "finish"]
PROMPTS = [
    {"id": "french", "domain": "prose", "text": "La marmite de cuivre pendait"},
    {"id": "code", "domain": "code", "text": "def add(a, b):\n    return a + b\n\ndef"},
    {"id": "word", "domain": "prose", "text": "Once"},
]


@dataclass(frozen=True)
class Written:
    """A run that wrote, and what it left."""

    folder: Path
    frame: pd.DataFrame
    metadata: TraceMetadata
    texts: list[dict[str, Any]]
    stderr: str


def read_texts(path: Path) -> list[dict[str, Any]]:
    lines = path.read_bytes().decode("utf-8").split("\n")
    assert lines.pop() == ""
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = [json.dumps(prompt, ensure_ascii=False) for prompt in PROMPTS]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write(run_moetool: RunMoetool, prompts: Path, folder: Path, *options: str) -> Written:
    trace, texts = folder / "trace.parquet", folder / "texts.jsonl"
    completed = run_moetool(
        *("route-trace", "demo", "--prompts", prompts, "-o", trace, "--save-text", texts),
        *("--max-new-tokens", str(NUM_NEW_TOKENS), *options),
    )
    assert (completed.returncode, completed.stdout) == (0, ""), completed.stderr
    metadata = open_trace(trace).metadata
    assert metadata is not None
    words = ["prompt_id", "domain", "phase", "token", "stack"]
    frame = read_trace(trace).astype(dict.fromkeys(words, "str"))
    return Written(folder, frame, metadata, read_texts(texts), completed.stderr)


@pytest.fixture(scope="module")
def greedy(
    run_moetool: RunMoetool, prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Written:
    """The likeliest tokens, all prompts in one batch."""
    return write(run_moetool, prompts, tmp_path_factory.mktemp("greedy"))


@pytest.fixture(scope="module")
def sampled(
    run_moetool: RunMoetool, prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> Written:
    """Sampled tokens, with every other option, in place of what lay there."""
    folder = tmp_path_factory.mktemp("sampled")
    for name in ("trace.parquet", "texts.jsonl"):
        (folder / name).write_text("old")
    # Only what looks like texts of a run is discarded.
    (folder / "texts.jsonl.partial").write_text('{"id": "old"}')
    return write(
        *(run_moetool, prompts, folder, "--force", "--temperature", "1.5", "--top-p", "0.9"),
        *("--seed", "11", "--cache", "static", "--layers", "1,4", "--batch-size", "2"),
        *("--probabilities", "-q"),
    )


@pytest.fixture(scope="module")
def expected(demo: Path) -> list[tuple[list[int], list[int]]]:
    """Each prompt's tokens and what transformers writes after it, one by one."""
    model: Any = AutoModelForCausalLM.from_pretrained(demo).eval()
    tokenizer = AutoTokenizer.from_pretrained(demo)
    pairs = []
    for prompt in PROMPTS:
        inputs = tokenizer(prompt["text"], return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=NUM_NEW_TOKENS, do_sample=False)
        given = inputs["input_ids"][0].tolist()
        pairs.append((given, output[0, len(given) :].tolist()))
    return pairs


def test_the_trace_holds_the_tokens_that_transformers_writes(
    greedy: Written, expected: list[tuple[list[int], list[int]]], demo: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo)
    tokens = greedy.frame.query("layer == 5 and rank == 1")
    for prompt, (given, new) in zip(PROMPTS, expected, strict=True):
        own = tokens[tokens["prompt_id"] == prompt["id"]]
        routed = [*given, *new[:-1]]
        assert own["token_id"].tolist() == routed
        assert own["token"].tolist() == tokenizer.convert_ids_to_tokens(routed)
        assert own["position"].tolist() == list(range(len(routed)))
        assert own["phase"].tolist() == ["prefill"] * len(given) + ["decode"] * (len(new) - 1)
        assert set(own["domain"]) == {prompt["domain"]}


def test_every_layer_routes_every_token(greedy: Written) -> None:
    per_token = greedy.frame.groupby(["prompt_id", "position"])
    assert (per_token.size() == 6 * 2).all()
    assert (per_token["layer"].nunique() == 6).all()


def test_the_texts_are_what_transformers_writes(
    greedy: Written, expected: list[tuple[list[int], list[int]]], demo: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo)
    assert [list(text) for text in greedy.texts] == [FIELDS] * len(PROMPTS)
    for text, prompt, (_, new) in zip(greedy.texts, PROMPTS, expected, strict=True):
        assert text["id"] == prompt["id"]
        assert text["domain"] == prompt["domain"]
        assert text["prompt"] == prompt["text"]
        assert text["text"] == tokenizer.decode(new, skip_special_tokens=True)
        assert text["num_new_tokens"] == len(new) == NUM_NEW_TOKENS
        assert text["finish"] == "length"


def test_the_metadata_says_what_was_written_and_how(greedy: Written, sampled: Written) -> None:
    for written in (greedy, sampled):
        metadata = written.metadata
        assert metadata.complete
        assert metadata.max_new_tokens == NUM_NEW_TOKENS
        assert metadata.num_new_tokens == sum(text["num_new_tokens"] for text in written.texts)
        num_tokens = len(written.frame[["prompt_id", "position"]].drop_duplicates())
        assert metadata.num_tokens == num_tokens
        assert metadata.num_decisions == num_tokens * len(metadata.layers)
    plain, other = greedy.metadata, sampled.metadata
    assert (plain.temperature, plain.top_p, plain.seed) == (None, None, None)
    assert (other.temperature, other.top_p, other.seed) == (1.5, 0.9, 11)
    assert (plain.cache, other.cache) == ("dynamic", "static")


def test_the_summary_says_what_was_written_and_where(greedy: Written, sampled: Written) -> None:
    num_new = NUM_NEW_TOKENS * len(PROMPTS)
    assert f"{num_new} tokens written, at most {NUM_NEW_TOKENS} per prompt" in greedy.stderr
    assert sampled.stderr == ""


def test_sampled_texts_are_those_of_the_traced_tokens(sampled: Written, demo: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo)
    decoded = sampled.frame.query("phase == 'decode' and layer == 4 and rank == 0")
    for text in sampled.texts:
        ids = decoded.loc[decoded["prompt_id"] == text["id"], "token_id"].tolist()
        assert len(ids) == text["num_new_tokens"] - 1
        # Except for a character that the last token completes.
        assert text["text"].startswith(str(tokenizer.decode(ids)).rstrip("\ufffd"))
    assert set(sampled.frame["layer"]) == {1, 4}


def test_sampling_writes_something_else(greedy: Written, sampled: Written) -> None:
    for plain, other in zip(greedy.texts, sampled.texts, strict=True):
        assert plain["prompt"] == other["prompt"]
        assert plain["text"] != other["text"]


def test_probabilities_are_there_for_written_tokens_too(sampled: Written) -> None:
    probabilities = pd.read_parquet(sampled.folder / "trace.probabilities.parquet")
    key = ["prompt_id", "stack", "layer", "position"]
    first = sampled.frame[sampled.frame["rank"] == 0]
    both = first.merge(probabilities.astype({"prompt_id": "str", "stack": "str"}), on=key)
    assert len(both) == len(first) == len(probabilities)
    assert [values.argmax() for values in both["probabilities"]] == both["expert"].tolist()


def test_a_run_leaves_its_outputs_and_nothing_else(greedy: Written, sampled: Written) -> None:
    assert names_in(greedy.folder) == ["texts.jsonl", "trace.parquet"]
    assert names_in(sampled.folder) == [
        "texts.jsonl",
        "trace.parquet",
        "trace.probabilities.parquet",
    ]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_that_is_interrupted_keeps_its_texts_beside_its_rows(
    tmp_path: Path, forks: Forks
) -> None:
    prompts, target, partial_texts = (
        tmp_path / name for name in ("prompts.jsonl", "trace.parquet", "texts.jsonl.partial")
    )
    rows = [{"id": str(number), "text": "def add(a, b):"} for number in range(2000)]
    prompts.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    with forked_moetool(
        forks,
        *("route-trace", "demo", "--prompts", prompts, "-o", target, "--batch-size", "1", "-q"),
        *("--max-new-tokens", "2", "--save-text", tmp_path / "texts.jsonl"),
    ) as process:
        wait_until(lambda: bool(size_of(partial_texts)), process, f"a text in {partial_texts}")
        process.send_signal(signal.SIGINT)
        completed = finish(process)

    *others, rows_note, texts_note = completed.stderr.splitlines(keepends=True)
    said = Completed(completed.args, completed.returncode, completed.stdout, "".join(others))
    assert_refused(said, INTERRUPTED, target=None)
    assert re.match(r"rows traced so far: .*/trace.parquet.partial \(", rows_note)
    kept = read_texts(partial_texts)
    num_texts = number_of(len(kept), "text")
    assert texts_note == f"what was written until then: {partial_texts} ({num_texts})\n"
    assert [text["id"] for text in kept] == [str(number) for number in range(len(kept))]
    traced = read_trace(tmp_path / "trace.parquet.partial")
    assert {text["id"] for text in kept} <= set(traced["prompt_id"])
    assert set(traced["phase"]) == {"prefill", "decode"}
    assert names_in(tmp_path) == ["prompts.jsonl", "texts.jsonl.partial", "trace.parquet.partial"]


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


HELLO = ("--prompt", "hello")
WRITE = (*HELLO, "--max-new-tokens", "4")

# By what is wrong with them: options, and what is said of them. `{}` is a folder with old texts.
BAD_OPTIONS: dict[str, tuple[tuple[str, ...], Refusal]] = {
    "temperature 0": (
        (*WRITE, "--temperature", "0"),
        Refusal(2, error="The temperature can't be 0.0", hint="most likely token"),
    ),
    "more than all probability": (
        (*WRITE, "--top-p", "1.5"),
        Refusal(2, error="The top-p can't be 1.5", hint="up to 1"),
    ),
    "temperature for nothing": (
        (*HELLO, "--temperature", "1"),
        Refusal(2, error="Temperature has no effect", hint="--max-new-tokens"),
    ),
    "texts of nothing": (
        (*HELLO, "--save-text", "{}/new.jsonl"),
        Refusal(2, error="Saving texts has no effect", hint="--max-new-tokens"),
    ),
    "texts that exist": (
        (*WRITE, "--save-text", "{}/old.jsonl"),
        Refusal(2, error="'{}/old.jsonl' exists", hint="--force"),
    ),
    "a text beyond the context": (
        (*HELLO, "--max-new-tokens", "511", "--save-text", "{}/new.jsonl"),
        Refusal(3, error="511 new ones; the model's context holds 512", hint="fewer new tokens"),
    ),
}
OLD_TEXTS = ("old.jsonl",)


@pytest.fixture(scope="module")
def old_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    for name in OLD_TEXTS:
        (folder / name).write_text("old")
    return folder


@pytest.fixture(scope="module")
def attempts(try_all: TryAll, old_texts: Path) -> Mapping[str, Attempt]:
    """A try at tracing with every one of the options."""
    return try_all(
        {
            what: (
                "route-trace",
                "demo",
                *(option.replace("{}", str(old_texts)) for option in options),
            )
            for what, (options, _) in BAD_OPTIONS.items()
        }
    )


@pytest.mark.parametrize("what", BAD_OPTIONS)
def test_options_that_cannot_be_carried_out_are_refused(
    what: str, attempts: Mapping[str, Attempt], old_texts: Path
) -> None:
    attempt = attempts[what]

    assert_refused(attempt.completed, BAD_OPTIONS[what][1].about(old_texts), target=attempt.target)
    assert names_in(old_texts) == sorted(OLD_TEXTS)
    assert {(old_texts / name).read_text() for name in OLD_TEXTS} == {"old"}


def test_a_trace_and_texts_of_one_name_are_refused(run_moetool: RunMoetool, tmp_path: Path) -> None:
    target = tmp_path / "same.csv"

    completed = run_moetool(
        *("route-trace", "demo", *WRITE, "--force", "-o", target, "--save-text", target)
    )

    expected = Refusal(2, error=f"both be written to '{target}'", hint="two different files")
    assert_refused(completed, expected, target=target)
