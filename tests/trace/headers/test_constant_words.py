"""A column that is not read, because its statistics give its word, is as if it were read."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool import read_trace
from moetool.trace.headers.constant_words import find_constant_words
from tests.trace.examples import HOSTILE_WORDS, columns_of
from tests.trace.reading.frames import make_frame

LONG = "x" * 200
WORDS = st.sampled_from([*HOSTILE_WORDS, LONG + "a", LONG + "b", None])
NAMES = ["domain", "phase", "stack"]


def write(path: Path, frame: pd.DataFrame, *, has_statistics: bool) -> Path:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(table, path, row_group_size=16, write_statistics=has_statistics)
    return path


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_a_trace_reads_the_same_with_and_without_statistics(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("trace")
    frame = make_frame()
    for name in NAMES:
        word = data.draw(WORDS if name != "stack" else WORDS.filter(lambda word: word is not None))
        frame[name] = pd.Series([word] * len(frame), dtype=object)
        if data.draw(st.booleans()):
            frame.loc[frame["prompt_id"] == "p1", name] = data.draw(st.sampled_from(["", "other"]))
    one = write(folder / "one.parquet", frame, has_statistics=True)
    other = write(folder / "other.parquet", frame, has_statistics=False)
    assert columns_of(read_trace(one)) == columns_of(read_trace(other))


def test_only_columns_of_one_short_word_are_left_out(tmp_path: Path) -> None:
    frame = make_frame().assign(phase="prefill", stack=LONG)
    parquet = pq.ParquetFile(write(tmp_path / "trace.parquet", frame, has_statistics=True))
    assert find_constant_words(parquet, [*NAMES, "expert"]) == {"phase": "prefill"}
    assert find_constant_words(parquet, ["phase"]) == {}
    frame.loc[20, "phase"] = None
    parquet = pq.ParquetFile(write(tmp_path / "trace.parquet", frame, has_statistics=True))
    assert find_constant_words(parquet, [*NAMES, "expert"]) == {}
