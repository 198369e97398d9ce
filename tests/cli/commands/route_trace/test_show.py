"""The prompts that `moetool route-trace` shows, on the demonstration checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from moetool import read_trace
from moetool.trace.reading.reader import open_trace
from moetool.tracing.prompts.prompts import hash_prompts, read_prompts
from tests.command import Completed, RunMoetool

NUM_NEW_TOKENS = 20
PROMPT = "The cat sat on the"


@dataclass(frozen=True)
class ShownToken:
    """A row of the table.

    Attributes:
        experts: By layer and rank.
    """

    position: int
    piece: str
    experts: list[int]


def read_tables(text: str) -> list[list[ShownToken]]:
    """Return the tables of tokens that a summary shows; a piece of the tests holds no space."""
    tables: list[list[ShownToken]] = []
    is_inside = False
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["token"]:
            is_inside = True
            tables.append([])
        elif not words:
            is_inside = False
        elif is_inside and words[0].isdecimal():
            tables[-1].append(ShownToken(int(words[0]), words[1], list(map(int, words[2:]))))
    return tables


def list_tokens(frame: pd.DataFrame) -> list[ShownToken]:
    """Return the rows of a trace of one prompt as the table shows them."""
    ordered = frame.sort_values(["position", "layer", "rank"])
    return [
        ShownToken(int(group["position"].iloc[0]), group["token"].iloc[0], group["expert"].tolist())
        for _, group in ordered.groupby("position")
    ]


@dataclass(frozen=True)
class Written:
    """A run that wrote, and what it left."""

    completed: Completed
    frame: pd.DataFrame
    text: str


@pytest.fixture(scope="module")
def written(run_moetool: RunMoetool, tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("written")
    completed = run_moetool(
        *("route-trace", "demo", "--prompt", PROMPT, "--max-new-tokens", str(NUM_NEW_TOKENS)),
        *("-o", folder / "trace.parquet", "--save-text", folder / "texts.jsonl"),
    )
    assert completed.returncode == 0, completed.stderr
    text = json.loads((folder / "texts.jsonl").read_text(encoding="utf-8"))["text"]
    return Written(completed, read_trace(folder / "trace.parquet"), text)


def test_the_table_shows_the_rows_of_the_trace(written: Written) -> None:
    (table,) = read_tables(written.completed.stderr)
    assert table == list_tokens(written.frame)
    assert len(table) > NUM_NEW_TOKENS
    assert all(len(token.experts) == 6 * 2 for token in table)


def test_the_rule_stands_before_the_first_token_that_was_written(written: Written) -> None:
    before, _, after = written.completed.stderr.partition("╌\n")
    phases = written.frame.groupby("position")["phase"].first()
    assert before.rstrip("╌\n").splitlines()[-1].split()[0] == str((phases == "prefill").sum() - 1)
    assert after.split()[0] == str((phases == "prefill").sum())


def test_the_text_is_that_of_save_text(written: Written) -> None:
    lines = written.completed.stderr.splitlines()
    assert [line.split(maxsplit=1) for line in lines[:2]] == [
        ["prompt", PROMPT],
        ["written", written.text.strip()],
    ]


def test_one_prompt_says_nothing_on_domains(written: Written) -> None:
    assert "domain" not in written.completed.stderr


def test_a_prompt_that_is_only_read_has_a_table_and_no_written_text(
    run_moetool: RunMoetool, tmp_path: Path
) -> None:
    path = tmp_path / "trace.parquet"
    completed = run_moetool("route-trace", "demo", "--prompt", PROMPT, "-o", path)
    (table,) = read_tables(completed.stderr)
    assert table == list_tokens(read_trace(path))
    assert "written" not in completed.stderr
    assert "╌" not in completed.stderr


@pytest.fixture(scope="module")
def five_prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("five") / "prompts.jsonl"
    rows = [
        {"id": f"p{number}", "domain": domain, "text": f"{domain} number {number}"}
        for number, domain in enumerate(["code", "code", "prose", "code", "prose"])
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ((), []),
        (("--limit", "3"), ["p0", "p1", "p2"]),
        (("--show", "2"), ["p0", "p1"]),
        (("--show", "9"), ["p0", "p1", "p2", "p3", "p4"]),
        (("--limit", "2", "--show", "0"), []),
        (("--limit", "2", "-q"), []),
    ],
    ids=" ".join,
)
def test_a_few_prompts_or_those_asked_for_are_shown(
    options: tuple[str, ...],
    shown: list[str],
    run_moetool: RunMoetool,
    five_prompts: Path,
    tmp_path: Path,
) -> None:
    path = tmp_path / "trace.parquet"
    completed = run_moetool(
        *("route-trace", "demo", "--prompts", five_prompts, "-o", path),
        *options,
    )
    assert completed.returncode == 0, completed.stderr
    frame = read_trace(path)
    tables = read_tables(completed.stderr)
    assert tables == [list_tokens(frame[frame["prompt_id"] == name]) for name in shown]
    names = [line.split()[1] for line in completed.stderr.splitlines() if line[:3] == "id "]
    assert names == [f"{name}," for name in shown]


def test_a_limit_per_domain_traces_the_first_prompts_of_each(
    run_moetool: RunMoetool, five_prompts: Path, tmp_path: Path
) -> None:
    path = tmp_path / "trace.parquet"
    completed = run_moetool(
        *("route-trace", "demo", "--prompts", five_prompts, "-o", path),
        *("--limit-per-domain", "1"),
    )
    assert completed.returncode == 0, completed.stderr
    prompts = [prompt for prompt in read_prompts(str(five_prompts)) if prompt.prompt_id in "p0 p2"]
    assert list(read_trace(path)["prompt_id"].unique()) == ["p0", "p2"]
    metadata = open_trace(path).metadata
    assert metadata is not None
    assert metadata.num_prompts == 2
    assert metadata.prompts_sha256 == hash_prompts(prompts)
