"""Pieces of windows: written by several threads at once, taken in order, readable at any time."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moetool.errors import UsageError
from moetool.trace.companions import probabilities_path
from moetool.trace.metadata import TraceMetadata
from moetool.trace.reading.reader import open_trace, read_trace
from moetool.trace.writing.fileless import KeptTrace, NoTrace, TraceStream
from moetool.trace.writing.partial import partial_folder
from moetool.trace.writing.pieces import TracePiece
from moetool.trace.writing.writer import TraceFile
from tests.trace.examples import BEFORE, columns_of, write_trace
from tests.trace.writing.runs import AFTER, names_in
from tests.trace.writing.unfinished.pieces import IDENTITY, Window, make_window

WINDOWS = [make_window(index) for index in range(3)]


def rows_of(windows: Sequence[Window]) -> dict[str, list[object]]:
    """Return the rows that a trace of these windows has."""
    table: dict[str, list[object]] = pa.concat_tables(
        [rows for window in windows for rows in window.rows]
    ).to_pydict()
    return table


def all_pieces(windows: Sequence[Window] = WINDOWS) -> list[TracePiece]:
    return [piece for window in windows for piece in window.cut(1 + window.index)]


@pytest.mark.parametrize("seed", range(3))
def test_pieces_of_several_threads_become_rows_in_their_order(target: Path, seed: int) -> None:
    pieces = all_pieces()
    order = Random(seed).sample(range(len(pieces)), len(pieces))
    with TraceFile(target, metadata=BEFORE, identity=IDENTITY) as sink:
        with ThreadPoolExecutor(4) as pool:
            encoded = {at: pool.submit(sink.encode, pieces[at]) for at in order}
        for at in range(len(pieces)):
            sink.commit(encoded[at].result())
        sink.finish(AFTER)
    assert columns_of(read_trace(target)) == rows_of(WINDOWS)
    scores = pa.concat_tables([each for window in WINDOWS for each in window.probabilities])
    assert pq.read_table(probabilities_path(target)).to_pydict() == scores.to_pydict()
    assert not partial_folder(target).exists()


def test_what_is_unfinished_is_a_trace_to_moetool_and_pandas_after_each_piece(target: Path) -> None:
    taken: list[pa.Table] = []
    with TraceFile(target, metadata=BEFORE, identity=IDENTITY) as sink:
        for piece in all_pieces():
            sink.commit(sink.encode(piece))
            taken.append(piece.rows)
            rows = pa.concat_tables(taken).to_pydict()
            assert columns_of(read_trace(sink.partial)) == rows
            assert columns_of(pd.read_parquet(sink.partial)) == rows
            metadata = open_trace(sink.partial).metadata
            assert metadata is not None
            assert not metadata.complete
        sink.finish(AFTER)


def test_a_part_that_is_being_written_disturbs_no_reader(target: Path) -> None:
    piece, *_ = all_pieces()
    with TraceFile(target, metadata=BEFORE, identity=IDENTITY) as sink:
        sink.commit(sink.encode(piece))
        for name in ("_part-00001-000.unfinished", "_part-00001-000.waiting", "_whole"):
            (sink.partial / name).write_bytes(b"PAR1 and not much else")
        assert columns_of(read_trace(sink.partial)) == piece.rows.to_pydict()
        assert columns_of(pd.read_parquet(sink.partial)) == piece.rows.to_pydict()


def test_a_piece_that_was_written_and_is_gone_ends_the_run(target: Path) -> None:
    with TraceFile(target, metadata=BEFORE, identity=IDENTITY) as sink:
        for piece in all_pieces():
            sink.commit(sink.encode(piece))
        (sink.partial / "part-00001-001.parquet").unlink()
        with pytest.raises(UsageError, match=r"part-00001-00\d.parquet' was removed or changed"):
            sink.finish(AFTER)
    assert not target.exists()


def test_facts_and_texts_of_windows_are_on_disk_with_them(target: Path) -> None:
    with TraceFile(target, metadata=BEFORE, identity=IDENTITY) as sink:
        for piece in all_pieces()[:-1]:
            sink.commit(sink.encode(piece))
        finished = sink.list_finished()
        assert list(finished) == [0, 1]
        for index, window in finished.items():
            whole, *_ = WINDOWS[index].cut(1)
            assert window.facts == whole.facts
            assert window.num_rows == whole.rows.num_rows
            assert window.read_texts() == whole.texts
            assert window.read_saliency() == whole.saliency
            assert pa.concat_tables(window.iter_tables()).to_pydict() == whole.rows.to_pydict()


def test_a_stream_writes_the_bytes_of_pieces_when_they_are_taken(tmp_path: Path) -> None:
    pieces = [TracePiece(**{**vars(each), "probabilities": None}) for each in all_pieces()]
    stream = io.BytesIO()
    with TraceStream(stream) as sink:
        before = stream.getvalue()
        encoded = [sink.encode(piece) for piece in reversed(pieces)]
        assert stream.getvalue() == before
        for each in reversed(encoded):
            sink.commit(each)
    path = tmp_path / "streamed.csv"
    path.write_bytes(stream.getvalue())
    written = write_trace(tmp_path / "written.csv", *(piece.rows for piece in pieces))
    assert path.read_bytes().splitlines() == written.read_bytes().splitlines()


def test_other_sinks_take_pieces() -> None:
    kept = KeptTrace(TraceMetadata())
    for piece in all_pieces():
        kept.commit(kept.encode(piece))
    assert pa.concat_tables(kept.tables).to_pydict() == rows_of(WINDOWS)
    assert len(kept.probabilities) == len(all_pieces())
    with NoTrace() as nothing:
        encoded = nothing.encode(all_pieces()[0])
        nothing.commit(encoded)
    assert encoded.num_rows == all_pieces()[0].rows.num_rows


@pytest.mark.parametrize("cut", [1, 3])
def test_batches_of_a_window_make_way_for_its_pieces(target: Path, cut: int) -> None:
    first, second, _ = WINDOWS
    batches = [second.batch(0, (0, 2)), second.batch(1, (1, 3))]
    with TraceFile(target, metadata=BEFORE, identity=IDENTITY) as sink:
        sink.commit(sink.encode(*first.cut(1)))
        for batch in batches:
            sink.keep_batch(batch)
        tables = [*first.rows, *(second.rows[at] for at in (0, 2, 1, 3))]
        expected = pa.concat_tables(tables).to_pydict()
        assert columns_of(read_trace(sink.partial)) == expected
        assert columns_of(pd.read_parquet(sink.partial)) == expected
        kept = sink.kept_batches(1)
        assert {at: each.rows.to_pydict() for at, each in kept.items()} == {
            at: batch.rows.to_pydict() for at, batch in enumerate(batches)
        }
        for batch in batches:
            same = kept[batch.batch]
            assert (same.facts, same.texts, same.saliency) == (
                batch.facts,
                batch.texts,
                batch.saliency,
            )
            assert batch.probabilities is not None
            assert same.probabilities is not None
            assert same.probabilities.to_pydict() == batch.probabilities.to_pydict()
        encoded = [sink.encode(piece) for piece in second.cut(cut)]
        assert columns_of(read_trace(sink.partial)) == expected
        assert columns_of(pd.read_parquet(sink.partial)) == expected
        for each in encoded:
            sink.commit(each)
        assert columns_of(read_trace(sink.partial)) == rows_of([first, second])
        assert not [name for name in names_in(sink.partial) if "batch" in name]
        assert sink.kept_batches(1) == {}
        sink.finish(AFTER)
    assert columns_of(read_trace(target)) == rows_of([first, second])
