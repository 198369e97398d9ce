"""`moetool report` as users run it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moetool import render_report, write_report
from moetool.errors import UsageError
from moetool.library import report as asking
from moetool.trace.metadata import TraceMetadata
from tests.analysis.random_traces import Router, describe_router, make_random_trace
from tests.cli.bad_input.refusals import Refusal, assert_refused
from tests.cli.emulated import Terminal
from tests.command import RunMoetool

KEPT = b"something worth keeping"
ROUTER = Router(num_experts=4, top_k=2, num_layers=2)
LENGTHS = (6, 5, 7, 4)
CHECK = "moetool.library.report.render_report"


def write_trace(path: Path, table: pa.Table, metadata: TraceMetadata | None = None) -> Path:
    if metadata is not None:
        table = table.replace_schema_metadata({"moetool": metadata.to_json()})
    pq.write_table(table, path)
    return path


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "trace.parquet"
    return write_trace(path, make_random_trace(LENGTHS, router=ROUTER), describe_router(ROUTER))


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a trace is read: a refusal comes before any work."""

    def fail(*_: object, **__: object) -> str:
        raise AssertionError("the trace was read")

    monkeypatch.setattr(CHECK, fail)


def test_a_page_goes_to_a_file_and_to_a_pipe(
    run_moetool: RunMoetool, trace: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    written = run_moetool("report", trace, "-o", page)
    assert (written.returncode, written.stdout) == (0, "")
    assert (
        written.stderr == f"wrote {page} ({len(page.read_bytes()) / 1e6:.1f} MB); "
        "open it in a browser\n"
    )
    for output in ([], ["-o", "-"]):
        piped = run_moetool("report", trace, *output, "-q")
        assert (piped.returncode, piped.stderr) == (0, "")
        assert piped.stdout.encode() == page.read_bytes()
    assert page.read_text(encoding="utf-8") == render_report(trace)
    quiet = run_moetool("report", trace, "-o", page, "--force", "-q")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")


def test_help_names_what_a_page_takes(run_moetool: RunMoetool) -> None:
    words = " ".join(run_moetool("report", "--help").stdout.replace("│", " ").split())
    assert "Write to this .html file instead of stdout." in words
    assert ".json" not in words
    assert "prompt_id" not in words


def test_a_library_user_writes_the_same_page(trace: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_report(trace, page, redact_text=True, layers=[1])
    assert page.read_text(encoding="utf-8") == render_report(trace, redact_text=True, layers=[1])
    with pytest.raises(UsageError, match="exists"):
        write_report(trace, page)
    before = page.read_bytes()
    write_report(trace, page, overwrite=True)
    assert page.read_bytes() != before


@pytest.mark.usefixtures("unread")
def test_a_page_does_not_go_to_a_terminal(
    run_moetool: RunMoetool, trace: Path, terminal: Terminal
) -> None:
    for output in ([], ["-o", "-"]):
        refused = run_moetool("report", trace, *output, stdout=terminal)
        expected = Refusal(2, error="not for a terminal", hint="-o page.html")
        assert_refused(refused, expected, target=None)
    assert terminal.getvalue() == ""


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("page.json", Refusal(2, error="is not named as a page", hint=".html")),
        ("page", Refusal(2, error="is not named as a page", hint=".html")),
        ("missing/page.html", Refusal(2, error="missing", hint="Create it")),
        ("old.html", Refusal(2, error="old.html' exists", hint="--force")),
        ("folder.html", Refusal(2, error="folder.html' is a folder")),
    ],
)
def test_an_output_that_can_not_be_a_page_is_refused_before_any_work(
    name: str, expected: Refusal, run_moetool: RunMoetool, trace: Path, tmp_path: Path
) -> None:
    (tmp_path / "old.html").write_bytes(KEPT)
    (tmp_path / "folder.html").mkdir()
    refused = run_moetool("report", trace, "-o", tmp_path / name)
    assert_refused(refused, expected, target=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.html", "old.html"]
    assert (tmp_path / "old.html").read_bytes() == KEPT


@pytest.mark.usefixtures("unread")
def test_a_page_does_not_replace_a_trace_that_it_is_made_from(
    run_moetool: RunMoetool, trace: Path, tmp_path: Path
) -> None:
    misnamed = write_trace(tmp_path / "trace.html", pq.read_table(trace))
    for inputs in ([misnamed], [trace, "--compare", misnamed]):
        refused = run_moetool("report", *inputs, "-o", misnamed, "--force")
        assert_refused(refused, Refusal(2, error="trace.html'"), target=None)
    assert pq.read_table(misnamed).num_rows == sum(LENGTHS) * 4


def test_what_no_page_can_be_made_of_is_refused(
    run_moetool: RunMoetool, trace: Path, tmp_path: Path
) -> None:
    other = write_trace(tmp_path / "other.parquet", make_random_trace((6, 5, 7), router=ROUTER))
    text = tmp_path / "prompts.txt"
    text.write_text("hello", encoding="utf-8")
    target = tmp_path / "page.html"
    for arguments, expected in (
        ([tmp_path / "none.parquet"], Refusal(3, error="none.parquet")),
        ([text], Refusal(3, error="prompts.txt")),
        ([trace, "--compare", tmp_path / "none.parquet"], Refusal(3, error="none.parquet")),
        ([trace, "--compare", other], Refusal(3, error="other.parquet")),
        ([trace, "--layers", "7"], Refusal(2, error="layer 7")),
        ([trace, "--by", "language"], Refusal(2, error="has no column 'language'")),
        ([trace, "--num-experts", "9"], Refusal(3, error="9")),
    ):
        refused = run_moetool("report", *arguments, "-o", target)
        assert_refused(refused, expected, target=target)


def test_a_comparison_is_on_the_page(run_moetool: RunMoetool, trace: Path, tmp_path: Path) -> None:
    table = pq.read_table(trace)
    other = write_trace(tmp_path / "second.parquet", table.replace_schema_metadata(None))
    page = run_moetool("report", trace, "--compare", other, "-q").stdout
    assert page == render_report(trace, compare=other)
    assert page != render_report(trace)


def test_a_page_says_what_is_being_done(
    trace: Path, run_moetool: RunMoetool, terminal: Terminal, tmp_path: Path
) -> None:
    run_moetool("report", trace, "-o", tmp_path / "page.html", stderr=terminal)
    assert terminal.read_screen().strip().startswith(f"wrote {tmp_path / 'page.html'}")
    said: list[str] = []
    asking.render_report(trace, compare=trace, show=said.append)
    assert said[:2] == ["measuring the load", "comparing the traces"]
    assert set(said) > set(asking._STEPS.values())
