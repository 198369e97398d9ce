"""Traces under odd names, of odd kinds and with odd words: `specialize` works, or says one error."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from moetool.trace.metadata import TraceMetadata
from tests.cli.bad_input.refusals import Refusal, assert_refused
from tests.command import Completed, run_main
from tests.trace.examples import describe_layers, make_rows, write_trace

METADATA = TraceMetadata(complete=True, layers=describe_layers())
ROWS = make_rows((4, 3, 5, 2), domains=["x", "y"] * 2)


def specialize(*args: str | Path) -> Completed:
    return run_main("specialize", *args)


@pytest.fixture
def odd_name(tmp_path: Path) -> Callable[[str], Path]:
    """Return a path whose last part is not UTF-8."""
    return lambda suffix: tmp_path / os.fsdecode(b"caf\xe9" + suffix.encode())


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("output_format", ["table", "json", "csv"])
def test_a_name_that_is_not_text_is_read(
    odd_name: Callable[[str], Path], suffix: str, output_format: str, tmp_path: Path
) -> None:
    path = write_trace(tmp_path / f"trace{suffix}", ROWS, metadata=METADATA)
    path = path.rename(odd_name(suffix))
    completed = specialize(path, "--format", output_format)
    assert completed.returncode == 0, completed.stderr
    if output_format == "json":
        assert json.loads(completed.stdout)["trace"]["trace"] == str(path)


def test_a_name_that_is_not_text_is_named_in_a_refusal(odd_name: Callable[[str], Path]) -> None:
    path = odd_name(".parquet")
    assert_refused(specialize(path), Refusal(3, error=r"No trace at '"), target=None)
    path.write_bytes(b"PAR1")
    completed = specialize(path)
    assert_refused(completed, Refusal(3, error=r"caf\udce9.parquet"), target=None)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # Names of sockets are short.
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


KINDS: dict[str, Callable[[Path], None]] = {
    "a named pipe": make_pipe,
    "a socket": make_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_would_wait_for_ever_is_never_opened(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    write_trace(folder / "a.parquet", ROWS, metadata=METADATA)
    table = write_trace(tmp_path / "table.csv", ROWS, metadata=METADATA)
    sidecar = tmp_path / "table.csv.meta.json"
    sidecar.unlink()
    for place, trace in (
        (tmp_path / "trace.parquet", tmp_path / "trace.parquet"),
        (folder / "b.parquet", folder),
        (sidecar, table),
    ):
        KINDS[kind](place)
        assert_refused(
            specialize(trace), Refusal(3, error=f"'{place}' is {kind}, not a file."), target=None
        )


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda path: path.mkdir(), "is a folder, not a file"),
        (lambda path: path.symlink_to("missing"), "is a broken link, not a file"),
    ],
    ids=["folder", "broken link"],
)
def test_a_part_that_is_not_a_file_is_refused(
    make: Callable[[Path], None], error: str, tmp_path: Path
) -> None:
    write_trace(tmp_path / "a.parquet", ROWS, metadata=METADATA)
    make(tmp_path / "b.parquet")
    refusal = Refusal(3, error=f"'{tmp_path / 'b.parquet'}' {error}", hint="Remove it")
    assert_refused(specialize(tmp_path), refusal, target=None)


def test_an_existing_output_is_refused_before_the_trace_is_opened(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    output.write_text("kept", encoding="utf-8")
    completed = specialize(tmp_path / "missing.parquet", "-o", output)
    assert_refused(completed, Refusal(2, error=f"'{output}' exists"), target=None)
    assert output.read_text(encoding="utf-8") == "kept"


def test_rows_twice_are_refused_and_counted_when_asked_for(tmp_path: Path) -> None:
    path = write_trace(tmp_path / "trace.parquet", ROWS, ROWS, metadata=METADATA)
    refusal = Refusal(3, error="twice for one decision", hint="--no-validate", fact="prompt 'p0'")
    assert_refused(specialize(path), refusal, target=None)
    completed = specialize(path, "--no-validate", "--format", "json")
    assert completed.returncode == 0, completed.stderr
    cells = json.loads(completed.stdout)["experts"]
    assert sum(cell["assignments"] for cell in cells) == 2 * ROWS.num_rows


@pytest.mark.parametrize(
    "options", [["--num-experts", "1000000000"], ["--top-k", "1000000000"]], ids=" ".join
)
def test_numbers_beyond_any_layer_are_refused(options: Sequence[str], tmp_path: Path) -> None:
    path = write_trace(tmp_path / "trace.parquet", ROWS, metadata=METADATA)
    assert_refused(
        specialize(path, *options),
        Refusal(2, error="1000000000", hint="at most 32768"),
        target=None,
    )


def test_words_of_a_trace_cannot_steer_the_terminal(tmp_path: Path) -> None:
    word = "\x1b[31m\u202e\nred"
    rows = make_rows(
        (4, 3, 5, 2), domains=["x", word] * 2, prompt_ids=[f"{n}{word}" for n in range(4)]
    )
    completed = specialize(write_trace(tmp_path / "trace.parquet", rows, metadata=METADATA))
    assert completed.returncode == 0, completed.stderr
    assert all(line.isprintable() for line in completed.stdout.split("\n"))
    assert r"\x1b[31m\u202e\nred" in completed.stdout
