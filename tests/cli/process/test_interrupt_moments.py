"""A Ctrl-C at given moments, in processes that interrupt themselves there.

Moments at which libraries are imported are those of real processes; others come in processes that
start with them imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from moetool.trace.reading.reader import open_trace, read_trace
from tests.cli.bad_input.refusals import assert_refused
from tests.cli.process.started import DEADLINE_S, INTERRUPTED, finish, forked_moetool
from tests.command import REPOSITORY, Completed
from tests.forked import Forks

AT_IMPORT = """
import signal, sys

class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == moment:
            sys.meta_path.remove(self)
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
"""
# Replaces a method by one that first sends the signals, the first time it is called.
AT_CALL = """
import importlib, signal

module, _, name = moment.partition(":")
owner = importlib.import_module(module)
*holders, last = name.split(".")
for holder in holders:
    owner = getattr(owner, holder)
called = getattr(owner, last)

def interrupted(*args, **options):
    setattr(owner, last, called)
    for _ in range(times):
        signal.raise_signal(signal.SIGINT)
    return called(*args, **options)

setattr(owner, last, interrupted)
"""


def run_importing(moment: str, *words: str | Path, times: int) -> Completed:
    """Run the command line in a process that is interrupted when it imports a module."""
    code = (
        "import sys\n"
        f"moment, times = {moment!r}, {times}\n"
        f"{AT_IMPORT}\n"
        "from moetool.__main__ import main\n"
        "sys.argv = ['moetool', *sys.argv[1:]]\n"
        "main()\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=DEADLINE_S,
        check=False,
    )


Run = Callable[..., Completed]


@pytest.fixture
def run(forks: Forks) -> Run:
    """Run the command line in a process that is interrupted at a moment."""

    def run(setting: str, moment: str, *words: str | Path, times: int = 1) -> Completed:
        setting = f"moment, times = {moment!r}, {times}\n{setting}"
        with forked_moetool(forks, *words, setting=setting) as process:
            return finish(process)

    return run


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize(
    "module", ["moetool.cli.main", "typer", "moetool.cli.commands.traces.route_trace"]
)
def test_before_the_command_line_is_there(module: str, times: int) -> None:
    assert_refused(run_importing(module, "models", times=times), INTERRUPTED, target=None)


@pytest.mark.parametrize(
    ("module", "times"),
    [
        ("moetool.checkpoint.reference", 1),
        ("pyarrow", 2),
        ("torch", 1),
        ("torch._C", 1),
        ("numpy", 3),
        ("torch.nn.modules.linear", 2),
        ("transformers", 1),
        ("transformers.modeling_utils", 3),
    ],
)
def test_while_libraries_are_imported(module: str, times: int, tmp_path: Path) -> None:
    target = tmp_path / "trace.parquet"
    completed = run_importing(
        module, "route-trace", "demo", "--prompt", "hello", "-o", target, times=times
    )
    assert_refused(completed, INTERRUPTED, target=target)


SPECIALIZE = ("specialize", "{}/trace.csv", "--permutations", "9", "-o", "{}/report.json")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    rows = "".join(f"{word},{word},0,0,{expert}\n" for word in "xy" for expert in range(4))
    path.write_text(f"prompt_id,domain,position,layer,expert\n{rows}", encoding="utf-8")
    return path


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize(
    "moment",
    [
        "moetool.trace.reading.reader:open_trace",
        "moetool.analysis.specialization.measure:measure_specialization",
        "moetool.cli.output:print_or_write",
        "moetool.output.targets:put_in_place",
    ],
)
def test_in_a_report(moment: str, times: int, trace: Path, run: Run) -> None:
    words = [word.format(trace.parent) for word in SPECIALIZE]
    completed = run(AT_CALL, moment, *words, times=times)
    assert_refused(completed, INTERRUPTED, target=None)
    assert not trace.with_name("report.json").exists()
    is_tidy = os.listdir(trace.parent) == [trace.name]
    is_said = "wrote no file" in completed.stderr
    # At the third nothing more is tidied up.
    assert (is_tidy and is_said) if times < 3 else (is_tidy or not is_said)


def test_an_interrupt_that_a_library_turns_into_another_error_is_still_one(
    trace: Path, run: Run
) -> None:
    swallow = """
import moetool.trace.reading.reader, signal

def open_trace(path):
    try:
        signal.raise_signal(signal.SIGINT)
    except BaseException as error:
        raise ImportError("numpy is broken") from error

moetool.trace.reading.reader.open_trace = open_trace
"""
    words = [word.format(trace.parent) for word in SPECIALIZE]
    assert_refused(run(swallow, "", *words), INTERRUPTED, target=None)


def test_an_interrupt_that_a_library_loses_is_raised_again(trace: Path, run: Run) -> None:
    swallow = """
import moetool.trace.reading.reader, signal, time

def open_trace(path):
    for _ in range(2):
        try:
            signal.raise_signal(signal.SIGINT)
            time.sleep(1)
        except BaseException:
            pass
    while True:
        time.sleep(0.01)

moetool.trace.reading.reader.open_trace = open_trace
"""
    words = [word.format(trace.parent) for word in SPECIALIZE]
    assert_refused(run(swallow, "", *words), INTERRUPTED, target=None)


def test_an_interrupt_in_a_finalizer_is_raised_again(trace: Path, run: Run) -> None:
    swallow = """
import moetool.trace.reading.reader, signal, time

class Finalized:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def open_trace(path):
    Finalized()
    while True:
        time.sleep(0.01)

moetool.trace.reading.reader.open_trace = open_trace
"""
    words = [word.format(trace.parent) for word in SPECIALIZE]
    assert_refused(run(swallow, "", *words), INTERRUPTED, target=None)


@pytest.mark.parametrize("times", [1, 3])
def test_when_all_is_done_it_changes_nothing(times: int, trace: Path, run: Run) -> None:
    at_exit = """
import atexit, signal

def interrupt():
    for _ in range(times):
        signal.raise_signal(signal.SIGINT)

atexit.register(interrupt)
"""
    words = [word.format(trace.parent) for word in SPECIALIZE]
    completed = run(at_exit, "", *words, times=times)
    assert (completed.returncode, completed.stdout, completed.stderr) == (0, "", "")
    assert trace.with_name("report.json").exists()


def test_an_interrupt_that_was_ignored_at_the_start_stays_ignored(trace: Path, run: Run) -> None:
    """As behind `nohup`."""
    ignore = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    words = [word.format(trace.parent) for word in SPECIALIZE]
    moment = "moetool.trace.reading.reader:open_trace"
    completed = run(ignore + AT_CALL, moment, *words)
    assert (completed.returncode, completed.stderr) == (0, "")


# With rows to keep. The demonstration checkpoint makes twelve of every token.

# Sends one more signal when what there is is saved.
AGAIN_IN_CLEAN_UP = (
    AT_CALL
    + """
from moetool.trace.writing.parts import PartWriter

flush = PartWriter.flush

def flush_interrupted(self):
    signal.raise_signal(signal.SIGINT)
    flush(self)
    signal.raise_signal(signal.SIGINT)

PartWriter.flush = flush_interrupted
"""
)


@pytest.mark.parametrize("setting", [AT_CALL, AGAIN_IN_CLEAN_UP], ids=["once", "again"])
def test_rows_are_kept_even_if_it_comes_again(setting: str, tmp_path: Path, run: Run) -> None:
    target, partial = tmp_path / "trace.csv", tmp_path / "trace.csv.partial"
    completed = run(
        *(setting, "moetool.trace.reading.counts:ExpertCounter.add"),
        *("route-trace", "demo", "--prompt", "hello", "-o", target),
    )
    num_rows = len(read_trace(partial))
    metadata = open_trace(partial).metadata
    note = f"rows traced so far: {partial} ({num_rows} rows)"
    assert_refused(completed, INTERRUPTED, target=None, note=note)
    assert num_rows > 0
    assert metadata is not None
    assert not metadata.complete
    assert os.listdir(tmp_path) == [partial.name]


@pytest.mark.parametrize("times", [1, 2])
def test_a_trace_that_is_being_put_in_its_place_gets_there(
    times: int, tmp_path: Path, run: Run
) -> None:
    target = tmp_path / "trace.csv"
    completed = run(
        *(AT_CALL, "moetool.trace.writing.writer:put_in_place"),
        *("route-trace", "demo", "--prompt", "hello", "-o", target),
        times=times,
    )
    metadata = open_trace(target).metadata
    assert_refused(completed, INTERRUPTED, target=None)
    assert metadata is not None
    assert metadata.complete
    assert sorted(os.listdir(tmp_path)) == ["trace.csv", "trace.csv.meta.json"]
