"""An output that can't be written, or would replace something, is refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from moetool.trace.metadata import TraceMetadata
from tests.cli.bad_input.refusals import Refusal, assert_refused
from tests.command import Completed, RunMoetool

KEPT = b"something worth keeping"


@pytest.fixture
def trace_to(run_moetool: RunMoetool) -> RunMoetool:
    """Trace one prompt with the demonstration checkpoint, with some options for the output."""

    def run(*options: str | Path) -> Completed:
        return run_moetool("route-trace", "demo", "--prompt", "hello", *options)

    return run


def test_an_existing_output_is_refused_and_kept(trace_to: RunMoetool, target: Path) -> None:
    target.write_bytes(KEPT)

    completed = trace_to("-o", target)

    assert_refused(completed, Refusal(2, error=f"'{target}' exists", hint="--force"), target=None)
    assert {path: path.read_bytes() for path in target.parent.iterdir()} == {target: KEPT}


def test_the_metadata_of_another_trace_is_refused_and_kept(
    trace_to: RunMoetool, tmp_path: Path
) -> None:
    metadata = tmp_path / "trace.csv.meta.json"
    kept = TraceMetadata(model="another").to_json().encode()
    metadata.write_bytes(kept)

    completed = trace_to("-o", tmp_path / "trace.csv")

    assert_refused(completed, Refusal(2, error=f"'{metadata}' exists", hint="--force"), target=None)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == {metadata: kept}


def test_the_parts_of_an_unfinished_run_are_refused_and_kept(
    trace_to: RunMoetool, target: Path
) -> None:
    part = target.with_name("trace.parquet.partial") / "part-00000.parquet"
    part.parent.mkdir()
    part.write_bytes(KEPT)
    expected = Refusal(
        2, error=f"'{part.parent}' holds the rows of an unfinished run", hint="--force"
    )

    completed = trace_to("-o", target)

    assert_refused(completed, expected, target=None)
    assert list(target.parent.iterdir()) == [part.parent]
    assert part.read_bytes() == KEPT


def test_an_output_in_a_missing_folder_is_refused(trace_to: RunMoetool, tmp_path: Path) -> None:
    folder = tmp_path / "missing"

    completed = trace_to("-o", folder / "trace.parquet")

    assert_refused(completed, Refusal(2, error=f"'{folder}'", hint="Create it"), target=folder)


def test_an_output_below_a_file_is_refused(trace_to: RunMoetool, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(KEPT)

    completed = trace_to("-o", file / "trace.parquet")

    assert_refused(completed, Refusal(2, error=f"'{file}' is not a folder"), target=None)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == {file: KEPT}


def test_a_folder_is_refused_as_output(trace_to: RunMoetool, target: Path) -> None:
    target.mkdir()

    completed = trace_to("-o", target, "--force")

    expected = Refusal(2, error=f"'{target}' is a folder", hint="Name a file")
    assert_refused(completed, expected, target=None)
    assert list(target.parent.rglob("*")) == [target]


@pytest.mark.parametrize("name", ["trace", "trace.json", "trace.parquet.gz"])
def test_an_output_of_no_known_format_is_refused(
    name: str, trace_to: RunMoetool, tmp_path: Path
) -> None:
    target = tmp_path / name

    completed = trace_to("-o", target)

    expected = Refusal(2, error=f"format of '{target}'", hint=".parquet or .csv")
    assert_refused(completed, expected, target=target)


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        pytest.param(
            ["--format", "csv", "-o", "{}"],
            Refusal(2, error="format csv contradicts '{}'", hint="suffix of --output"),
            id="a format that contradicts the suffix",
        ),
        pytest.param(
            ["--format", "json", "-o", "{}"],
            Refusal(2, error="--format can't be 'json'", hint="parquet or csv"),
            id="an unknown format",
        ),
        pytest.param(
            ["--format", "parquet"],
            Refusal(2, error="stdout", hint="-o trace.parquet"),
            id="Parquet on stdout",
        ),
        pytest.param(
            ["--format", "parquet", "-o", "-"],
            Refusal(2, error="stdout", hint="-o trace.parquet"),
            id="Parquet on a stdout that is named",
        ),
        pytest.param(
            ["--probabilities"],
            Refusal(2, error="the trace must go to a file", hint="-o trace.parquet"),
            id="probabilities without a file",
        ),
        pytest.param(
            ["--probabilities", "-o", "-"],
            Refusal(2, error="the trace must go to a file", hint="-o trace.parquet"),
            id="probabilities with stdout",
        ),
    ],
)
def test_options_that_contradict_the_output_are_refused(
    options: list[str], refusal: Refusal, trace_to: RunMoetool, target: Path
) -> None:
    completed = trace_to(*(option.replace("{}", str(target)) for option in options))

    assert_refused(completed, refusal.about(target), target=target)
