"""Traces given in any form are the same trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moetool import read_trace
from moetool.errors import UsageError
from moetool.library.opening import open_reader
from tests.analysis.random_traces import Router, describe_router, make_random_trace
from tests.trace.examples import write_trace


@pytest.fixture
def path(tmp_path: Path) -> Path:
    table = make_random_trace((5, 3), num_prompt_tokens=4)
    return write_trace(tmp_path / "trace.parquet", table, metadata=describe_router(Router()))


@pytest.mark.parametrize("by", ["domain", "phase", "language"])
def test_a_path_and_a_frame_are_read_alike(path: Path, by: str) -> None:
    frame = read_trace(path)
    frame["language"] = ["de" if position > 1 else "en" for position in frame["position"]]
    readers = [open_reader(frame, by=by)]
    if by != "language":
        readers += [open_reader(given, by=by) for given in (path, str(path))]
    seen = [
        [(window.group.tolist(), window.position.tolist()) for window in each] for each in readers
    ]
    assert all(each == seen[0] for each in seen)
    assert {tuple(each.groups) for each in readers} == {tuple(readers[0].groups)}
    assert len(readers[0].groups) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"layers": "0-2"},
        {"layers": []},
        {"layers": [-1]},
        {"num_experts": 0},
        {"top_k": "2"},
        {"validate": "yes"},
        {"by": 3},
    ],
    ids=str,
)
def test_arguments_are_checked(path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        open_reader(path, **wrong)
