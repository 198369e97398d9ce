"""Outputs that would replace what the command reads, or what is not a file: refused, and kept."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from moetool import read_trace
from moetool.trace.companions import sidecar_path
from moetool.trace.metadata import TraceMetadata
from moetool.trace.reading.prompt_sums import DomainCounter
from moetool.trace.writing.partial import partial_folder
from tests.cli.bad_input.refusals import Refusal, assert_refused
from tests.command import run_main
from tests.trace.examples import make_rows, write_trace

IS_INPUT = Refusal(2, error="' is an input of this command", hint="another")
NOT_REGULAR = Refusal(2, error="' is not a regular file", hint="- for stdout")


def contents_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_kept(folder: Path, *words: str | Path, refusal: Refusal = IS_INPUT) -> None:
    """Check that a command is refused, and that the folder is as it was."""
    before = contents_of(folder)
    assert_refused(run_main(*words, cwd=folder), refusal, target=None)
    assert contents_of(folder) == before


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.csv"
    path.write_text("text\nhello\n", encoding="utf-8")
    return path


@pytest.fixture
def model(demo: Path, tmp_path: Path) -> Path:
    return shutil.copytree(demo, tmp_path / "model")


TRACE_DEMO = ("route-trace", "demo", "--force")


def test_a_trace_never_replaces_its_prompts(prompts: Path, tmp_path: Path) -> None:
    linked, other = tmp_path / "linked.csv", tmp_path / "other.csv"
    linked.symlink_to(prompts)
    os.link(prompts, other)
    for target in (prompts, linked, other):
        assert_kept(tmp_path, *TRACE_DEMO, "--prompts", prompts, "-o", target)
    assert linked.is_symlink()


def test_a_trace_never_replaces_one_of_a_folder_of_prompts(prompts: Path) -> None:
    folder = prompts.parent
    assert_kept(folder, *TRACE_DEMO, "--prompts", folder, "-o", prompts)


@pytest.mark.parametrize(
    "name", ["prompts.csv", "model/config.json", "model/tokenizer.json", "map.json"]
)
def test_texts_never_replace_what_is_read(
    name: str, prompts: Path, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "map.json").write_text('{"": "cpu"}', encoding="utf-8")
    assert_kept(
        tmp_path,
        *("route-trace", model, "--prompts", prompts, "--max-new-tokens", "1", "--force"),
        *("--device-map", tmp_path / "map.json", "--save-text", tmp_path / name),
    )


@pytest.mark.parametrize(
    ("output", "texts"),
    [
        ("t.csv", "t.csv.meta.json"),
        ("t.csv", "t.probabilities.parquet"),
        ("t.csv", "t.csv.partial"),
        ("t.csv.partial.csv", "t.csv"),
        ("t.csv", "sub/../t.csv"),
    ],
)
def test_a_trace_and_its_texts_never_share_a_place(output: str, texts: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    words = (
        *(*TRACE_DEMO, "--prompt", "hello", "--max-new-tokens", "1"),
        *("-o", tmp_path / output, "--save-text", tmp_path / texts),
    )
    if output == "t.csv.partial.csv":
        # Two names that only begin alike.
        completed = run_main(*words)
        assert completed.returncode == 0, completed.stderr
        return
    refusal = Refusal(2, error="both be written to '", hint="two different files")
    assert_kept(tmp_path, *words, refusal=refusal)


def test_a_report_never_replaces_the_trace_it_is_made_from(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace.csv", make_rows())
    for target in (trace, sidecar_path(trace)):
        assert_kept(tmp_path, "specialize", trace, "--force", "-o", target)


def test_a_report_never_replaces_a_part_of_a_trace(tmp_path: Path) -> None:
    part = write_trace(tmp_path / "part.parquet", make_rows())
    options = ("--force", "--format", "json", "-o", part)
    assert_kept(tmp_path, "specialize", tmp_path, *options)


@pytest.mark.parametrize("command", ["inspect", "memory-estimate"])
def test_a_report_never_replaces_the_checkpoint_it_is_made_from(command: str, model: Path) -> None:
    config = model / "config.json"
    assert_kept(model, command, model, "--force", "-o", config)
    assert_kept(model, command, config, "--force", "-o", config)
    weights = model / "model.safetensors"
    assert_kept(model, command, model, "--force", "--format", "json", "-o", weights)


def test_an_estimate_never_replaces_its_trace(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace.csv", make_rows())
    assert_kept(tmp_path, "memory-estimate", "demo", "--trace", trace, "--force", "-o", trace)


def test_a_report_next_to_a_checkpoint_may_be_replaced(model: Path) -> None:
    report = model / "report.json"
    report.write_text("old", encoding="utf-8")
    completed = run_main("inspect", model, "--source", "headers", "--force", "-o", report)
    assert completed.returncode == 0, completed.stderr
    assert json.loads(report.read_text(encoding="utf-8"))["schema"] == "moetool.inspect/1"


COMMANDS: dict[str, Sequence[str]] = {
    "inspect": ("inspect", "demo"),
    "memory-estimate": ("memory-estimate", "demo"),
    "models": ("models",),
    "gpus": ("gpus",),
    "specialize": ("specialize", "trace.csv"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_report_goes_to_a_file_or_nowhere(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_trace(Path("trace.csv"), make_rows())
    os.mkfifo("pipe.json")
    Path("folder.json").mkdir()
    for place, refusal in {
        "/dev/null": NOT_REGULAR,
        "/dev/full": NOT_REGULAR,
        "pipe.json": NOT_REGULAR,
        "folder.json": Refusal(2, error="'folder.json' is a folder", hint="Name a file in it"),
        "missing/a.json": Refusal(2, error="'missing' is not a folder", hint="Create it"),
        "trace.csv/a.json": Refusal(2, error="'trace.csv' is not a folder"),
        f"{'a' * 300}.json": Refusal(2, error="File name too long"),
    }.items():
        words = (*COMMANDS[command], "--force", "--format", "json", "-o", place)
        assert_kept(tmp_path, *words, refusal=refusal)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_what_a_report_would_replace_is_seen_before_the_work(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    target.write_text("old", encoding="utf-8")
    exists = Refusal(2, error=f"'{target}' exists", hint="--force")
    assert_kept(tmp_path, "specialize", tmp_path / "missing.csv", "-o", target, refusal=exists)


@pytest.mark.parametrize("what", ["folder", "parts"])
def test_a_folder_that_is_removed_during_a_run_ends_it(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "folder" / "trace.csv"
    target.parent.mkdir()
    partial = partial_folder(target)
    add = DomainCounter.add

    def remove_and_add(counter: DomainCounter, rows: pa.Table) -> None:
        shutil.rmtree(target.parent if what == "folder" else partial)
        add(counter, rows)

    monkeypatch.setattr(DomainCounter, "add", remove_and_add)
    completed = run_main("route-trace", "demo", "--prompt", "hello", "-o", target, "-q")
    refusal = Refusal(2, error=f"'{partial}' was removed or changed during the run", hint="again")
    assert_refused(completed, refusal, target=target)


class Terminal(io.TextIOWrapper):
    """A stdout that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("is_asked", [True, False])
def test_on_a_terminal_the_summary_says_where_the_rows_are(is_asked: bool) -> None:
    shown = io.BytesIO()
    terminal = Terminal(shown, encoding="utf-8")
    asked = ("--format", "csv") if is_asked else ()
    completed = run_main("route-trace", "demo", "--prompt", "hello", *asked, stdout=terminal)
    assert completed.returncode == 0, completed.stderr
    num_rows = max(0, len(shown.getvalue().splitlines()) - 1)
    if is_asked:
        assert f"wrote {num_rows} rows to stdout" in completed.stderr
    else:
        assert num_rows == 0
        assert "no rows were written: add -o trace.parquet to keep them" in completed.stderr
    assert "demo: 1 prompt, " in completed.stderr


def test_the_folder_at_hand_is_an_input_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_trace(tmp_path / "part.parquet", make_rows())
    monkeypatch.chdir(tmp_path)
    options = ("--force", "--format", "csv", "-o", "part.parquet")
    assert_kept(tmp_path, "specialize", ".", *options)


def test_metadata_next_to_a_parquet_file_is_not_in_its_way(tmp_path: Path) -> None:
    """Parquet holds its own metadata."""
    other = tmp_path / "trace.parquet.meta.json"
    other.write_text("mine", encoding="utf-8")
    write_trace(tmp_path / "trace.parquet", make_rows(), replace_existing=True)
    assert other.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_trace_may_have_a_name_that_is_not_text(suffix: str, tmp_path: Path) -> None:
    target = tmp_path / os.fsdecode(b"caf\xe9" + suffix.encode())
    write_trace(target, make_rows(), metadata=TraceMetadata(complete=True, model=str(target)))
    assert read_trace(target).shape[0] == make_rows().num_rows
