"""`trace_model` records what the command records, refuses what it refuses, and keeps or writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import moetool
from moetool import Trace, read_trace, trace_model
from moetool.analysis.routing_summary import summarize_routing
from moetool.errors import DenseModelError, InputError, UntraceableError, UsageError
from moetool.trace.companions import probabilities_path
from moetool.trace.reading.counts import count_experts
from moetool.trace.reading.reader import open_trace
from tests.cli.conftest import VOCABULARY_OF_DEMO
from tests.command import RunMoetool
from tests.families.tiny.models import available, build_family
from tests.tiny_models import build_model

TEXTS = ["The cat sat on the mat.", "Der Hund schläft."]
PROMPTS = pd.DataFrame({"id": ["a", "b"], "domain": ["english", "german"], "text": TEXTS})


@pytest.fixture(scope="module")
def pair(demo: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(demo)
    return model.eval(), AutoTokenizer.from_pretrained(demo)


@pytest.fixture(scope="module")
def trace(pair: tuple[Any, Any]) -> Trace:
    return trace_model(pair, PROMPTS)


@pytest.fixture(scope="module")
def by_command(run_moetool: RunMoetool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trace that the command writes of the same prompts."""
    folder = tmp_path_factory.mktemp("command")
    PROMPTS.to_json(folder / "prompts.jsonl", orient="records", lines=True)
    completed = run_moetool(
        "route-trace", "demo", "--prompts", "prompts.jsonl", "-o", "trace.parquet", cwd=folder
    )
    assert completed.returncode == 0, completed.stderr
    return folder / "trace.parquet"


def test_the_rows_and_the_metadata_are_those_of_the_command(trace: Trace, by_command: Path) -> None:
    frame, expected = trace.to_frame(), read_trace(by_command)
    pd.testing.assert_frame_equal(frame, expected)
    named = trace_model("demo", PROMPTS)
    pd.testing.assert_frame_equal(named.to_frame(), expected)
    assert named.to_frame().attrs == expected.attrs
    # A model in memory has another name, and was not loaded by a class that is known.
    differing = {
        name
        for name, value in expected.attrs["moetool"].items()
        if frame.attrs["moetool"][name] != value
    }
    assert differing == {"model", "auto_class"}
    assert named.to_dict() == expected.attrs["moetool"] == named.metadata.to_dict()
    assert trace.num_rows == len(frame)
    counts = named.metadata.model_counts
    inspected = moetool.inspect_model("demo")
    assert inspected.parameters is not None
    assert (counts.total_parameters, counts.active_parameters) == (
        inspected.parameters.total,
        inspected.parameters.active_params,
    )
    assert inspected.flops is not None
    assert (counts.flops_per_token, counts.dense_flops_per_token, counts.flops_prompt_tokens) == (
        inspected.flops.prefill,
        inspected.flops.dense_prefill,
        inspected.flops.num_prompt_tokens,
    )


@pytest.mark.parametrize("name", ["trace.parquet", "trace.csv"])
def test_a_saved_trace_reads_back_as_it_was(name: str, trace: Trace, tmp_path: Path) -> None:
    path = trace.save(tmp_path / name)
    frame = read_trace(path)
    # A CSV has no words that no row has.
    is_parquet = path.suffix == ".parquet"
    pd.testing.assert_frame_equal(frame, trace.to_frame(), check_categorical=is_parquet)
    assert frame.attrs == trace.to_frame().attrs
    with pytest.raises(UsageError, match="exists"):
        trace.save(path)
    trace.save(path, overwrite=True)
    pd.testing.assert_frame_equal(read_trace(path), frame)


def test_rows_go_to_a_file_that_is_named(pair: tuple[Any, Any], tmp_path: Path) -> None:
    path = tmp_path / "trace.parquet"
    stored = trace_model(pair, PROMPTS, output=path)
    assert stored.path == path
    assert stored.tables == ()
    pd.testing.assert_frame_equal(stored.to_frame(), read_trace(path))
    assert stored.to_frame().attrs == read_trace(path).attrs
    with pytest.raises(UsageError, match="not in memory"):
        stored.save(tmp_path / "other.parquet")
    with pytest.raises(UsageError, match="exists"):
        trace_model(pair, PROMPTS, output=path)
    again = trace_model(pair, PROMPTS, output=str(path), overwrite=True)
    assert again.num_rows == stored.num_rows


def test_probabilities_are_kept_and_saved(pair: tuple[Any, Any], tmp_path: Path) -> None:
    trace = trace_model(pair, PROMPTS, probabilities=True, batch_size=1)
    path = trace.save(tmp_path / "trace.parquet")
    saved = pd.read_parquet(probabilities_path(path))
    assert len(saved) == trace.metadata.num_decisions
    direct = tmp_path / "direct.parquet"
    trace_model(pair, PROMPTS, probabilities=True, batch_size=1, output=direct)
    pd.testing.assert_frame_equal(saved, pd.read_parquet(probabilities_path(direct)))


def test_the_summary_is_that_of_the_rows(trace: Trace, by_command: Path) -> None:
    counts = count_experts(open_trace(by_command), by="domain")
    assert trace.summary.num_idle_experts == summarize_routing(counts).num_idle_experts
    assert trace.summary.domain_tokens == summarize_routing(counts).domain_tokens
    assert trace.summary is trace.summary


def test_a_repr_is_a_headline(trace: Trace) -> None:
    words = "2 prompts, 19 tokens, 228 rows; top-2 of 8 experts in 6 layers"
    assert repr(trace) == f"<Trace of {trace.metadata.model}: {words}>"
    assert len(repr(trace.metadata)) < 2_000
    assert len(repr(trace.counts)) < 1_000
    least, most = trace.summary.least_even, trace.summary.most_even
    assert least is not None
    assert most is not None
    assert repr(trace.summary) == (
        f"<RoutingSummary: load evenness {least.entropy:.3f} to {most.entropy:.3f}, "
        f"{trace.summary.num_idle_experts} idle experts, 2 domains>"
    )
    assert trace.summary.to_dict()["least_even"]["layer"] == least.layer
    one = trace_model("demo", ["Hello"], layers=[3])
    assert "1 prompt, 4 tokens, 8 rows; top-2 of 8 experts in 1 layer>" in repr(one)


@pytest.mark.parametrize(
    "prompts",
    [
        TEXTS,
        tuple(TEXTS),
        pd.Series(TEXTS),
        (text for text in TEXTS),
        [{"text": text} for text in TEXTS],
        PROMPTS[["text"]],
        PROMPTS[["text"]].assign(domain=None, id=float("nan")),
    ],
    ids=["list", "tuple", "Series", "generator", "dicts", "frame", "frame with gaps"],
)
def test_texts_are_taken_in_every_form(prompts: Any, pair: tuple[Any, Any]) -> None:
    frame = trace_model(pair, prompts).to_frame()
    assert frame["prompt_id"].unique().tolist() == ["1", "2"]
    assert frame["domain"].unique().tolist() == ["(none)"]


def test_columns_can_have_other_names_and_ids_be_numbers(pair: tuple[Any, Any]) -> None:
    prompts = PROMPTS.rename(columns={"text": "question", "domain": "subject"}).assign(id=[7, 9])
    frame = trace_model(pair, prompts, text_field="question", domain_field="subject").to_frame()
    assert frame["prompt_id"].unique().tolist() == ["7", "9"]
    assert frame["domain"].unique().tolist() == ["english", "german"]


def test_files_of_prompts_are_read_and_limited(pair: tuple[Any, Any], sample_prompts: Path) -> None:
    trace = trace_model(pair, sample_prompts / "german.jsonl", limit=3)
    assert trace.metadata.num_prompts == 3
    assert set(trace.to_frame()["domain"]) == {"german"}


@pytest.mark.parametrize(
    ("prompts", "message", "hint"),
    [
        ("Hello", "No prompts at 'Hello': no such file or folder.", "give texts in a list"),
        ([], "There are no prompts in the given prompts.", "at least one"),
        (["a", " "], "prompts:2: empty prompt.", "Remove it"),
        (["a", 3], "prompts:2: not a text but int.", "Give a list of texts"),
        ([{"text": "a"}, {"body": "b"}], "prompts:2: expected a 'text', found body.", "body"),
        (PROMPTS[["domain"]], "prompts:1: expected a 'text', found domain.", "format"),
    ],
)
def test_prompts_that_cannot_be_used_are_refused(
    prompts: Any, message: str, hint: str, pair: tuple[Any, Any]
) -> None:
    with pytest.raises(InputError) as caught:
        trace_model(pair, prompts)
    assert caught.value.message == message
    assert hint in caught.value.hint


@pytest.mark.parametrize("prompts", [3, None, b"text", {"text": "a"}])
def test_what_is_not_prompts_is_refused(prompts: Any, pair: tuple[Any, Any]) -> None:
    with pytest.raises(UsageError, match="Prompts can't be of type"):
        trace_model(pair, prompts)


def test_a_model_in_memory_needs_its_tokenizer_and_no_options_of_loading(
    pair: tuple[Any, Any],
) -> None:
    model, tokenizer = pair
    wrongs: list[Any] = [model, (model,), (model, "demo"), (tokenizer, model), ("demo", tokenizer)]
    # Wrapped models, such as those of PEFT, are modules and not of transformers' class.
    wrongs.append(torch.nn.Linear(1, 1))
    for wrong in wrongs:
        with pytest.raises(UsageError, match="traced with its tokenizer"):
            trace_model(wrong, TEXTS)
    with pytest.raises(UsageError, match="can't be of type int"):
        trace_model(3, TEXTS)  # type: ignore[arg-type]
    for option in ({"dtype": "bfloat16"}, {"device": "cpu"}, {"revision": "main"}):
        with pytest.raises(UsageError, match=f"{next(iter(option))} is an option for loading"):
            trace_model(pair, TEXTS, **option)  # type: ignore[arg-type]
    model.train()
    try:
        with pytest.raises(UsageError, match="training mode"):
            trace_model(pair, TEXTS)
    finally:
        model.eval()


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory, pair: tuple[Any, Any]) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    build_model("llama").save_pretrained(folder)
    pair[1].save_pretrained(folder)
    return folder


# Arguments of the command after the model, and those of the function.
REFUSED: list[tuple[list[str], dict[str, Any]]] = [
    (["--temperature", "1"], {"temperature": 1.0}),
    (["--layers", "99"], {"layers": [99]}),
    (["--max-prompt-tokens", "9999"], {"max_prompt_tokens": 9999}),
    (["--max-new-tokens", "600"], {"max_new_tokens": 600}),
    (["--chat"], {"chat": True}),
    (["-o", "trace.txt"], {"output": "trace.txt"}),
    (["--save-text", "texts.jsonl"], {"save_text": "texts.jsonl"}),
    (["--device", "cuda:9"], {"device": "cuda:9"}),
    (["--revision", "main"], {"revision": "main"}),
    (["--device", "cpu", "--device-map", "auto"], {"device": "cpu", "device_map": "auto"}),
]


@pytest.mark.parametrize(("words", "options"), REFUSED, ids=[words[0] for words, _ in REFUSED])
def test_the_function_refuses_what_the_command_refuses_with_the_same_words(
    words: list[str],
    options: dict[str, Any],
    run_moetool: RunMoetool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("Hello\n")
    completed = run_moetool("route-trace", "demo", "--prompts", "prompts.txt", *words, cwd=tmp_path)
    with pytest.raises(moetool.MoetoolError) as caught:
        trace_model("demo", "prompts.txt", **options)
    assert completed.returncode == caught.value.exit_code
    said = completed.stderr.replace(f"{tmp_path}/", "")
    assert caught.value.message.replace(f"{tmp_path}/", "") in said
    assert caught.value.hint in said


def test_a_dense_model_is_refused_on_disk_and_in_memory(dense: Path, pair: tuple[Any, Any]) -> None:
    with pytest.raises(DenseModelError):
        trace_model(dense, TEXTS)
    with pytest.raises(DenseModelError):
        trace_model((build_model("llama").eval(), pair[1]), TEXTS)


@pytest.mark.parametrize("name", ["https://huggingface.co/a/b", "./demo"])
def test_a_name_is_resolved_as_it_was_given(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | Path] = []

    def refuse(given: str | Path) -> None:
        asked.append(given)
        raise InputError("Nothing there.", hint="Look elsewhere.")

    monkeypatch.setattr("moetool.library.given_models.resolve_model", refuse)
    for model in (name, Path("folder")):
        with pytest.raises(InputError, match="Nothing there"):
            trace_model(model, TEXTS)
    assert asked == [name, Path("folder")]


def test_a_refused_run_leaves_no_file(pair: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        trace_model(pair, TEXTS, layers=[99], output=tmp_path / "trace.parquet")
    assert list(tmp_path.iterdir()) == []


def test_continuations_are_traced_and_their_texts_saved(
    pair: tuple[Any, Any], tmp_path: Path
) -> None:
    trace = trace_model(pair, TEXTS, max_new_tokens=4, save_text=tmp_path / "texts.jsonl")
    assert set(trace.to_frame()["phase"]) == {"prefill", "decode"}
    lines = (tmp_path / "texts.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == TEXTS


# In transformers 5.17 Doge with experts fails in its own forward.
INEXACT = next(family for family in ("doge", "nllb-moe") if family in available())


def test_what_is_not_exact_is_a_warning_at_the_callers_line(pair: tuple[Any, Any]) -> None:
    inexact = (build_family(INEXACT, vocab_size=VOCABULARY_OF_DEMO).eval(), pair[1])
    with pytest.raises(UntraceableError):
        trace_model(inexact, TEXTS)
    with pytest.warns(UserWarning, match="is not traced exactly: ") as caught:
        trace = trace_model(inexact, TEXTS, allow_inexact=True)
    assert [warning.filename for warning in caught] == [__file__]
    assert not trace.metadata.exact
    assert trace.metadata.total_parameters == inexact[0].num_parameters()
    assert "not exact" in trace.to_frame().attrs["notes"][0]


def test_a_trace_says_where_the_time_of_its_run_went(pair: tuple[Any, Any]) -> None:
    trace = trace_model(pair, TEXTS)
    timings = trace.timings
    assert timings is not None
    assert timings.num_tokens == trace.metadata.num_tokens
    for stage in ("tokenize", "forward", "build"):
        assert 0 < timings.stages_s[stage] <= timings.elapsed_s
    assert timings.stages_s["load"] == 0
    assert sum(timings.stages_s.values()) >= timings.elapsed_s - 1e-6


def test_progress_is_passed_on(pair: tuple[Any, Any]) -> None:
    said: list[str] = []
    trace_model(pair, TEXTS, batch_size=1, on_progress=said.append)
    assert said == ["10 of 19 tokens", "19 of 19 tokens"]
