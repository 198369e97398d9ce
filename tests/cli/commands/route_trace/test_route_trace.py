"""`moetool route-trace` as users run it, on the demonstration checkpoint."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moetool import RoutingRecorder, read_trace
from moetool.trace.reading.reader import open_trace
from tests.cli.process.started import finish, forked_moetool
from tests.command import REPOSITORY, RunMoetool
from tests.forked import Forks

COLUMNS = [
    "prompt_id",
    "domain",
    "phase",
    "position",
    "token_id",
    "token",
    "stack",
    "layer",
    "rank",
    "expert",
    "weight",
]


@pytest.fixture(scope="module")
def few_prompts(tmp_path_factory: pytest.TempPathFactory, sample_prompts: Path) -> Path:
    """Three prompts of each domain."""
    path = tmp_path_factory.mktemp("few") / "prompts.jsonl"
    lines = [
        line
        for file in sorted(sample_prompts.glob("*.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()[:3]
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def few_trace(run_moetool: RunMoetool, few_prompts: Path) -> pd.DataFrame:
    path = few_prompts.with_name("trace.parquet")
    completed = run_moetool("route-trace", "demo", "--prompts", few_prompts, "-o", path, "-q")
    assert (completed.returncode, completed.stdout, completed.stderr) == (0, "", "")
    return read_trace(path)


def as_plain(frame: pd.DataFrame) -> pd.DataFrame:
    words = ["prompt_id", "domain", "phase", "token", "stack"]
    return frame.astype(dict.fromkeys(words, "str")).reset_index(drop=True)


def test_the_whole_trace_passes_its_self_checks(demo_trace: Path, sample_prompts: Path) -> None:
    frame = read_trace(demo_trace)
    metadata = open_trace(demo_trace).metadata
    assert metadata is not None
    assert list(frame.columns) == COLUMNS
    assert metadata.complete
    assert metadata.exact
    assert metadata.model_type == "mixtral"
    assert metadata.dtype == "float32"
    assert [layer.layer for layer in metadata.layers] == list(range(6))
    assert {(layer.num_experts, layer.top_k) for layer in metadata.layers} == {(8, 2)}
    num_prompts = sum(
        len(file.read_text(encoding="utf-8").splitlines())
        for file in sample_prompts.glob("*.jsonl")
    )
    assert metadata.num_prompts == frame["prompt_id"].nunique() == num_prompts
    assert len(frame) == metadata.num_tokens * 6 * 2 == metadata.num_decisions * 2
    key = ["prompt_id", "stack", "layer", "position"]
    assert not frame.duplicated([*key, "rank"]).any()
    assert not frame.duplicated([*key, "expert"]).any()
    assert frame["expert"].between(0, 7).all()
    assert frame.groupby("layer")["expert"].nunique().eq(8).all()
    weights = frame["weight"].to_numpy().reshape(-1, 2)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)  # Mixtral normalizes
    assert (weights[:, 0] >= weights[:, 1]).all()


def test_rows_stand_in_the_order_of_the_prompts_and_of_the_key(demo_trace: Path) -> None:
    frame = as_plain(read_trace(demo_trace))
    order = frame["prompt_id"].drop_duplicates()
    assert list(order) == sorted(order)  # the sample files' names and ids ascend
    ordered = frame.sort_values(["prompt_id", "stack", "layer", "position", "rank"])
    assert ordered.index.is_monotonic_increasing


def test_the_rows_are_what_the_recorder_sees_prompt_by_prompt(
    few_trace: pd.DataFrame, few_prompts: Path, demo: Path
) -> None:
    """An independent path: no batches, no pads, no files; the plain tokenizer and recorder."""
    model = AutoModelForCausalLM.from_pretrained(demo).eval()
    tokenizer = AutoTokenizer.from_pretrained(demo)
    frames = []
    for line in few_prompts.read_text(encoding="utf-8").splitlines():
        prompt = json.loads(line)
        inputs = tokenizer(prompt["text"], return_tensors="pt")
        with RoutingRecorder(model) as recorder, torch.inference_mode():
            model(**inputs)
        ids = inputs["input_ids"][0]
        frame = recorder.to_frame().assign(prompt_id=prompt["id"], domain=prompt["domain"])
        frame["token_id"] = ids.numpy()[frame["position"]]
        frames.append(frame)
    expected = pd.concat(frames, ignore_index=True)
    traced = as_plain(few_trace)
    exact = ["prompt_id", "domain", "position", "token_id", "stack", "layer", "rank", "expert"]
    pd.testing.assert_frame_equal(traced[exact], expected[exact], check_dtype=False)
    np.testing.assert_allclose(traced["weight"], expected["weight"], rtol=1e-4, atol=1e-6)
    pieces = tokenizer.convert_ids_to_tokens(traced["token_id"].tolist())
    assert traced["token"].tolist() == pieces


@pytest.mark.parametrize(
    "limits",
    [("--batch-size", "1"), ("--batch-size", "50"), ("--max-batch-tokens", "300")],
    ids=" ".join,
)
def test_the_size_of_batches_leaves_no_mark(
    run_moetool: RunMoetool,
    few_prompts: Path,
    few_trace: pd.DataFrame,
    tmp_path: Path,
    limits: tuple[str, ...],
) -> None:
    path = tmp_path / "trace.parquet"
    completed = run_moetool(
        *("route-trace", "demo", "--prompts", few_prompts, "-o", path, "-q"),
        *limits,
    )
    assert completed.returncode == 0, completed.stderr
    traced = read_trace(path)
    kept = traced.attrs["moetool"]
    expected: dict[tuple[str, ...], tuple[int | None, int | None]] = {
        ("--batch-size", "1"): (1, None),
        ("--batch-size", "50"): (50, None),
        ("--max-batch-tokens", "300"): (None, 300),
    }
    assert (kept["batch_size"], kept["max_batch_tokens"]) == expected[limits]
    frame = as_plain(traced)
    without = [name for name in COLUMNS if name != "weight"]
    pd.testing.assert_frame_equal(frame[without], as_plain(few_trace)[without])
    np.testing.assert_allclose(frame["weight"], few_trace["weight"], rtol=1e-4, atol=1e-6)


def test_the_last_line_says_where_the_time_went(run_moetool: RunMoetool) -> None:
    completed = run_moetool("route-trace", "demo", "--prompt", "Hello there", "-v")
    line = (
        r"time: tokenize S, load S, forward S, copy S, build S, write S, other S; "
        r"forward passes at [\d,]+ tokens/s\n"
    ).replace("S", r"\d+\.\d s \(\d+%\)")
    assert re.fullmatch(line, completed.stderr.splitlines(keepends=True)[-1])


def test_csv_in_a_pipe_is_read_by_pandas_as_the_readme_says(
    few_prompts: Path, few_trace: pd.DataFrame, forks: Forks
) -> None:
    code = (
        "import sys, pandas as pd; d = pd.read_csv(sys.stdin, keep_default_na=False);"
        " print(d.groupby(['domain','layer','expert']).size().to_json())"
    )
    command = ("route-trace", "demo", "--prompts", few_prompts, "--format", "csv")
    read_end, write_end = os.pipe()
    with (
        forked_moetool(forks, *command, stdout=write_end) as process,
        open(read_end, "rb") as stdin,
    ):
        os.close(write_end)
        reader = subprocess.run(
            [sys.executable, "-c", code], stdin=stdin, capture_output=True, check=False, text=True
        )
        completed = finish(process)
    assert completed.returncode == 0, completed.stderr
    assert reader.returncode == 0, reader.stderr
    expected = few_trace.groupby(["domain", "layer", "expert"], observed=True).size()
    assert json.loads(reader.stdout) == json.loads(expected.to_json())


def test_a_csv_file_has_its_metadata_beside_it(
    run_moetool: RunMoetool, few_prompts: Path, few_trace: pd.DataFrame, tmp_path: Path
) -> None:
    path = tmp_path / "trace.csv"
    completed = run_moetool("route-trace", "demo", "--prompts", few_prompts, "-o", path)
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout == ""
    metadata = json.loads((tmp_path / "trace.csv.meta.json").read_text(encoding="utf-8"))
    assert (metadata["schema"], metadata["complete"]) == ("moetool.trace/1", True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["trace.csv", "trace.csv.meta.json"]
    frame = pd.read_csv(path, keep_default_na=False)
    assert list(frame.columns) == COLUMNS
    assert len(frame) == len(few_trace)


def test_probabilities_are_written_beside_and_explain_the_weights(
    run_moetool: RunMoetool, few_prompts: Path, tmp_path: Path
) -> None:
    path = tmp_path / "trace.parquet"
    completed = run_moetool(
        "route-trace", "demo", "--prompts", few_prompts, "-o", path, "--probabilities", "-q"
    )
    assert completed.returncode == 0, completed.stderr
    probabilities = pq.read_table(tmp_path / "trace.probabilities.parquet").to_pandas()
    frame = read_trace(path)
    metadata = open_trace(path).metadata
    assert metadata is not None
    assert metadata.score_function == "softmax"
    assert len(probabilities) == metadata.num_decisions
    key = ["prompt_id", "stack", "layer", "position"]
    first = frame[frame["rank"] == 0].merge(probabilities, on=key, validate="one_to_one")
    second = frame[frame["rank"] == 1].merge(probabilities, on=key, validate="one_to_one")
    full = np.array(first["probabilities"].tolist(), dtype=float)
    np.testing.assert_allclose(full.sum(axis=1), 1, atol=4e-3)
    rows = np.arange(len(full))
    top, other = full[rows, first["expert"]], full[rows, second["expert"]]
    assert (top == full.max(axis=1)).all()
    np.testing.assert_allclose(top / (top + other), first["weight"], atol=2e-3)


def test_layers_limit_and_cuts_do_what_they_say(
    run_moetool: RunMoetool, few_prompts: Path, few_trace: pd.DataFrame, tmp_path: Path
) -> None:
    path = tmp_path / "trace.parquet"
    completed = run_moetool(
        *("route-trace", "demo", "--prompts", few_prompts, "-o", path),
        *("--layers", "0,2-3", "--limit", "5", "--max-prompt-tokens", "20"),
    )
    assert completed.returncode == 0, completed.stderr
    assert "5 prompts were cut after 20 tokens" in completed.stderr
    frame = as_plain(read_trace(path))
    whole = as_plain(few_trace)
    first = whole["prompt_id"].drop_duplicates().head(5)
    kept = whole[
        whole["prompt_id"].isin(first) & whole["layer"].isin([0, 2, 3]) & (whole["position"] < 20)
    ].reset_index(drop=True)
    without = [name for name in COLUMNS if name != "weight"]
    pd.testing.assert_frame_equal(frame[without], kept[without])


def test_special_tokens_can_be_left_out(run_moetool: RunMoetool) -> None:
    with_bos = run_moetool("route-trace", "demo", "--prompt", "Hello there", "-q")
    without = run_moetool(
        "route-trace", "demo", "--prompt", "Hello there", "-q", "--no-special-tokens"
    )
    assert '"<s>"' in with_bos.stdout
    assert '"<s>"' not in without.stdout
    assert without.stdout.count("\n") == with_bos.stdout.count("\n") - 6 * 2


def test_prompts_come_through_stdin(run_moetool: RunMoetool) -> None:
    completed = run_moetool(
        "route-trace", "demo", "--prompts", "-", "-q", stdin='{"text": "Hello", "domain": "x"}\n'
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.splitlines()[1].startswith('"1","x","prefill",0,1,"<s>","decoder",0,0,')


def test_chat_uses_the_tokenizers_template(
    run_moetool: RunMoetool, demo: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "chatty"
    shutil.copytree(demo, checkpoint)
    template = "{% for m in messages %}<s>[{{ m.content }}]{% endfor %}"
    (checkpoint / "chat_template.jinja").write_text(template, encoding="utf-8")
    completed = run_moetool("route-trace", checkpoint, "--prompt", "Hi", "--chat", "-q")
    assert completed.returncode == 0, completed.stderr
    lines = completed.stdout.splitlines()[1:]
    tokens = [line.split(",")[5] for line in lines if ',"decoder",0,0,' in line]
    assert tokens[0] == '"<s>"'
    assert tokens[1] == '"["'
    assert tokens[-1] == '"]"'


def test_force_replaces_an_existing_trace(run_moetool: RunMoetool, tmp_path: Path) -> None:
    path = tmp_path / "trace.parquet"
    path.write_text("old")
    arguments = ("route-trace", "demo", "--prompt", "Hello", "-o", path, "-q")
    assert run_moetool(*arguments).returncode == 2
    assert path.read_text() == "old"
    assert run_moetool(*arguments, "--force").returncode == 0
    assert len(read_trace(path)) > 0


def test_the_module_and_the_command_are_the_same(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("moetool")
    arguments = ["models", "--format", "csv"]
    outputs = [
        subprocess.run([*command, *arguments], capture_output=True, check=True, cwd=tmp_path).stdout
        for command in ([str(script)], [sys.executable, "-m", "moetool"])
    ]
    assert outputs[0] == outputs[1] != b""


def test_the_sample_prompts_are_not_from_the_training_script() -> None:
    scripts = (REPOSITORY / "tools" / "train_demo").glob("*.py")
    script = "".join(file.read_text(encoding="utf-8") for file in scripts)
    assert "arithmetic" in script
    for file in (REPOSITORY / "sample_prompts").glob("*.jsonl"):
        for line in file.read_text(encoding="utf-8").splitlines():
            assert json.loads(line)["text"][:40] not in script
