"""route-trace in two processes on the CPU, as torchrun starts them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch.distributed import TCPStore

from moetool.trace.companions import probabilities_path, saliency_path
from moetool.trace.reading.reader import open_trace, read_trace
from moetool.trace.writing.partial import partial_folder
from tests.cli.process.ranks import Ended, Job
from tests.command import RunMoetool
from tests.forked import Forks
from tests.trace.examples import columns_of

# 28 prompts in seven windows.
_PROMPTS = ("demo", "--prompts", "sample_prompts", "--limit-per-domain", "4", "--batch-size", "1")
_ALL_OPTIONS = (
    *("--max-new-tokens", "3", "--temperature", "0.8", "--seed", "5"),
    *("--probabilities", "--saliency", "--show", "2"),
)


@dataclass(frozen=True)
class Runs:
    """The ends of commands in two processes, by the names of the commands.

    Attributes:
        folder: Where they wrote.
        ended: How each ended in both processes. The last one has no end where it died.
    """

    folder: Path
    ended: dict[str, list[Ended]]


def run_in_two(jobs: Sequence[Job], folder: Path, forks: Forks) -> list[list[Ended]]:
    """Run commands in two processes; return how each ended in both."""
    # A launcher holds the store, and starts processes with these variables.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    (folder / "jobs.json").write_text(json.dumps([asdict(job) for job in jobs]))
    started = []
    for rank in range(2):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        files = [str(folder / "jobs.json"), str(folder / f"{rank}.jsonl")]
        code = "from tests.cli.process.ranks import main\nmain()\n"
        started.append(forks.start(code, *files, environment={**os.environ, **environment}))
    for process in started:
        with process:
            process.communicate()
    lines = [(folder / f"{rank}.jsonl").read_text().splitlines() for rank in range(2)]
    return [
        [Ended(**json.loads(each[index])) for each in lines if index < len(each)]
        for index in range(len(jobs))
    ]


@pytest.fixture(scope="module")
def runs(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Commands in two processes, which import their libraries only once."""
    folder = tmp_path_factory.mktemp("two")

    def trace(name: str, *options: str, **changes: object) -> Job:
        output = ("-o", str(folder / name))
        return Job(["route-trace", *_PROMPTS, *options, *output], **changes)  # type: ignore[arg-type]

    texts = ("--save-text", str(folder / "texts.jsonl"))
    jobs = {
        "csv": trace("trace.csv"),
        "parquet": trace("trace.parquet", *_ALL_OPTIONS, *texts),
        "differ": trace("differ.parquet", rank=1, more_args=["--batch-size", "2"]),
        "device": trace("device.parquet", "--device", "cuda:1"),
        "map": trace("map.parquet", "--device-map", "auto"),
        "stdout": Job(["route-trace", *_PROMPTS, "--format", "csv"]),
        "early": Job(["route-trace", "demo", "--prompts", "nowhere", "-o", str(folder / "e.csv")]),
        "fails": trace("fails.parquet", rank=1, ends="fails"),
        "resumed": trace("fails.parquet", "--resume"),
        "dies": trace("dies.parquet", rank=1, ends="dies"),
    }
    return Runs(
        folder, dict(zip(jobs, run_in_two(list(jobs.values()), folder, forks), strict=True))
    )


@pytest.fixture(scope="module")
def alone(run_moetool: RunMoetool, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The same traces, written by one process."""
    folder = tmp_path_factory.mktemp("alone")
    texts = ("--save-text", folder / "texts.jsonl")
    ended = {}
    for name, options in (("csv", ()), ("parquet", (*_ALL_OPTIONS, *texts))):
        output = folder / f"trace.{name}"
        completed = run_moetool("route-trace", *_PROMPTS, *options, "-o", output)
        ended[name] = [Ended(completed.returncode, completed.stdout, completed.stderr)]
    return Runs(folder, ended)


def summary_of(ended: Ended) -> list[str]:
    """Return the lines of a run's summary that don't depend on its output's place or its time."""
    lines = ended.stderr.splitlines()
    return [line for line in lines if not line.startswith(("wrote ", "took ", "texts "))]


def said_once(ended: Sequence[Ended]) -> str:
    """Return what the processes wrote to stderr: a single error and a single hint."""
    said = "".join(each.stderr for each in ended)
    assert [line.split(":")[0] for line in said.splitlines()].count("error") == 1, said
    assert said.count("hint: ") == 1, said
    assert not any(each.stdout for each in ended)
    return said


def test_rows_are_those_of_one_process(runs: Runs, alone: Runs) -> None:
    assert [each.code for each in runs.ended["csv"]] == [0, 0], runs.ended["csv"]
    assert (runs.folder / "trace.csv").read_bytes() == (alone.folder / "trace.csv").read_bytes()
    assert not partial_folder(runs.folder / "trace.csv").exists()


def test_only_the_first_process_speaks(runs: Runs) -> None:
    first, second = runs.ended["csv"]
    assert "wrote " in first.stderr
    assert (first.stdout, second.stdout, second.stderr) == ("", "", "")


def test_all_that_a_run_records_is_that_of_one_process(runs: Runs, alone: Runs) -> None:
    assert [each.code for each in runs.ended["parquet"]] == [0, 0], runs.ended["parquet"]
    ours, theirs = (each.folder / "trace.parquet" for each in (runs, alone))
    for path in (ours, probabilities_path(ours)):
        other = theirs.with_name(path.name)
        assert pq.read_table(path).to_pydict() == pq.read_table(other).to_pydict()
    texts = (runs.folder / "texts.jsonl").read_bytes()
    assert texts == (alone.folder / "texts.jsonl").read_bytes()
    saliency = [torch.load(saliency_path(path), weights_only=True) for path in (ours, theirs)]
    for layer, own in saliency[0].items():
        for name, values in own.items():
            assert torch.equal(torch.as_tensor(values), torch.as_tensor(saliency[1][layer][name]))
    assert open_trace(ours).metadata == open_trace(theirs).metadata


@pytest.mark.parametrize("name", ["csv", "parquet"])
def test_the_summary_is_that_of_one_process(runs: Runs, alone: Runs, name: str) -> None:
    summary = summary_of(runs.ended[name][0])
    assert summary == summary_of(alone.ended[name][0])
    assert summary


def test_different_arguments_are_named(runs: Runs) -> None:
    said = said_once(runs.ended["differ"])
    assert "Processes differ in --batch-size: process 0 has '1', process 1 has '2'." in said
    assert [each.code for each in runs.ended["differ"]] == [2, 2]
    assert not list(runs.folder.glob("differ*"))


@pytest.mark.parametrize(
    ("name", "code", "sentence"),
    [
        ("device", 2, "--device cuda:1 names one device, and each of 2 processes takes another."),
        ("map", 2, "With a device map, each of 2 processes would spread the model over all GPUs."),
        ("stdout", 2, "The rows of 2 processes can only go to a file."),
        ("early", 3, "No prompts at 'nowhere'"),
    ],
)
def test_what_processes_cannot_share_is_refused(
    runs: Runs, name: str, code: int, sentence: str
) -> None:
    assert sentence in said_once(runs.ended[name])
    assert [each.code for each in runs.ended[name]] == [code, code]
    assert not list(runs.folder.glob(f"{name}*"))


def test_a_process_that_fails_ends_all_and_loses_nothing(runs: Runs, alone: Runs) -> None:
    said = said_once(runs.ended["fails"])
    assert said.startswith("error: Out of memory here.\nhint: Take less.\nrows traced so far: ")
    assert "--resume goes on with them" in said
    assert [each.code for each in runs.ended["fails"]] == [6, 6]
    assert [each.code for each in runs.ended["resumed"]] == [0, 0], runs.ended["resumed"]
    assert_same_rows(runs.folder / "fails.parquet", alone.folder / "trace.csv")


def test_a_process_that_dies_ends_all_and_one_process_can_go_on(
    runs: Runs, alone: Runs, run_moetool: RunMoetool
) -> None:
    (left,) = runs.ended["dies"]
    assert "Process 1 of 2 has not answered for 3 s." in said_once([left])
    assert left.code == 130
    target = runs.folder / "dies.parquet"
    assert not target.exists()
    metadata = open_trace(partial_folder(target)).metadata
    assert metadata is not None
    assert not metadata.complete
    completed = run_moetool("route-trace", *_PROMPTS, "-o", target, "--resume")
    assert completed.returncode == 0, completed.stderr
    assert_same_rows(target, alone.folder / "trace.csv")


def assert_same_rows(ours: Path, theirs: Path) -> None:
    assert columns_of(read_trace(ours)) == columns_of(read_trace(theirs))
