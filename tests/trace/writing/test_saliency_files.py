"""The saliency next to a trace: it comes and goes with its trace, and no other file is replaced."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from moetool.errors import UsageError
from moetool.trace.companions import saliency_path
from moetool.trace.writing.partial import partial_folder
from moetool.trace.writing.targets import check_target
from moetool.trace.writing.writer import TraceFile
from tests.trace.examples import BEFORE, make_rows
from tests.trace.writing.runs import AFTER


def pack(value: float) -> bytes:
    buffer = io.BytesIO()
    torch.save({0: {"reap": torch.tensor([value])}}, buffer)
    return buffer.getvalue()


def write(target: Path, value: float | None, *, replace_existing: bool = False) -> None:
    with TraceFile(target, metadata=BEFORE, replace_existing=replace_existing) as sink:
        sink.write(make_rows())
        sink.finish(AFTER, None if value is None else pack(value))


def read(target: Path) -> float:
    content = torch.load(saliency_path(target), weights_only=True)
    return float(content[0]["reap"][0])


@pytest.fixture(params=["trace.parquet", "trace.csv"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def test_torch_reads_what_was_written_and_a_new_trace_replaces_it(target: Path) -> None:
    write(target, 1.5)
    assert read(target) == 1.5
    assert not partial_folder(target).exists()
    with pytest.raises(UsageError, match=r"trace\.(parquet|csv)' exists"):
        check_target(target, replace_existing=False)
    write(target, 2.5, replace_existing=True)
    assert read(target) == 2.5
    write(target, None, replace_existing=True)
    assert not saliency_path(target).exists()


def test_saliency_without_its_trace_is_in_the_way_until_it_is_replaced(target: Path) -> None:
    write(target, 1.5)
    for path in target.parent.glob("trace.*"):
        if path != saliency_path(target):
            path.unlink()
    with pytest.raises(UsageError, match=r"trace\.saliency\.pt' exists"):
        check_target(target, replace_existing=False)
    write(target, 2.5, replace_existing=True)
    assert read(target) == 2.5


def test_saliency_of_another_trace_is_never_replaced(target: Path) -> None:
    other = target.with_suffix(".parquet" if target.suffix == ".csv" else ".csv")
    write(other, 1.5)
    write(target, None)
    assert read(other) == 1.5
    with pytest.raises(UsageError, match="exists and belongs to 'trace"):
        check_target(target, replace_existing=True, with_saliency=True)
    with pytest.raises(UsageError, match="exists and belongs to 'trace"):
        write(target, 2.5, replace_existing=True)
    assert read(other) == 1.5


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not quite", pack(1.0)])
def test_files_of_nobody_are_never_replaced(content: bytes, target: Path) -> None:
    saliency_path(target).write_bytes(content)
    for force in (False, True):
        with pytest.raises(UsageError, match="does not state that it belongs to"):
            check_target(target, replace_existing=force)
    assert saliency_path(target).read_bytes() == content
