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
# Some machines keep nothing that is compiled. Each worker and each process that tests start would
# compile all modules again, in every run.
os.environ["PYTHONDONTWRITEBYTECODE"] = ""

import pytest
from hypothesis import HealthCheck, settings

from moetool.catalogue.names import demo_folder
from moetool.process.cores import count_cores
from tests.command import REPOSITORY as REPOSITORY
from tests.command import Completed as Completed
from tests.command import RunMoetool, run_main, run_process
from tests.forked import Forks
from tests.once import fill_once

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
    """Start with the tests that take longest, so that no worker is left with one at the end.

    Those follow that start processes from one that forks: side by side, they are run by one worker,
    and no other spends seconds on starting that process.
    """
    forking = {item.path for item in items if "forks" in getattr(item, "fixturenames", ())}

    def find_turn(item: pytest.Item) -> int:
        if any(word in item.nodeid for word in ("test_docs", "switch-c-")):
            return 0
        return 1 if item.path in forking else 2

    items.sort(key=find_turn)


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


@pytest.fixture(scope="session")
def demo_trace(sample_prompts: Path) -> Path:
    """A Parquet trace of the demonstration checkpoint over the sample prompts, as in the README."""
    return _trace_demo("demo-trace", sample_prompts)


@pytest.fixture(scope="session")
def short_demo_trace(sample_prompts: Path) -> Path:
    """The same of four prompts of each domain, for tests that compare two ways to one answer."""
    return _trace_demo("short-demo-trace", sample_prompts, "--limit-per-domain", "4")


def _trace_demo(name: str, prompts: Path, *options: str) -> Path:
    def fill(folder: Path) -> None:
        command = ("route-trace", "demo", "--prompts", prompts, *options, "-o", "trace.parquet")
        completed = run_main(*command, cwd=folder)
        assert completed.returncode == 0, completed.stderr

    return fill_once(name, fill) / "trace.parquet"
