"""Runs that write a trace."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from moetool.errors import UsageError
from moetool.trace.rows import assignment_rows, probability_rows
from moetool.trace.writing.targets import check_target
from moetool.trace.writing.writer import TraceFile
from tests.trace.examples import (
    BEFORE,
    break_off,
    describe_layers,
    make_layers,
    make_tokens,
)

AFTER = replace(BEFORE, complete=True, layers=describe_layers(), num_tokens=5)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def interrupt(target: Path, *tables: pa.Table, replace_existing: bool = False) -> BaseException:
    """Interrupt a run after a few tables, and return the interrupt as it comes out."""
    with pytest.raises(KeyboardInterrupt) as caught:
        break_off(target, *tables, replace_existing=replace_existing)
    return caught.value


def write_with_probabilities(target: Path, *, replace_existing: bool = False) -> None:
    tokens, layers = make_tokens([3, 2]), make_layers(5, top_k=(2, 2))
    with TraceFile(target, metadata=BEFORE, replace_existing=replace_existing) as sink:
        sink.write(assignment_rows(tokens, layers), probability_rows(tokens, layers))
        sink.finish(AFTER)


def refusal(target: Path) -> str:
    with pytest.raises(UsageError) as caught:
        check_target(target, replace_existing=False)
    return caught.value.message
