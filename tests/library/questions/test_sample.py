"""Samples of prompts as a library user asks for them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from moetool import sample_prompts
from moetool.errors import InputError, UsageError
from tests.analysis.random_traces import make_random_trace


def test_a_trace_gives_the_same_sample_as_its_frame_in_another_order(tmp_path: Path) -> None:
    table = make_random_trace((5, 5, 5, 5, 5, 5))
    pq.write_table(table, tmp_path / "trace.parquet")
    by_path = sample_prompts(tmp_path / "trace.parquet", most_assignments=100)
    assert 0 < len(by_path.prompts) < 6
    backwards = table.to_pandas().iloc[::-1].reset_index(drop=True)
    by_frame = sample_prompts(backwards, most_assignments=100)
    assert {one.prompt_id for one in by_frame.prompts} == {one.prompt_id for one in by_path.prompts}
    alike = sample_prompts(backwards, like=by_path)
    pd.testing.assert_frame_equal(alike.to_frame(), by_path.to_frame())


def test_what_can_not_be_sampled_is_refused() -> None:
    frame = make_random_trace((3, 2)).to_pandas()
    sample = sample_prompts(frame)
    others = frame.assign(prompt_id=lambda rows: "other " + rows["prompt_id"].astype(str))
    with pytest.raises(InputError, match="has none of the sample's prompts"):
        sample_prompts(others, like=sample)
    with pytest.raises(UsageError, match="number of assignments"):
        sample_prompts(frame, most_assignments=0)
    with pytest.raises(UsageError, match="has no column 'language'"):
        sample_prompts(frame, by="language")
