"""The examples of docs/library.md run and show what they return."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from tools.refresh_docs import REPOSITORY

PAGE = REPOSITORY / "docs" / "library.md"


def test_the_examples_return_what_the_page_shows(
    demo: Path, demo_trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "moetool" / "catalogue").mkdir(parents=True)
    (tmp_path / "moetool" / "catalogue" / "demo").symlink_to(demo)
    (tmp_path / "trace.parquet").symlink_to(demo_trace)
    monkeypatch.chdir(tmp_path)
    # A fence closes an example as a blank line does.
    text = PAGE.read_text(encoding="utf-8").replace("\n```\n", "\n\n")
    examples = doctest.DocTestParser().get_doctest(text, {}, PAGE.name, str(PAGE), 0)
    assert len(examples.examples) > 20
    report: list[str] = []
    results = doctest.DocTestRunner(verbose=False).run(examples, out=report.append)
    assert not results.failed, "".join(report)
