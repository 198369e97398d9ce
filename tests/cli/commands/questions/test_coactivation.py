"""`moetool coactivation` as users run it."""

from __future__ import annotations

import csv
import json
from collections import Counter
from io import StringIO
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moetool import measure_coactivation, read_trace
from moetool.errors import UsageError
from tests.cli.bad_input.refusals import Refusal, assert_refused
from tests.command import RunMoetool


def test_json_lists_the_strongest_pairs_of_each_layer_first(
    run_moetool: RunMoetool, short_demo_trace: Path, tmp_path: Path
) -> None:
    target = tmp_path / "pairs.json"
    completed = run_moetool("coactivation", short_demo_trace, "--layers", "0,5", "-o", target)
    assert (completed.returncode, completed.stdout) == (0, "")
    result = json.loads(target.read_text(encoding="utf-8"))
    assert result["schema"] == "moetool.coactivation/1"
    assert result["trace"]["model"] == "demo"
    frame = read_trace(short_demo_trace)
    for entry in result["layers"]:
        assert list(entry)[:5] == ["stack", "layer", "num_experts", "top_k", "num_tokens"]
        mine = frame.loc[frame["layer"] == entry["layer"], "expert"].to_numpy().reshape(-1, 2)
        chosen = np.sort(mine, axis=1).tolist()
        counts = Counter(pair for one in chosen for pair in combinations(one, 2))
        assert entry["num_tokens"] == len(chosen)
        assert len(entry["pairs"]) == 28
        assert {tuple(pair["experts"]): pair["count"] for pair in entry["pairs"]} == counts
        lifts = [pair["lift"] for pair in entry["pairs"]]
        assert lifts == sorted(lifts, reverse=True)
        assert entry["baseline"]["lift"] == pytest.approx(8 / (2 * 7))
    assert result["layers"][0]["next_layer"]["layer"] == 5
    assert result["layers"][1]["next_layer"] is None


def test_csv_holds_the_whole_matrices(run_moetool: RunMoetool, short_demo_trace: Path) -> None:
    completed = run_moetool("coactivation", short_demo_trace, "--format", "csv", "--pairs", "1")
    rows = list(csv.DictReader(completed.stdout.splitlines()))
    assert Counter(row["next_layer"] == "" for row in rows) == {True: 6 * 28, False: 5 * 64}
    frame = measure_coactivation(short_demo_trace).to_frame()
    written = pd.read_csv(StringIO(completed.stdout))
    assert list(written) == list(frame)
    for name in ("count", "lift", "p_value"):
        pd.testing.assert_series_equal(
            written[name], frame[name], check_dtype=False, check_names=False
        )


def test_the_library_gives_the_numbers_of_the_command(
    run_moetool: RunMoetool, short_demo_trace: Path
) -> None:
    completed = run_moetool("coactivation", short_demo_trace, "--by", "phase", "--format", "json")
    value = json.loads(completed.stdout)
    del value["schema"], value["moetool"]
    assert value == measure_coactivation(short_demo_trace, by="phase").to_dict()
    from_frame = measure_coactivation(read_trace(short_demo_trace), by="phase").to_dict()
    assert from_frame["trace"].pop("trace") is None
    assert value["trace"].pop("trace") == str(short_demo_trace)
    assert from_frame == value
    with pytest.raises(UsageError, match="no column 'language' to group by"):
        measure_coactivation(short_demo_trace, by="language")


def test_a_table_of_someone_elses_making_is_enough(run_moetool: RunMoetool, tmp_path: Path) -> None:
    path = tmp_path / "bare.csv"
    lines = ["prompt_id,position,layer,expert"]
    lines += [f"p,{at},0,{expert}" for at in range(4) for expert in (at % 2, 2)]
    path.write_text("\n".join(lines), encoding="utf-8")
    completed = run_moetool("coactivation", path)
    assert completed.returncode == 0, completed.stderr
    assert "no pair could be tested" in completed.stdout
    assert "A single prompt shows no spread" in " ".join(completed.stdout.split())


def test_one_expert_per_token_is_said(run_moetool: RunMoetool, tmp_path: Path) -> None:
    path = tmp_path / "top1.csv"
    lines = ["prompt_id,position,layer,expert"]
    lines += [
        f"p{prompt},{at},{layer},{(at + prompt) % 3}"
        for prompt in range(4)
        for at in range(6)
        for layer in (0, 1)
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    completed = run_moetool("coactivation", path)
    assert completed.returncode == 0, completed.stderr
    text = " ".join(completed.stdout.split())
    assert "No decision chooses two experts: there are no pairs." in text
    assert "they find 100% of them" in text


def test_wrong_arguments_are_refused(
    run_moetool: RunMoetool, short_demo_trace: Path, tmp_path: Path
) -> None:
    target = tmp_path / "pairs.json"
    for arguments, refusal in (
        (["--layers", "9"], Refusal(2, "has no routed layer 9.", "0, 1, 2, 3, 4, 5")),
        (["--by", "language"], Refusal(2, "no column 'language'", "Its columns are")),
        (["--pairs", "0"], Refusal(2, "--pairs")),
    ):
        completed = run_moetool("coactivation", short_demo_trace, *arguments, "-o", target)
        assert_refused(completed, refusal, target=target)
