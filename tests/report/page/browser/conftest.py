"""One browser for all tests of the page, pages that are made once, and what each page complains of."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from moetool.library.report import write_report
from tests.report.page.browser.opening import Opening, find_browser
from tests.report.page.browser.results import Results
from tests.report.page.browser.traces import Shape, describe, make_trace, write_trace

MakePage = Callable[..., Path]
OpenPage = Callable[..., Page]


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """A browser without a window, for the tests of this folder."""
    with sync_playwright() as playwright:
        path = find_browser(playwright.chromium)
        if path is None:
            reason = "No browser is installed; install one with: apt-get install chromium"
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
        # Chromium refuses to start its sandbox as root.
        args = ["--no-sandbox"] if os.geteuid() == 0 else []
        with playwright.chromium.launch(executable_path=path, args=args) as found:
            yield found


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Open a page from its file; at the end, nothing was asked for but that, and all went well."""
    opening = Opening(browser)
    yield opening
    opening.close()
    assert opening.complaints == []


@pytest.fixture
def opening(browser: Browser) -> Iterator[Opening]:
    """Open a page that is expected to complain."""
    found = Opening(browser)
    yield found
    found.close()


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the traces and pages of this folder's tests."""
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="package")
def trace(folder: Path) -> Path:
    """A trace with planted effects."""
    return write_trace(folder / "planted.parquet", make_trace(), metadata=describe(Shape()))


@pytest.fixture(scope="package")
def other_trace(folder: Path) -> Path:
    """The same tokens, a fifth of whose decisions were drawn again."""
    rows = make_trace(redrawn=0.2)
    return write_trace(
        folder / "other.parquet", rows, metadata=describe(Shape(), model="org/other")
    )


@pytest.fixture(scope="package")
def page_file(folder: Path, trace: Path, other_trace: Path) -> Path:
    """The page about the trace with planted effects, compared with the other."""
    path = folder / "planted.html"
    write_report(trace, path, compare=other_trace)
    return path


@pytest.fixture(scope="package")
def results(trace: Path, other_trace: Path) -> Results:
    """The library's answers about the same two traces."""
    return Results(trace, other_trace)
