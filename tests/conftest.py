"""What all tests share: the command as users run it, and the demonstration checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Before any test imports a library: no test may depend on a network or on a terminal.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "critical"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import pytest

from moetool.catalogue.names import demo_folder

# Where the tests run in the background a shell may have them ignore interrupts; what they start is
# interrupted all the same.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).parent.parent

Completed = subprocess.CompletedProcess[str]
RunMoetool = Callable[..., Completed]


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
    """Run `moetool` with some arguments in a separate process, as a user does in a script."""

    def run(*args: str | Path, stdin: str | bytes = "", cwd: Path = REPOSITORY) -> Completed:
        environment = {
            **os.environ,
            "NO_COLOR": "1",
            "COLUMNS": "80",
        }
        completed = subprocess.run(
            [sys.executable, "-m", "moetool", *map(str, args)],
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            cwd=cwd,
            env=environment,
            check=False,
        )
        return Completed(
            completed.args,
            completed.returncode,
            completed.stdout.decode(),
            completed.stderr.decode(),
        )

    return run


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
