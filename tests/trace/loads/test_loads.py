"""Load tables are written, read back, summed and checked; traces' readers refuse them by name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool import read_trace
from moetool.errors import InputError, UsageError
from moetool.trace.companions import sidecar_path
from moetool.trace.loads.metadata import LoadLayer, LoadMetadata, Precision
from moetool.trace.loads.rows import LOAD_SCHEMA
from moetool.trace.loads.table import is_load_table, open_loads
from moetool.trace.loads.writing import write_loads
from tests.trace.examples import make_rows, write_trace

SUFFIXES = (".parquet", ".csv")
ROWS = {"layer": [1, 1, 2, 2], "expert": [0, 2, 1, 3], "count": [3, 5, 4, 4]}
LAYERS = tuple(LoadLayer("decoder", layer, num_experts=4, top_k=2) for layer in (1, 2))


def write(
    path: Path,
    rows: dict[str, list[Any]] = ROWS,
    *,
    layers: tuple[LoadLayer, ...] = LAYERS,
    precision: Precision = "exact",
    force: bool = False,
) -> Path:
    columns = tuple(name for name in LOAD_SCHEMA.names if name in rows)
    table = pa.table({name: rows[name] for name in columns})
    metadata = LoadMetadata(format="test", layers=layers, precision=precision)
    write_loads([table], path, describe=lambda: metadata, columns=columns, replace_existing=force)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=25)
@given(
    cells=st.dictionaries(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from(["decoder", 'a,"b\nc']),
            st.integers(0, 40),
            st.integers(0, 9),
        ),
        st.integers(0, 2**40),
        min_size=1,
    ),
    order=st.randoms(),
)
def test_counts_are_the_sums_over_steps_in_any_order_of_rows(
    suffix: str,
    cells: dict[tuple[int, str, int, int], int],
    order: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    keys = list(cells)
    order.shuffle(keys)
    names = ("step", "stack", "layer", "expert")
    rows: dict[str, list[Any]] = {
        name: list(each) for name, each in zip(names, zip(*keys, strict=True), strict=True)
    }
    rows["count"] = [cells[key] for key in keys]
    path = write(tmp_path_factory.mktemp("loads") / f"loads{suffix}", rows, layers=())
    expected: Counter[tuple[str, int, int]] = Counter()
    for (_, stack, layer, expert), count in cells.items():
        expected[stack, layer, expert] += count
    table = open_loads(path)
    assert table.to_frame().to_dict("list") == {**rows}
    counts = table.to_counts(num_experts=10, top_k=2)
    assert [(each.stack, each.layer) for each in counts.layers] == sorted(
        {(stack, layer) for stack, layer, _ in expected}
    )
    for each in counts.layers:
        own = [expected[each.stack, each.layer, expert] for expert in range(10)]
        assert each.assignments.tolist() == [own]
        assert each.decisions.tolist() == [sum(own) // 2]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_metadata_gives_shapes_and_notes(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"loads{suffix}", precision="lower bound")
    assert is_load_table(path)
    table = open_loads(path)
    assert table.metadata is not None
    assert (table.metadata.format, table.metadata.layers) == ("test", LAYERS)
    counts = table.to_counts()
    assert [each.num_experts for each in counts.layers] == [4, 4]
    assert [each.decisions.tolist() for each in counts.layers] == [[4], [4]]
    assert counts.notes == ("Counts are lower bounds: a counter of their source ran full.",)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_readers_of_traces_name_a_load_table_and_the_commands_that_take_one(
    suffix: str, tmp_path: Path
) -> None:
    path = write(tmp_path / f"loads{suffix}")
    with pytest.raises(InputError, match="is a load table: it counts experts") as refused:
        read_trace(path)
    assert "balance, place or select" in refused.value.hint


def test_a_trace_is_not_a_load_table(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace.parquet", make_rows((1,)))
    assert not is_load_table(trace)
    assert not is_load_table(tmp_path)
    assert not is_load_table(tmp_path / "missing.csv")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    assert not is_load_table(tmp_path / "broken.parquet")
    with pytest.raises(InputError, match="is not a load table"):
        open_loads(trace)


def test_a_foreign_table_has_its_size_assumed_and_its_top_k_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "loads.csv"
    pd.DataFrame(ROWS).to_csv(path, index=False)
    table = open_loads(path)
    with pytest.raises(InputError, match="doesn't state how many experts") as refused:
        table.to_counts()
    assert refused.value.hint.startswith("Give --top-k")
    counts = table.to_counts(top_k=3)
    assert [each.num_experts for each in counts.layers] == [4, 4]
    assert [each.decisions.tolist() for each in counts.layers] == [[2], [2]]
    assert [note.partition(" ")[2][:20] for note in counts.notes] == [
        "experts are assumed,",
        "assignments of 2 lay",
    ]
    unasked = table.to_counts(needs_top_k=False)
    assert [each.decisions.tolist() for each in unasked.layers] == [[8], [8]]
    assert [each.knows_top_k for each in (*counts.layers, *unasked.layers)] == [True] * 2 + [
        False
    ] * 2
    assert any("doesn't state how many experts" in note for note in unasked.notes)
    asked, unknown = table.describe(counts.layers), table.describe(unasked.layers)
    assert (asked.num_tokens, unknown.num_tokens) == (2, None)
    assert (asked.num_prompts, asked.exact, asked.num_assignments) == (None, None, 16)


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({"count": [3, -5, 4, 4]}, "'count' is -5, below 0, in row 1 (counted from 0)"),
        ({"expert": [0, -1, 1, 3]}, "'expert' is -1, below 0, in row 1 (counted from 0)"),
        ({"count": [3, None, 4, 4]}, "there is no 'count' in row 1 (counted from 0)"),
        ({"count": [3, 0.5, 4, 4]}, "'count' is 0.5 in row 1 (counted from 0)"),
        ({"expert": [0, 2, 1, 40_000]}, "'expert' is 40000 in row 3 (counted from 0)"),
        ({"layer": ["a", "b", "c", "d"]}, "'layer' is 'a' in row 0 (counted from 0)"),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_seen(
    change: dict[str, list[Any]], seen: str, tmp_path: Path
) -> None:
    path = tmp_path / "loads.parquet"
    pq.write_table(pa.table({**ROWS, **change}), path)
    with pytest.raises(InputError) as refused:
        open_loads(path).to_counts(top_k=2)
    assert refused.value.message == f"'{path}' can't be read as a load table: {seen}."


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0,0,1\n0,1\n", "a load table: line 3 has 2 values, but the header names 3 columns"),
        ('0,0,1\n"0,1,2\n', "a load table: a quotation mark in line 3 isn't closed"),
        ("0,0,1\n0,x,2\n", "a load table: 'expert' is 'x' in line 3"),
        ("0,0,1\n0,1,-2\n", "a load table: 'count' is -2, below 0, in line 3"),
    ],
)
def test_a_wrong_line_of_csv_is_refused_with_its_number(
    text: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "loads.csv"
    path.write_text(f"layer,expert,count\n{text}", encoding="utf-8")
    assert is_load_table(path)
    with pytest.raises(InputError) as refused:
        open_loads(path).to_counts(top_k=2)
    assert refused.value.message == f"'{path}' can't be read as {words}."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"expert": [0, 0, 1, 3]}, "counts expert 0 of layer 1 twice"),
        ({"layer": [2, 1, 1, 1], "expert": [7, 3, 0, 3]}, "counts expert 3 of layer 1 twice"),
        ({"count": [2**61, 2**61, 1, 1]}, "add up to more than"),
        ({"expert": [0, 1, 2, 4]}, "has expert 4 in layer 2, which has 4 experts"),
    ],
)
def test_contradictory_rows_are_refused(
    change: dict[str, list[Any]], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "loads.parquet", {**ROWS, **change})
    with pytest.raises(InputError, match=message):
        open_loads(path).to_counts()


def test_options_may_not_contradict_the_metadata(tmp_path: Path) -> None:
    table = open_loads(write(tmp_path / "loads.parquet"))
    with pytest.raises(InputError, match="--top-k says 3, but the metadata"):
        table.to_counts(top_k=3)
    with pytest.raises(InputError, match="--num-experts says 5, but the metadata"):
        table.to_counts(num_experts=5)


def test_a_table_of_no_rows_or_far_too_many_cells_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = write(tmp_path / "empty.parquet", {name: [] for name in ROWS})
    with pytest.raises(InputError, match="holds no rows"):
        open_loads(empty).to_counts()
    monkeypatch.setattr("moetool.trace.loads.rows._MOST_CELLS", 2**20)
    layers = np.arange(3000)
    wide = {"layer": layers, "expert": np.full(3000, 32_000), "count": np.ones(3000, dtype=int)}
    pq.write_table(pa.table(wide), tmp_path / "wide.parquet")
    # Refused at the first layer too many, before the others take memory.
    with pytest.raises(InputError, match="32,001 experts in 33 layers, more than any model has"):
        open_loads(tmp_path / "wide.parquet").to_counts(top_k=1)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_existing_file_is_replaced_only_if_asked(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"loads{suffix}")
    before = path.read_bytes()
    with pytest.raises(UsageError, match="exists"):
        write(path, {**ROWS, "count": [1, 1, 1, 1]})
    assert path.read_bytes() == before
    write(path, {**ROWS, "count": [1, 1, 1, 1]}, force=True)
    assert open_loads(path).to_frame()["count"].tolist() == [1, 1, 1, 1]
    left = {path.name} | ({sidecar_path(path).name} if suffix == ".csv" else set())
    assert {each.name for each in tmp_path.iterdir()} == left


@pytest.mark.parametrize(
    "metadata",
    [
        b"[]",
        b'{"schema": "moetool.trace/1"}',
        b'{"schema": "moetool.loads/1", "precision": "good"}',
        b'{"schema": "moetool.loads/1", "layers": [{"stack": "decoder", "layer": -1}]}',
        b'{"schema": "moetool.loads/1", "layers": [{"stack": "d", "layer": 1, "top_k": 9, "num_experts": 4}]}',
        b'{"schema": "moetool.loads/1", "layers": ' + b"[" * 5000,
    ],
)
def test_hostile_metadata_is_refused(metadata: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / "loads.csv")
    sidecar_path(path).write_bytes(metadata)
    with pytest.raises(InputError, match=r"metadata of .* can't be read"):
        open_loads(path)
