"""Two runs to one target: the second is refused while the first is alive, and only then."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from moetool.trace.reading.reader import open_trace, read_trace
from tests.cli.bad_input.refusals import Refusal, assert_refused
from tests.cli.process.started import INTERRUPTED, finish, forked_moetool, wait_for
from tests.command import Completed, run_main
from tests.forked import Forks


@dataclass(frozen=True)
class Rivals:
    """A run that was terminated after its first part, and those that wanted its target meanwhile.

    Attributes:
        target: Of all of them.
        pid: Of the first.
        first: As it ended.
        meanwhile: The other runs, without --force and with it.
        parts: What the first left.
    """

    target: Path
    pid: int
    first: Completed
    meanwhile: list[Completed]
    parts: Path


def trace_to(target: Path, *options: str) -> Completed:
    return run_main("route-trace", "demo", "--prompt", "hello", "-q", "-o", target, *options)


@pytest.fixture(scope="module")
def rivals(
    wordy_model: Path, forks: Forks, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rivals]:
    folder = tmp_path_factory.mktemp("rivals")
    prompts, target = folder / "prompts.jsonl", folder / "trace.parquet"
    row = json.dumps({"text": "def add(a, b): return a + b " * 8})
    prompts.write_text(f"{row}\n" * 2000, encoding="utf-8")
    parts = folder / "trace.parquet.partial"
    command = ("route-trace", wordy_model, "--prompts", prompts, "-o", target)
    with forked_moetool(forks, *command) as process:
        wait_for(parts / "part-00000-000.parquet", process)
        meanwhile = [trace_to(target), trace_to(target, "--force")]
        process.send_signal(signal.SIGTERM)
        yield Rivals(target, process.pid, finish(process), meanwhile, parts)


@pytest.mark.parametrize("attempt", [0, 1], ids=["plain", "force"])
def test_while_a_run_is_alive_no_other_writes_its_target(attempt: int, rivals: Rivals) -> None:
    error = f"Another run (process {rivals.pid}, since "
    refusal = Refusal(2, error=error, hint="Wait until it has ended")
    assert_refused(rivals.meanwhile[attempt], refusal, target=None)


def test_a_run_that_is_terminated_loses_what_was_not_yet_a_part(rivals: Rivals) -> None:
    said = rivals.first.stderr.splitlines()
    assert_refused(rivals.first, INTERRUPTED, target=None, note=said[-1])
    metadata = open_trace(rivals.parts).metadata
    assert metadata is not None
    assert not metadata.complete
    assert len(read_trace(rivals.parts)) > 0


def test_what_it_left_is_nobody_s_and_is_discarded_only_by_force(rivals: Rivals) -> None:
    error = f"'{rivals.parts}' holds the rows of an unfinished run"
    assert_refused(trace_to(rivals.target), Refusal(2, error=error, hint="--force"), target=None)
    assert len(read_trace(rivals.parts)) > 0

    completed = trace_to(rivals.target, "--force")

    assert completed.returncode == 0, completed.stderr
    assert set(read_trace(rivals.target)["prompt_id"]) == {"1"}
    assert sorted(path.name for path in rivals.target.parent.iterdir()) == [
        "prompts.jsonl",
        "trace.parquet",
    ]


def test_a_kill_before_the_first_part_is_in_nobody_s_way(tmp_path: Path, forks: Forks) -> None:
    prompts, target = tmp_path / "prompts.jsonl", tmp_path / "trace.csv"
    prompts.write_text('{"text": "def add(a, b): return a + b"}\n' * 2000, encoding="utf-8")
    command = ("route-trace", "demo", "--prompts", prompts, "--batch-size", "1", "-o", target)
    with forked_moetool(forks, *command) as process:
        wait_for(tmp_path / "trace.csv.partial" / "_lock", process)
        process.kill()
        assert finish(process).returncode == -signal.SIGKILL
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["prompts.jsonl", "trace.csv.partial"]

    completed = trace_to(target)

    assert completed.returncode == 0, completed.stderr
    assert not (tmp_path / "trace.csv.partial").exists()
