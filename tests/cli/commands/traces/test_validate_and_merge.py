"""`moetool validate` and `moetool merge` as users run them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pandas as pd

from moetool import read_trace, validate_trace
from tests.command import RunMoetool
from tests.trace.reading.frames import METADATA, change, make_frame, write


def test_a_valid_trace_is_described(run_moetool: RunMoetool, demo_trace: Path) -> None:
    completed = run_moetool("validate", demo_trace)
    assert (completed.returncode, completed.stderr) == (0, "")
    words = " ".join(completed.stdout.split())
    assert words.startswith(f"'{demo_trace}' is a valid trace. Its checks: 16 passed.")
    assert " 0–5 6 8 2 " in words


def test_a_failed_check_is_shown_and_ends_in_an_error(
    run_moetool: RunMoetool, tmp_path: Path
) -> None:
    path = write(
        tmp_path / "trace.parquet", change("weight", -0.5)(make_frame()), metadata=METADATA
    )
    completed = run_moetool("validate", path)
    assert completed.returncode == 3
    # The path may be broken over lines.
    assert "".join(completed.stdout.split()).startswith(f"'{path}'isnotavalidtrace:1checkfailed")
    words = " ".join(completed.stdout.split())
    assert "-0.5 in row 9 (counted from 0); first at prompt 'p0', layer 1, position 0" in words
    assert "can be answered" not in words
    # The verdict may be wider: it holds a path.
    assert max(map(len, completed.stdout.splitlines()[2:])) <= 100
    assert completed.stderr.startswith(f"error: '{path}' fails 1 check: weights.\nhint: ")


def test_json_and_csv_hold_every_check(
    run_moetool: RunMoetool, tmp_path: Path, demo_trace: Path
) -> None:
    completed = run_moetool("validate", demo_trace, "--format", "json")
    value = json.loads(completed.stdout)
    assert value["schema"] == "moetool.validate/1"
    assert value["is_valid"] is True
    assert value["trace"]["num_prompts"] > 0
    assert len(value["layers"]) == 6
    bad = write(tmp_path / "trace.parquet", change("expert", 6)(make_frame()), metadata=METADATA)
    completed = run_moetool("validate", bad, "--format", "csv")
    assert completed.returncode == 3
    rows = list(csv.DictReader(io.StringIO(completed.stdout)))
    assert [row["check"] for row in rows] == [check["check"] for check in value["checks"]]
    (failed,) = [row for row in rows if row["result"] == "failed"]
    assert (failed["check"], failed["prompt_id"], failed["layer"]) == ("known experts", "p0", "1")


def test_what_is_no_trace_is_refused_by_name(run_moetool: RunMoetool, tmp_path: Path) -> None:
    completed = run_moetool("validate", tmp_path / "missing.parquet")
    assert (completed.returncode, completed.stdout) == (3, "")
    assert "No trace at" in completed.stderr


def test_two_halves_merge_to_the_whole(
    run_moetool: RunMoetool, demo_trace: Path, tmp_path: Path
) -> None:
    frame = read_trace(demo_trace)
    is_first = frame["prompt_id"].cat.codes < len(frame["prompt_id"].cat.categories) // 2
    for name, part in (("one", frame[is_first]), ("two", frame[~is_first])):
        part.to_parquet(tmp_path / f"{name}.parquet")
    target = tmp_path / "whole.parquet"
    arguments = ("merge", tmp_path / "one.parquet", tmp_path / "two.parquet", "-o", target)
    completed = run_moetool(*arguments)
    assert (completed.returncode, completed.stdout) == (0, "")
    assert f"wrote {target}: {len(frame):,} rows" in completed.stderr
    merged = read_trace(target)
    expected = pd.concat([frame[is_first], frame[~is_first]])
    for name in ("prompt_id", "layer", "position", "rank", "expert", "weight"):
        assert (merged[name].to_numpy() == expected[name].to_numpy()).all()
    assert validate_trace(target).is_valid
    again = run_moetool(*arguments)
    assert (again.returncode, "exists" in again.stderr) == (2, True)


def test_merge_asks_for_an_output(run_moetool: RunMoetool, demo_trace: Path) -> None:
    completed = run_moetool("merge", demo_trace)
    assert completed.returncode == 2
    assert "The file to write is missing." in completed.stderr
