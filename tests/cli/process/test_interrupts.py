"""A run that is broken off from outside ends in a sentence, and keeps what it has."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from moetool import read_trace
from moetool.trace.reading.reader import open_trace
from tests.cli.bad_input.refusals import assert_refused, find_leftovers
from tests.cli.process.started import (
    INTERRUPTED,
    finish,
    forked_moetool,
    started_moetool,
    wait_for,
)
from tests.command import Completed, RunMoetool
from tests.forked import Forks

# More than the system holds between two ends of a pipe.
MORE_THAN_A_PIPE_HOLDS = 1 << 20


@pytest.fixture(scope="module")
def interrupted(
    wordy_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Completed, Path]:
    """A long run that got a Ctrl-C once its first part was written, and its target."""
    folder = tmp_path_factory.mktemp("interrupted")
    prompts, target = folder / "prompts.jsonl", folder / "trace.parquet"
    rows = [
        {"text": "def add(a, b): return a + b " * 8, "domain": domain}
        for domain in ("python", "snake") * 1000
    ]
    prompts.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    with started_moetool("route-trace", wordy_model, "--prompts", prompts, "-o", target) as process:
        wait_for(folder / "trace.parquet.partial" / "part-00000-000.parquet", process)
        process.send_signal(signal.SIGINT)
        return finish(process), target


def test_a_ctrl_c_ends_in_a_sentence_that_says_where_the_rows_lie(
    interrupted: tuple[Completed, Path],
) -> None:
    completed, target = interrupted
    partial = target.with_name("trace.parquet.partial")
    note = completed.stderr.splitlines()[-1]

    assert_refused(completed, INTERRUPTED, target=None, note=note)
    assert re.fullmatch(rf".*: {re.escape(str(partial))} \([\d,]+ rows\)", note)
    assert find_leftovers(target) == [partial.name]


def test_what_an_interrupted_run_traced_can_be_read(interrupted: tuple[Completed, Path]) -> None:
    completed, target = interrupted
    partial = target.with_name("trace.parquet.partial")
    said = re.search(r"\(([\d,]+) rows\)", completed.stderr)
    assert said is not None

    frame = read_trace(partial)
    metadata = open_trace(partial).metadata

    assert len(frame) == int(said[1].replace(",", ""))
    assert metadata is not None
    assert not metadata.complete
    assert not frame.duplicated(["prompt_id", "stack", "layer", "position", "rank"]).any()


def test_what_an_interrupted_run_traced_can_be_analysed(
    interrupted: tuple[Completed, Path], run_moetool: RunMoetool
) -> None:
    _, target = interrupted

    completed = run_moetool(
        *("specialize", target.with_name("trace.parquet.partial")),
        *("--format", "json", "--permutations", "9"),
    )

    assert completed.returncode == 0, completed.stderr
    assert len(json.loads(completed.stdout)["layers"]) == 2


def test_a_ctrl_c_before_the_first_row_leaves_nothing(target: Path, forks: Forks) -> None:
    line = json.dumps({"text": "hello"}).encode() + b"\n"
    read_end, write_end = os.pipe()
    with (
        open(write_end, "wb") as stdin,
        forked_moetool(
            forks, "route-trace", "demo", "--prompts", "-", "-o", target, stdin=read_end
        ) as process,
    ):
        os.close(read_end)
        # Returns only once the command has begun to read.
        stdin.write(line * (MORE_THAN_A_PIPE_HOLDS // len(line)))
        stdin.flush()
        process.send_signal(signal.SIGINT)
        completed = finish(process)

    assert_refused(completed, INTERRUPTED, target=target)


def test_a_trace_read_only_in_part_ends_quietly(sample_prompts: Path, forks: Forks) -> None:
    """As with `moetool route-trace … | head -1`."""
    read_end, write_end = os.pipe()
    options = ("--limit", "64", "--batch-size", "1", "--format", "csv")
    with forked_moetool(
        forks, "route-trace", "demo", "--prompts", sample_prompts, *options, stdout=write_end
    ) as process:
        os.close(write_end)
        with open(read_end, "rb") as stdout:
            header = stdout.readline()
        completed = finish(process)

    assert header.startswith(b'"prompt_id","domain"')
    assert (completed.returncode, completed.stderr) == (0, "")


@pytest.mark.parametrize("num_experts", [2, 5000], ids=["short", "long"])
def test_a_report_that_nobody_reads_ends_quietly(num_experts: int, tmp_path: Path) -> None:
    """As with `moetool specialize … | head -0`."""
    trace = tmp_path / "trace.csv"
    rows = (f"{word},{word},0,0,{expert}" for word in "xy" for expert in range(num_experts))
    trace.write_text("\n".join(["prompt_id,domain,position,layer,expert", *rows]), "utf-8")
    read_end, write_end = os.pipe()
    os.close(read_end)
    arguments = ("specialize", trace, "--format", "csv", "--permutations", "9")
    with started_moetool(*arguments, stdout=write_end) as process:
        os.close(write_end)
        completed = finish(process)

    assert (completed.returncode, completed.stderr) == (0, "")
