"""Fixtures that all tests share: the command as users run it, and the demonstration checkpoint."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Before any test imports a library: no test may depend on a network or on a terminal, and what is
# run here is so small that a second thread costs more than it helps.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "critical"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
if "PYTEST_XDIST_WORKER" not in os.environ:
    # Nor on what its user's cache holds. Workers share that of the process that started them.
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="moetool-tests-")
    os.environ["MOETOOL_CACHE"] = os.path.join(os.environ["HF_HOME"], "moetool")
    atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

import pytest
from hypothesis import HealthCheck, settings

from moetool.catalogue.names import demo_folder
from moetool.process.cores import count_cores
from tests.command import REPOSITORY as REPOSITORY
from tests.command import Completed as Completed
from tests.command import RunMoetool, run_main, run_process
from tests.forked import Forks

# Time is never asserted: a busy machine would fail tests.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# Nothing of what is imported and collected is garbage: looking for it takes a third of the time.
gc.disable()

# Where the tests run in the background a shell may have them ignore interrupts; what they start is
# interrupted all the same.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers() -> int:
    """Run one worker more than there are cores: some tests wait for processes that they start."""
    return count_cores() + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the tests that take longest, so that no worker is left with one at the end."""
    items.sort(key=lambda item: not any(word in item.nodeid for word in ("test_docs", "switch-c-")))


def pytest_collection_finish() -> None:
    """Keep what was imported and collected out of every search for garbage.

    All of it stays to the end, and looking through it would take a seventh of the run.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()
    _join_loggers_of_torch()


def _join_loggers_of_torch() -> None:
    """Let the loggers of torch pass on what they log.

    pytest attaches its handlers to each logger that doesn't, six times a test, and torch has half a
    hundred. The one that is left out logs every step of a compilation.
    """
    for name, logger in logging.root.manager.loggerDict.items():
        if (
            isinstance(logger, logging.Logger)
            and name.startswith("torch.")
            and "_trace" not in name
        ):
            logger.propagate = True


@pytest.fixture(scope="session")
def demo() -> Path:
    """The folder of the demonstration checkpoint."""
    return demo_folder()


@pytest.fixture(scope="session")
def sample_prompts() -> Path:
    """The folder of the sample prompts."""
    return REPOSITORY / "sample_prompts"


@pytest.fixture(scope="session")
def run_moetool() -> RunMoetool:
    """Run `moetool` with some arguments in this process."""
    return run_main


@pytest.fixture(scope="session")
def run_moetool_process() -> RunMoetool:
    """Run `moetool` with some arguments in its own process, as a user does in a script."""
    return run_process


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Starts programs in their own processes, which have imported torch and transformers."""
    with Forks() as forks:
        yield forks


@dataclass(frozen=True)
class DemoRun:
    """A run of route-trace as the README shows it, and the trace it wrote."""

    trace: Path
    stderr: str


@pytest.fixture(scope="session")
def demo_run(
    run_moetool: RunMoetool, sample_prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> DemoRun:
    """The demonstration checkpoint traced over the sample prompts."""
    folder = tmp_path_factory.mktemp("demo")
    completed = run_moetool(
        "route-trace", "demo", "--prompts", sample_prompts, "-o", "trace.parquet", cwd=folder
    )
    assert completed.returncode == 0, completed.stderr
    return DemoRun(trace=folder / "trace.parquet", stderr=completed.stderr)


@pytest.fixture(scope="session")
def demo_trace(demo_run: DemoRun) -> Path:
    """A Parquet trace of the demonstration checkpoint over the sample prompts."""
    return demo_run.trace
