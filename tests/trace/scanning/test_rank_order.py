"""Order of ranks that the metadata says is not that of weights: no fault."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from moetool import read_trace, validate_trace
from moetool.errors import InputError
from moetool.trace.metadata import TraceMetadata
from moetool.trace.windows.reader import DecisionReader
from tests.analysis.random_traces import Router, describe_router, make_random_trace
from tests.trace.examples import write_trace


def write_reversed(path: Path, metadata: TraceMetadata) -> Path:
    """Write a trace whose rank 0 has the smallest weight."""
    table = make_random_trace((5, 3, 7, 4))
    frame = table.to_pandas()
    frame["rank"] = 1 - frame["rank"]
    ordered = frame.sort_values(["prompt_id", "stack", "layer", "position", "rank"], kind="stable")
    import pyarrow as pa

    return write_trace(
        path,
        pa.Table.from_pandas(ordered, preserve_index=False).cast(table.schema),
        metadata=metadata,
    )


@pytest.mark.parametrize("order", ["as written", "shuffled"])
def test_an_order_that_is_not_that_of_weights_is_accepted_where_the_metadata_says_so(
    order: str, tmp_path: Path
) -> None:
    metadata = describe_router(Router())
    stated = write_reversed(tmp_path / "stated.parquet", replace(metadata, rank_order=False))
    silent = write_reversed(tmp_path / "silent.parquet", metadata)
    frames = [pd.read_parquet(path) for path in (stated, silent)]
    if order == "shuffled":
        frames = [frame.sample(frac=1, random_state=0) for frame in frames]
    with pytest.raises(InputError, match="larger weight than that of rank 0"):
        validate_or_read(frames[1])
    validate_or_read(frames[0])
    assert len(read_trace(stated)) == len(frames[0])


def validate_or_read(frame: pd.DataFrame) -> None:
    from moetool.trace.reading.frames import open_frame

    reader = DecisionReader(open_frame(frame), columns=("weight",))
    assert list(reader)
    assert not reader.has_ranks


def test_validate_says_so(tmp_path: Path) -> None:
    metadata = replace(describe_router(Router()), rank_order=False)
    result = validate_trace(write_reversed(tmp_path / "stated.parquet", metadata))
    assert [check.check for check in result.checks if check.result == "failed"] == []
    assert not result.has_rank_order
