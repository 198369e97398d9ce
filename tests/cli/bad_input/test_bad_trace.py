"""`moetool specialize` refuses files that are not traces, or that have no domains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cli.bad_input.refusals import Attempt, Refusal, assert_refused
from tests.cli.conftest import TryAll
from tests.command import RunMoetool

HEADER = "prompt_id,domain,position,layer,expert\n"
TWO_DOMAINS = f"{HEADER}a,x,0,0,1\nb,y,0,0,2\n"

# By what is wrong with it: a trace as CSV, and what is said of it; {} is its path.
BAD_CSV: dict[str, tuple[str, Refusal]] = {
    "empty": ("", Refusal(3, error="'{}' can't be read as a trace: it is empty")),
    "a header only": (HEADER, Refusal(3, error="'{}' holds no rows")),
    "columns that are missing": (
        "prompt_id,layer\na,0\n",
        Refusal(
            3,
            error="'{}' is not a trace: it lacks the column 'position'",
            hint="prompt_id, position, layer, expert",
            fact="seen: prompt_id, layer",
        ),
    ),
    "a word for a layer": (
        f"{TWO_DOMAINS}c,y,0,first,2\n",
        Refusal(3, error="'{}' can't be read as a trace: 'layer' is 'first' in line 4"),
    ),
    "a row without a layer": (
        f"{TWO_DOMAINS}c,y,0,,2\n",
        Refusal(3, error="there is no 'layer' in line 4"),
    ),
    "a layer below zero": (
        f"{TWO_DOMAINS}c,y,0,-3,2\n",
        Refusal(3, error="'{}' has layer -3, below 0, in line 4", fact="prompt 'c'"),
    ),
    "a row too short": (
        f"{TWO_DOMAINS}c,y,0\n",
        Refusal(3, error="line 4 has 3 values, but the header names 5 columns", hint="commas"),
    ),
    "a quotation mark too many": (
        f'{TWO_DOMAINS}"c,y,0,0,2\nd,x,0,0,2\n',
        Refusal(3, error="a quotation mark in line 4 isn't closed"),
    ),
    "semicolons": (
        TWO_DOMAINS.replace(",", ";"),
        Refusal(3, error="'{}' separates its columns by semicolons", hint="commas"),
    ),
    "semicolons, and commas in numbers": (
        "prompt_id;position;layer;expert;weight\na;0;0;1;0,5\n",
        Refusal(3, error="'{}' separates its columns by semicolons", hint="commas"),
    ),
    "tabs": (
        TWO_DOMAINS.replace(",", "\t"),
        Refusal(3, error="'{}' separates its columns by tabs", hint="commas"),
    ),
    "no header": (
        "a,0,0,1\nb,0,0,2\n",
        Refusal(3, error="'{}' begins with values", hint="prompt_id", fact="seen: a, 0, 0, 1"),
    ),
    "a column in capital letters": (
        TWO_DOMAINS.replace("expert", "Expert"),
        Refusal(3, error="lacks the column 'expert'", hint="Rename the column 'Expert'", fact="x"),
    ),
    "one domain": (
        f"{HEADER}a,x,0,0,1\nb,x,0,0,2\n",
        Refusal(3, error="one domain, 'x'", hint="domain"),
    ),
    "no domain": (
        "prompt_id,position,layer,expert\na,0,0,1\nb,0,0,2\n",
        Refusal(3, error="'{}' has no column 'domain'", hint="--by token"),
    ),
    "domains without a name": (
        f"{HEADER}a,(none),0,0,1\nb,(none),0,0,2\n",
        Refusal(3, error="No prompt has a domain (column 'domain')", hint="--by"),
    ),
}


@dataclass(frozen=True)
class Attempts:
    """Traces by what is wrong with them, and what became of analysing each."""

    traces: Mapping[str, Path]
    results: Mapping[str, Attempt]


@pytest.fixture(scope="module")
def attempts(try_all: TryAll, tmp_path_factory: pytest.TempPathFactory) -> Attempts:
    """A try at analysing every bad trace."""
    traces = {}
    for what, (text, _) in BAD_CSV.items():
        traces[what] = tmp_path_factory.mktemp("trace") / "trace.csv"
        traces[what].write_text(text, encoding="utf-8")
    commands = {what: ("specialize", traces[what]) for what in traces}
    return Attempts(traces, try_all(commands, output="result.json"))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A trace of two domains."""
    path = tmp_path / "trace.csv"
    path.write_text(TWO_DOMAINS, encoding="utf-8")
    return path


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """A Parquet trace of two domains, whose data takes much more room than its footer."""
    path = tmp_path / "trace.parquet"
    numbers = range(10_000)
    table = {
        "prompt_id": [f"prompt {number}" for number in numbers],
        "domain": ["xy"[number % 2] for number in numbers],
        "position": [0 for _ in numbers],
        "layer": [0 for _ in numbers],
        "expert": [number % 7 for number in numbers],
    }
    pq.write_table(pa.table(table), path)
    return path


@pytest.fixture
def refuse(run_moetool: RunMoetool, tmp_path: Path) -> Callable[[Path, Refusal], None]:
    """Run a specialize that is meant to be refused, and check all it owes its user."""

    def run(trace: Path, refusal: Refusal) -> None:
        target = tmp_path / "result.json"
        completed = run_moetool("specialize", trace, "-o", target)
        assert_refused(completed, refusal.about(trace), target=target)

    return run


@pytest.mark.parametrize("what", BAD_CSV)
def test_csv_that_is_no_trace_of_several_domains_is_refused(what: str, attempts: Attempts) -> None:
    attempt, expected = attempts.results[what], BAD_CSV[what][1]

    assert_refused(attempt.completed, expected.about(attempts.traces[what]), target=attempt.target)


def test_a_missing_trace_is_refused_with_the_command_that_makes_one(
    refuse: Callable[[Path, Refusal], None], tmp_path: Path
) -> None:
    refuse(tmp_path / "missing", Refusal(3, error="No trace at '{}'", hint="moetool route-trace"))


def test_a_file_of_another_kind_is_refused(
    refuse: Callable[[Path, Refusal], None], tmp_path: Path
) -> None:
    path = tmp_path / "trace.json"
    path.write_text("[]", encoding="utf-8")

    refuse(
        path, Refusal(3, error="'{}' is neither a .parquet nor a .csv file", hint="Name a trace")
    )


def test_a_folder_without_parts_is_refused(
    refuse: Callable[[Path, Refusal], None], tmp_path: Path
) -> None:
    path = tmp_path / "parts"
    path.mkdir()

    refuse(path, Refusal(3, error="'{}' holds no Parquet files", hint="Name a trace"))


def test_parquet_that_is_no_trace_is_refused_by_what_it_lacks(
    refuse: Callable[[Path, Refusal], None], tmp_path: Path
) -> None:
    path = tmp_path / "trace.parquet"
    pq.write_table(pa.table({"text": ["hello"]}), path)

    refuse(path, Refusal(3, error="'{}' is not a trace", hint="prompt_id", fact="seen: text"))


def test_a_truncated_trace_is_refused(
    refuse: Callable[[Path, Refusal], None], parquet: Path
) -> None:
    parquet.write_bytes(parquet.read_bytes()[:-1])

    refuse(parquet, Refusal(3, error="'{}' can't be read as a trace: its end is missing"))


def test_a_trace_damaged_in_the_middle_is_refused(
    refuse: Callable[[Path, Refusal], None], parquet: Path
) -> None:
    content = bytearray(parquet.read_bytes())
    middle = len(content) // 2
    content[4:middle] = b"\xff" * (middle - 4)
    parquet.write_bytes(content)

    refuse(parquet, Refusal(3, error="can't be read as a trace: it is damaged", fact="seen: "))


def test_an_existing_result_is_refused_and_kept(
    run_moetool: RunMoetool, trace: Path, tmp_path: Path
) -> None:
    output = tmp_path / "result.json"
    output.write_text("something worth keeping", encoding="utf-8")

    completed = run_moetool("specialize", trace, "-o", output)

    assert_refused(completed, Refusal(2, error=f"'{output}' exists", hint="--force"), target=None)
    assert output.read_text(encoding="utf-8") == "something worth keeping"


NO_FOLDER = Refusal(2, error="' is not a folder", hint="Create it first")


@pytest.mark.parametrize(
    ("name", "refusal"),
    [
        pytest.param("missing/result.json", NO_FOLDER, id="in a missing folder"),
        pytest.param("trace.csv/result.json", NO_FOLDER, id="below a file"),
        pytest.param("result.html", Refusal(2, error="'{}'", hint=".json"), id="of no format"),
    ],
)
def test_a_result_that_cannot_be_written_is_refused(
    name: str, refusal: Refusal, run_moetool: RunMoetool, trace: Path, tmp_path: Path
) -> None:
    output = tmp_path / name

    completed = run_moetool("specialize", trace, "-o", output)

    assert_refused(completed, refusal.about(output), target=output)
    assert list(tmp_path.iterdir()) == [trace]


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        pytest.param(
            ["--num-experts", "2"],
            Refusal(3, error="expert ids up to 2, but --num-experts says 2", hint="from 0"),
            id="fewer experts than were seen",
        ),
        pytest.param(
            ["--permutations", "0"], Refusal(2, error="--permutations"), id="no permutations"
        ),
        pytest.param(["--seed", "-1"], Refusal(2, error="--seed"), id="a seed below zero"),
    ],
)
def test_options_that_do_not_fit_the_trace_are_refused(
    options: list[str], refusal: Refusal, run_moetool: RunMoetool, trace: Path
) -> None:
    assert_refused(run_moetool("specialize", trace, *options), refusal, target=None)
