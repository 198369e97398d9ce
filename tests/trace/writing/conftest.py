"""Targets of traces, in each format."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(params=[".parquet", ".csv"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"trace{request.param}"


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Close a part as soon as it has seven rows."""
    monkeypatch.setattr("moetool.trace.writing.parts.ROWS_PER_PART", 7)
