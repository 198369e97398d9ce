"""The command line starts light: help and version import nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

import moetool
from tests.command import RunMoetool

HEAVY = (
    "torch",
    "transformers",
    "pandas",
    "numpy",
    "pyarrow",
    "rich",
    "jinja2",
    "matplotlib",
    "safetensors",
    "huggingface_hub",
)


def modules_imported_by(*arguments: str) -> set[str]:
    """Return the top-level modules in a process after it ran `moetool` with these arguments."""
    code = (
        "import sys\n"
        "from moetool.cli.main import main\n"
        "sys.argv = ['moetool', *sys.argv[1:]]\n"
        "try:\n    main()\n"
        "finally:\n    print(*sys.modules, file=sys.stderr)\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in completed.stderr.split()}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["route-trace", "--help"],
        ["specialize", "--help"],
        ["import", "--help"],
        ["inspect", "--help"],
        ["memory-estimate", "--help"],
        ["fits", "--help"],
        ["models", "--help"],
        ["gpus", "--help"],
    ],
    ids=" ".join,
)
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    # Typer lays the help out with rich, which takes less than a tenth of a second.
    allowed = {"rich"} if "--help" in arguments else set()
    assert modules_imported_by(*arguments) & set(HEAVY) == allowed


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, moetool; print(*sys.modules)"
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert not {name.partition(".")[0] for name in completed.stdout.split()} & set(HEAVY)


def test_reading_and_analysing_a_trace_and_tracing_a_gguf_file_import_no_torch() -> None:
    code = (
        "import sys\n"
        "from moetool import read_trace, trace_model\n"
        "import moetool.analysis.specialization.measure, moetool.report.questions.specialize\n"
        "import moetool.library.trace_gguf, moetool.tracing.processes.shared_place\n"
        "print(*sys.modules)"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    modules = {name.partition(".")[0] for name in completed.stdout.split()}
    assert "pyarrow" in modules
    assert not modules & {"torch", "transformers"}


def test_inspecting_headers_alone_imports_no_torch() -> None:
    modules = modules_imported_by("inspect", "demo", "--source", "headers")
    assert "moetool" in modules
    assert not modules & {"torch", "transformers", "numpy", "pandas", "safetensors"}


def test_version_is_the_packages(run_moetool: RunMoetool) -> None:
    assert run_moetool("--version").stdout == f"moetool {moetool.__version__}\n"


def test_help_names_every_command_and_exit_code(run_moetool: RunMoetool) -> None:
    text = " ".join(run_moetool("--help").stdout.split())
    for word in (
        "route-trace",
        "specialize",
        "inspect",
        "memory-estimate",
        "models",
        "gpus",
        "0 done",
        "5 routing",
        "130 interrupted",
    ):
        assert word in text


def test_every_public_name_loads() -> None:
    for name in moetool.__all__:
        assert getattr(moetool, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = moetool.nothing
