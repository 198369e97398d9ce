"""Text from files and arguments is shown as text: it can't steer a terminal or fake a line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from moetool.catalogue.published import read_published_config
from moetool.cli.errors import speaks_errors
from moetool.cli.observer import TerminalObserver
from moetool.cli.output import print_or_write
from moetool.errors import InputError
from moetool.report.renderer import View
from moetool.report.text.page import render_page
from moetool.report.text.tables import make_table
from tests.cli.bad_input.refusals import Refusal, assert_refused, find_steering
from tests.command import RunMoetool, run_main

HOSTILE = "\x1b[2Jx\r\nerror: faked\x9b1m\u202eab\u2028c\udcff"
SHOWN = r"\x1b[2Jx\r\nerror: faked\x9b1m\u202eab\u2028c\udcff"


def test_an_error_is_one_line_whatever_it_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    @speaks_errors
    def command() -> None:
        error = InputError(f"No '{HOSTILE}'.", hint=f"Not {HOSTILE}.", facts=[f"seen: {HOSTILE}"])
        error.add_note(f"kept: {HOSTILE}")
        raise error

    with pytest.raises(Exception):  # noqa: B017, PT011  typer's own kind of exit
        command()
    assert capsys.readouterr().err.splitlines() == [
        f"error: No '{SHOWN}'.",
        f"  seen: {SHOWN}",
        f"hint: Not {SHOWN}.",
        f"kept: {SHOWN}",
    ]


def test_an_error_is_short_whatever_it_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    @speaks_errors
    def command() -> None:
        long = "x" * 390_000
        raise InputError(f"No '{long}' here.", hint=f"Not {long}.", facts=[long] * 10_000)

    with pytest.raises(Exception):  # noqa: B017, PT011  typer's own kind of exit
        command()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) < 30
    assert max(map(len, lines)) <= 1_000
    assert lines[0].startswith("error: No 'x")
    assert lines[0].endswith("x' here.")


def test_a_wrong_argument_is_shown_as_text() -> None:
    for args in (
        (f"a{HOSTILE}",),
        ("inspect", f"--no{HOSTILE}"),
        ("inspect", "demo", "--format", HOSTILE),
        ("specialize", "x", "--seed", "9" * 5_000),
        ("inspect", HOSTILE),
        ("inspect", "y" * 400_000),
        ("route-trace", "demo", "--prompts", HOSTILE),
        ("specialize", f"/nowhere/{HOSTILE}"),
        ("memory-estimate", "demo", "--batch-size", HOSTILE),
    ):
        completed = run_main(*args)
        assert completed.returncode in (2, 3)
        expected = Refusal(completed.returncode, error="", hint="")
        assert_refused(completed, expected, target=None)
        assert not find_steering(completed.stderr), args
        assert len(completed.stderr) < 3_000


def test_announcements_and_warnings_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalObserver(is_quiet=False) as observer:
        observer.announce(HOSTILE)
        observer.warn(HOSTILE + "y" * 390_000)
    first, second = capsys.readouterr().err.splitlines()
    assert first == SHOWN
    assert second.startswith(f"warning: {SHOWN}")
    assert len(second) <= 1_000


def test_a_cell_is_one_line_and_a_table_keeps_its_rows() -> None:
    table = make_table((HOSTILE, "b"), [(HOSTILE, "1")])
    lines = render_page([[table]], View(width=80)).splitlines()
    assert len(lines) == 3
    assert SHOWN in lines[0]
    assert SHOWN in lines[2]
    table = make_table(("a",), [("x" * 390_000,)])
    assert len(render_page([[table]], View(width=80))) < 20 * 80
    assert len(render_page([[table]], View())) < 4 * 1_000


@pytest.fixture
def hostile_model(demo: Path, tmp_path: Path) -> Path:
    """The demonstration under a name that would steer a terminal."""
    folder = tmp_path / "a\x1b[31mb\nc"
    folder.mkdir()
    for file in demo.iterdir():
        shutil.copy(file, folder)
    return folder


def test_a_models_name_is_shown_as_text(hostile_model: Path) -> None:
    completed = run_main("inspect", hostile_model, "--source", "headers")
    assert completed.returncode == 0, completed.stderr
    assert r"a\x1b[31mb c" in "".join(line.strip() for line in completed.stdout.splitlines())
    assert not find_steering(completed.stdout)


def test_what_a_configuration_says_is_shown_as_text(hostile_model: Path) -> None:
    path = hostile_model / "config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**config, "model_type": "a\x1b[31m\nb\u202e"}), "utf-8")
    completed = run_main("inspect", hostile_model, "--source", "skeleton")
    expected = Refusal(5, error=r"architecture 'a\x1b[31m\nb\u202e'")
    assert_refused(completed, expected, target=None)
    assert not find_steering(completed.stderr)


def test_what_transformers_logs_of_a_configuration_is_not_shown(
    tmp_path: Path, run_moetool: RunMoetool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY")
    config = {**read_published_config("mixtral-8x7b"), "sub_configs": "\x1b[31m\nfaked"}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config), "utf-8")
    completed = run_moetool("inspect", path)
    expected = Refusal(3, error="is not a usable mixtral configuration")
    assert_refused(completed, expected, target=None)
    assert not find_steering(completed.stderr)


def test_a_report_on_a_name_that_is_not_utf8_is_written_with_an_escape(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    print_or_write('{"trace": "a\udcffb"}\n', target, force=False)
    assert json.loads(target.read_text("utf-8")) == {"trace": "a\udcffb"}


def test_a_folder_whose_name_is_not_utf8_is_inspected(hostile_model: Path) -> None:
    folder = hostile_model.with_name("a\udcffb")
    hostile_model.rename(folder)
    for form in ("json", "table", "csv"):
        completed = run_main("inspect", folder, "--source", "headers", "--format", form)
        assert completed.returncode == 0, completed.stderr
