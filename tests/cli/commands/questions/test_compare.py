"""`moetool compare` as users run it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moetool import compare_traces, read_trace
from moetool.errors import UsageError
from moetool.trace.schema import TRACE_SCHEMA
from tests.analysis.comparison.test_agreement import check
from tests.analysis.comparison.two_traces import make_pair, refer
from tests.command import RunMoetool


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two traces of the same tokens, with 40 % of the decisions drawn again."""
    paths = tmp_path / "one.parquet", tmp_path / "other.parquet"
    for path, table in zip(paths, make_pair(), strict=True):
        pq.write_table(table, path)
    return paths


def test_the_page_begins_with_what_the_numbers_say(
    run_moetool: RunMoetool, pair: tuple[Path, Path]
) -> None:
    completed = run_moetool("compare", *pair)
    assert completed.returncode == 0, completed.stderr
    text = " ".join(completed.stdout.split())
    assert "of decisions choose other experts (95%: " in text.partition(" layer ")[0]
    assert ": more than the roughly 10% by which two engines with the same weights" in text
    same = run_moetool("compare", pair[0], pair[0])
    assert same.stdout.startswith("The same routing: all decisions choose the same experts.")


def test_json_and_csv_have_the_numbers_of_the_library(
    run_moetool: RunMoetool, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    for name in ("result.json", "result.csv"):
        written = run_moetool(
            "compare", *pair, "--by", "phase", "--layers", "0-1", "-o", tmp_path / name
        )
        assert (written.returncode, written.stdout) == (0, ""), written.stderr
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result.pop("schema") == "moetool.compare/1"
    del result["moetool"]
    in_python = compare_traces(*pair, by="phase", layers=[0, 1])
    assert result == in_python.to_dict()
    assert [list(layer)[:5] for layer in result["layers"]] == [
        ["stack", "layer", "num_experts", "top_k", "num_tokens"]
    ] * 2
    assert {"overlap", "first_choice_flips", "baseline"} <= result["layers"][0].keys()
    assert result["trace"]["trace"] == str(pair[0])
    rows = list(csv.DictReader((tmp_path / "result.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["layer"], row["group"]) for row in rows] == [("0", "prefill"), ("1", "prefill")]
    assert list(rows[0]) == list(in_python.to_frame().columns)
    assert len(in_python.to_frame("layers")) == 2
    assert set(in_python.to_frame("positions")["first_position"]) == {0, 1, 2, 4, 8}
    assert list(in_python.to_frame("tokens")["prompt_id"])[:1] == [result["tokens"][0]["prompt_id"]]
    with pytest.raises(UsageError, match="table of a comparison can't be"):
        in_python.to_frame("experts")  # type: ignore[arg-type]


def test_a_real_trace_and_a_changed_copy_differ_as_a_plain_reading_says(demo_trace: Path) -> None:
    frame = read_trace(demo_trace)
    few = sorted(frame["prompt_id"].unique())[::40]
    frame = frame[frame["prompt_id"].isin(few) & (frame["layer"] < 2)].reset_index(drop=True)
    changed = frame.copy()
    # In every third decision, other experts: 7 minus the id.
    is_third = (frame["position"] % 3 == 0).to_numpy()
    changed.loc[is_third, "expert"] = (7 - frame["expert"][is_third]).astype(frame["expert"].dtype)
    result = compare_traces(frame, changed)
    tables = [
        pa.Table.from_pandas(each, schema=TRACE_SCHEMA, preserve_index=False)
        for each in (frame, changed)
    ]
    expected = refer(tables[0], tables[1], lambda decision: decision.layer)
    for layer in result.layers:
        check(layer, expected[layer.layer])
    of_domains = refer(tables[0], tables[1], lambda decision: decision.domain)
    for group in result.groups:
        check(group, of_domains[group.group])


def test_parts_in_any_order_give_the_same(pair: tuple[Path, Path], tmp_path: Path) -> None:
    expected = compare_traces(*pair)
    table = pq.read_table(pair[1])
    prompts = np.array([int(name[1:]) for name in table.column("prompt_id").to_pylist()])
    parts = tmp_path / "parts"
    parts.mkdir()
    for number, index in enumerate(([6, 1, 3], [5, 0], [4, 2])):
        part = pa.concat_tables([table.filter(pa.array(prompts == one)) for one in index])
        pq.write_table(part, parts / f"{number}.parquet")
    result = compare_traces(pair[0], parts)
    assert (result.layers, result.cells) == (expected.layers, expected.cells)
    assert (result.token_ids, result.tokens) == (expected.token_ids, expected.tokens)


def test_other_tokens_are_refused_with_their_place_and_nothing_is_written(
    run_moetool: RunMoetool, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    other = make_pair(lengths=(5, 3, 7, 4, 9, 1, 8))[1]
    pq.write_table(other, tmp_path / "longer.parquet")
    output = tmp_path / "result.json"
    completed = run_moetool("compare", pair[0], tmp_path / "longer.parquet", "-o", output)
    assert completed.returncode == 3
    assert "longer.parquet' has position 6 of prompt 'p6' (token id " in completed.stderr
    assert "--common-tokens" in completed.stderr
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"common_tokens": 1}, "common_tokens can't be 1"),
        ({"min_count": 0}, "number of occurrences can't be 0"),
        ({"num_listed": 0}, "number of tokens can't be 0"),
        ({"by": "language"}, "has no column 'language' to group by"),
        ({"layers": [7]}, "has no routed layer 7"),
    ],
)
def test_options_out_of_range_are_refused(
    options: dict[str, object], message: str, pair: tuple[Path, Path]
) -> None:
    with pytest.raises(UsageError, match=message):
        compare_traces(*pair, **options)  # type: ignore[arg-type]
