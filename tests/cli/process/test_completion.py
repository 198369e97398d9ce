"""Completion in the shell: installed by one command, and quick to answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HEAVY = {"torch", "transformers", "pandas", "numpy", "pyarrow", "safetensors", "huggingface_hub"}


def run_bash(script: str, *, home: Path) -> str:
    """Run a script in bash, where `moetool` is the command of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    completed = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HOME": str(home), "PATH": path},
    )
    assert completed.stderr == ""
    return completed.stdout


def test_completion_is_installed_and_completes_commands_and_options(tmp_path: Path) -> None:
    # A second command keeps bash from replacing itself, so that its name can be found.
    installed = run_bash("moetool --install-completion; echo exit $?", home=tmp_path)
    assert "bash completion installed" in installed
    assert installed.endswith("exit 0\n")
    complete = (
        "source ~/.bashrc; COMP_WORDS=(moetool {words}); COMP_CWORD={index}; "
        "_moetool_completion moetool; echo ${{COMPREPLY[@]}}"
    )
    for words, index, expected in (
        ("ins", 1, "inspect"),
        ("memory-estimate --quant", 2, "--quantization"),
        ("memory-estimate --quantization nf", 3, "nf4"),
    ):
        script = complete.format(words=words, index=index)
        assert run_bash(script, home=tmp_path) == f"{expected}\n"


def test_completing_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from moetool.cli.main import main\n"
        "sys.argv = ['moetool']\n"
        "try:\n    main()\n"
        "finally:\n    print(*sys.modules, file=sys.stderr)\n"
    )
    environment = {
        "_MOETOOL_COMPLETE": "complete_bash",
        "COMP_WORDS": "moetool memory-estimate --dtype b",
        "COMP_CWORD": "3",
    }
    completed = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    assert completed.stdout == "bfloat16\n"
    assert not {name.partition(".")[0] for name in completed.stderr.split()} & HEAVY
