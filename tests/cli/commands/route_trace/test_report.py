"""`route-trace --report`: a trace and the page about it in one go."""

from __future__ import annotations

from pathlib import Path

import pytest

from moetool import read_trace, render_report
from moetool.errors import InputError
from tests.cli.bad_input.refusals import Refusal, assert_refused
from tests.command import Completed, RunMoetool

PAGE_MAKER = "moetool.library.report.render_report"
PROMPTS = ("--prompt", "The cat sat.", "--prompt", "A dog ran away.")


@pytest.fixture
def run(run_moetool: RunMoetool, tmp_path: Path) -> RunMoetool:
    def trace(*options: str | Path) -> Completed:
        return run_moetool("route-trace", "demo", *PROMPTS, *options, cwd=tmp_path)

    return trace


def test_the_page_is_that_of_the_trace(run: RunMoetool, tmp_path: Path) -> None:
    ran = run("-o", "trace.parquet", "--report", "page.html")
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
    assert ran.stderr.splitlines()[-1].startswith("wrote page.html (")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page == render_report(tmp_path / "trace.parquet")
    quiet = run("-o", "trace.parquet", "--report", "page.html", "--force", "-q")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--report", "page.html"], Refusal(2, error="must go to a file", hint="-o")),
        (
            ["-o", "-", "--report", "page.html"],
            Refusal(2, error="must go to a file", hint="-o trace.parquet"),
        ),
        (["-o", "t.parquet", "--report", "-"], Refusal(2, error="must go to a file", hint="page")),
        (["-o", "t.parquet", "--report", "page.md"], Refusal(2, error="is not named as a page")),
        (["-o", "t.parquet", "--report", "old.html"], Refusal(2, error="exists", hint="--force")),
    ],
)
def test_a_page_that_can_not_be_made_is_refused_before_the_run(
    options: list[str], expected: Refusal, run: RunMoetool, tmp_path: Path
) -> None:
    (tmp_path / "old.html").write_text("kept", encoding="utf-8")
    assert_refused(run(*options), expected, target=None)
    assert [path.name for path in tmp_path.iterdir()] == ["old.html"]


def test_a_page_that_fails_leaves_the_trace(
    run: RunMoetool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise InputError("It broke.", hint="Mend it.")

    monkeypatch.setattr(PAGE_MAKER, fail)
    ran = run("-o", "trace.parquet", "--report", "page.html", "-q")
    assert ran.returncode == 3
    assert ran.stderr.splitlines() == [
        "trace.parquet holds the whole trace; only the page is missing",
        "error: It broke.",
        "hint: Mend it.",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["trace.parquet"]
    assert len(read_trace(tmp_path / "trace.parquet")) > 0


def test_a_bug_in_the_page_leaves_the_trace(
    run: RunMoetool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(PAGE_MAKER, fail)
    with pytest.raises(ZeroDivisionError):
        run("-o", "trace.parquet", "--report", "page.html", "-q")
    assert [path.name for path in tmp_path.iterdir()] == ["trace.parquet"]
    assert len(read_trace(tmp_path / "trace.parquet")) > 0
