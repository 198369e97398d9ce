"""Saved models, and the command that is meant to be refused."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import pytest

from tests.cli.bad_input.refusals import Attempt, Refusal, assert_refused
from tests.cli.emulated import Terminal
from tests.command import RunMoetool
from tests.tiny_models import DENSE_FAMILY, build_model

VOCABULARY_OF_DEMO = 2048


class Refuse(Protocol):
    """Runs `moetool route-trace ARGS -o <target>` and checks that it is refused."""

    def __call__(self, *args: str | Path, refusal: Refusal, stdin: str | bytes = "") -> None: ...


class TryAll(Protocol):
    """Runs commands, each with `-o <target>` at its end."""

    def __call__(
        self, commands: Mapping[str, Sequence[str | Path]], *, output: str = "trace.parquet"
    ) -> Mapping[str, Attempt]: ...


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where a trace would go."""
    return tmp_path / "trace.parquet"


@pytest.fixture
def refuse(run_moetool: RunMoetool, target: Path) -> Refuse:
    """Run a route-trace that is meant to be refused, and check all it owes its user."""

    def run(*args: str | Path, refusal: Refusal, stdin: str | bytes = "") -> None:
        completed = run_moetool("route-trace", *args, "-o", target, stdin=stdin)
        assert_refused(completed, refusal, target=target)

    return run


@pytest.fixture(scope="session")
def try_all(run_moetool: RunMoetool, tmp_path_factory: pytest.TempPathFactory) -> TryAll:
    """Run a table of commands."""

    def run(
        commands: Mapping[str, Sequence[str | Path]], *, output: str = "trace.parquet"
    ) -> Mapping[str, Attempt]:
        targets = {name: tmp_path_factory.mktemp("target") / output for name in commands}
        return {
            name: Attempt(run_moetool(*command, "-o", targets[name]), targets[name])
            for name, command in commands.items()
        }

    return run


@pytest.fixture(scope="session")
def dense_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model without experts."""
    return _save(DENSE_FAMILY, tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="session")
def wordy_model(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model that makes 128 rows of every token, with the demonstration's tokenizer."""
    folder = _save(
        "mixtral",
        tmp_path_factory.mktemp("wordy"),
        vocab_size=VOCABULARY_OF_DEMO,
        hidden_size=16,
        intermediate_size=16,
        head_dim=4,
        num_hidden_layers=2,
        num_local_experts=64,
        num_experts_per_tok=64,
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, folder)
    return folder


def _save(family: str, folder: Path, **overrides: int) -> Path:
    build_model(family, **overrides).save_pretrained(folder)
    return folder


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """A terminal of eighty columns, to be used as stderr."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    return Terminal()
