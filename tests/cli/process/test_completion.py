"""Completion in the shell: installed by one command, and quick to answer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from moetool.catalogue.gpus import read_gpus
from moetool.catalogue.published import read_published_models
from moetool.cli.options.completion import complete_checkpoints, complete_gpus, complete_models
from tests.command import run_main

HEAVY = {
    "torch",
    "transformers",
    "pandas",
    "numpy",
    "pyarrow",
    "safetensors",
    "huggingface_hub",
    "rich",
}
# The words before the one to complete, that one, and what is offered for it.
CASES = [
    ("", "ins", ["inspect"]),
    ("memory-estimate", "--quant", ["--quantization"]),
    ("memory-estimate --quantization", "nf", ["nf4"]),
    ("inspect", "mixt", ["mixtral-8x22b", "mixtral-8x7b"]),
    ("inspect olmoe-1b-7b", "de", ["demo", "deepseek-moe-16b", "deepseek-r1", "deepseek-v2"]),
    ("inspect", "my-", ["my-checkpoint"]),
    ("route-trace", "d", ["demo"]),
    ("memory-estimate demo --gpu", "h2", ["h20", "h200", "h200-nvl"]),
    ("memory-estimate demo --gpu", "he", ["here"]),
    ("fits --gpu", "gb2", ["gb200"]),
    ("fits --sort", "p", ["prompt"]),
    ("models --kind", "", ["moe", "dense"]),
]


def environment(home: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "HOME": str(home), "PATH": path, "TERM": "xterm"}


def run_bash(script: str, *, home: Path) -> str:
    """Run a script in bash, where `moetool` is the command of this environment."""
    completed = subprocess.run(
        ["bash", "--norc", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=home,
        env=environment(home),
    )
    assert completed.stderr == ""
    return completed.stdout


def ask(shell: str, words: str, incomplete: str, *, home: Path) -> str:
    """Return what `moetool` answers, in this process, to the script that it installs for a shell."""
    line = " ".join(filter(None, ("moetool", words, incomplete)))
    variables = {
        "_MOETOOL_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(1 + len(words.split())),
        "_TYPER_COMPLETE_ARGS": line if incomplete else f"{line} ",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    with patch.dict(os.environ, variables):
        completed = run_main(cwd=home)
    assert completed.stderr == ""
    return completed.stdout


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "my-checkpoint").mkdir()
    (tmp_path / "my-notes.txt").touch()
    return tmp_path


def test_completion_is_installed_and_completes_commands_and_options(home: Path) -> None:
    # A second command keeps bash from replacing itself, so that its name can be found.
    installed = run_bash("moetool --install-completion; echo exit $?", home=home)
    assert "bash completion installed" in installed
    assert installed.endswith("exit 0\n")
    script = (
        "source ~/.bashrc; COMP_WORDS=(moetool {words}); COMP_CWORD={index}; "
        "_moetool_completion moetool; echo ${{COMPREPLY[@]}}"
    )
    for words, incomplete, expected in CASES[:4]:
        line = f"{words} {incomplete}"
        text = run_bash(script.format(words=line, index=len(line.split())), home=home)
        assert text.split() == expected


@pytest.mark.parametrize(("words", "incomplete", "expected"), CASES)
def test_bash_is_offered_names(
    words: str, incomplete: str, expected: list[str], home: Path
) -> None:
    offered = ask("bash", words, incomplete, home=home).split()
    assert offered[: len(expected)] == expected
    assert all(word.startswith(incomplete) for word in offered)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_offered_the_same_with_a_word_on_each(shell: str, home: Path) -> None:
    text = ask(shell, "inspect", "mixtral", home=home)
    separator = {"zsh": '":"', "fish": "\t"}[shell]
    assert f"mixtral-8x7b{separator}Mixtral 8x7B, 46.7B" in text
    assert f"h200-nvl{separator}NVIDIA H200 NVL" in ask(shell, "fits --gpu", "h200", home=home)


def test_paths_are_left_to_the_shell(home: Path) -> None:
    for words, incomplete in (
        ("inspect", "./my"),
        ("inspect", "my-checkpoint/co"),
        ("specialize", "tra"),
        ("route-trace demo --prompts", "sam"),
        ("inspect -o", "o"),
    ):
        assert ask("bash", words, incomplete, home=home).strip() == ""
        assert ask("zsh", words, incomplete, home=home) == "_files\n"


def test_everything_known_is_offered_where_nothing_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    models = [name for name, _ in complete_models("")]
    assert models[0] == "demo"
    assert set(read_published_models()) <= set(models)
    assert [name for name, _ in complete_gpus("")] == ["here", *read_gpus()]
    assert list(complete_gpus("h200-n")) == [("h200-nvl", "NVIDIA H200 NVL, 140.4 GiB")]
    assert [name for name, _ in complete_checkpoints("")] == ["demo"]
    assert [name for name, _ in complete_models("MIXTRAL-8x7")] == ["mixtral-8x7b"]


# What a shell does after a press of the tab key, with the script that moetool shows for it.
PRESSES = {
    "bash": (
        ["bash", "--norc", "-c"],
        "{script}\nCOMP_WORDS=(moetool inspect mixtral-8x); COMP_CWORD=2; "
        "_moetool_completion moetool; printf '%s\\n' ${{COMPREPLY[@]}}",
    ),
    "zsh": (
        ["zsh", "-f", "-c"],
        "autoload -Uz compinit; compinit -u -D\n{script}\n"
        "_arguments() {{ print -r -- $@; }}\n"
        "words=(moetool inspect mixtral-8x); CURRENT=3; _moetool_completion",
    ),
    "fish": (
        ["fish", "--no-config", "-c"],
        '{script}\ncomplete -C "moetool inspect mixtral-8x"',
    ),
}


def test_the_script_of_each_installed_shell_offers_names(home: Path) -> None:
    installed = [shell for shell in PRESSES if shutil.which(shell)]
    assert "bash" in installed
    for shell in installed:
        command, press = PRESSES[shell]
        completed = subprocess.run(
            [*command, press.format(script=show_script(shell, home))],
            capture_output=True,
            text=True,
            check=True,
            cwd=home,
            env=environment(home),
        )
        named = set(re.findall(r"mixtral-[\w]+", completed.stdout))
        assert named == {"mixtral-8x22b", "mixtral-8x7b"}, shell


def show_script(shell: str, home: Path) -> str:
    """Return the script that `moetool --show-completion` shows in a shell."""
    variables = {"_MOETOOL_COMPLETE": f"source_{shell}"}
    completed = subprocess.run(
        [Path(sys.executable).parent / "moetool"],
        capture_output=True,
        text=True,
        check=True,
        cwd=home,
        env=environment(home) | variables,
    )
    return completed.stdout


@pytest.mark.parametrize("line", ["memory-estimate --dtype b", "inspect mix", "fits --gpu h"])
def test_completing_imports_nothing_heavy(line: str) -> None:
    code = (
        "import sys\n"
        "from moetool.cli.main import main\n"
        "sys.argv = ['moetool']\n"
        "try:\n    main()\n"
        "finally:\n    print(*sys.modules, file=sys.stderr)\n"
    )
    variables = {
        "_MOETOOL_COMPLETE": "complete_bash",
        "COMP_WORDS": f"moetool {line}",
        "COMP_CWORD": str(len(line.split())),
    }
    completed = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **variables},
    )
    assert completed.stdout.startswith(line.split()[-1])
    assert not {name.partition(".")[0] for name in completed.stderr.split()} & HEAVY
