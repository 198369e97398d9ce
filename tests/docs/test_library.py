"""The Python examples of the documentation run and show what they return."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from moetool.memory.fitting import catalogue_fits
from tests.docs.shown import work_here
from tools.refresh_docs import REPOSITORY

# The examples are counted: a page whose fences are not found would pass.
NUM_EXAMPLES = {
    "library.md": 54,
    "traces/trace-format.md": 6,
    "traces/own-layers.md": 29,
    "questions/balance.md": 7,
    "questions/report.md": 4,
}


@pytest.mark.parametrize("name", NUM_EXAMPLES)
def test_the_examples_return_what_the_page_shows(
    name: str, demo: Path, demo_trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "moetool" / "catalogue").mkdir(parents=True)
    (tmp_path / "moetool" / "catalogue" / "demo").symlink_to(demo)
    (tmp_path / "trace.parquet").symlink_to(demo_trace)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalogue_fits, "work_in_processes", work_here)
    # A fence closes an example as a blank line does.
    page = REPOSITORY / "docs" / name
    text = page.read_text(encoding="utf-8").replace("\n```\n", "\n\n")
    examples = doctest.DocTestParser().get_doctest(text, {}, name, str(page), 0)
    assert len(examples.examples) >= NUM_EXAMPLES[name]
    report: list[str] = []
    results = doctest.DocTestRunner(verbose=False).run(examples, out=report.append)
    assert not results.failed, "".join(report)
