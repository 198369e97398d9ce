"""A page in a browser, and what it shows as text."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from playwright.sync_api import (
    Browser,
    BrowserContext,
    BrowserType,
    ConsoleMessage,
    Error,
    Locator,
    Page,
    Request,
)

Rows = list[list[str]]

_COMMANDS = ("chromium", "chromium-browser", "google-chrome")

# Bars repeat a number of their row, and are hidden from what reads the page aloud.
_READ_ROWS = """table => [...table.tBodies].flatMap(body => [...body.rows]).map(
  row => [...row.cells].filter(cell => !cell.ariaHidden).map(cell => cell.textContent))"""


def find_browser(chromium: BrowserType) -> str | None:
    """Return the path of the system's browser, else of the one that Playwright brought."""
    found = next((path for path in map(shutil.which, _COMMANDS) if path), None)
    if found is None and Path(chromium.executable_path).exists():
        return chromium.executable_path
    return found


class Opening:
    """Opens pages, and collects what they complain of or ask for."""

    def __init__(self, browser: Browser) -> None:
        self.complaints: list[str] = []
        self._browser = browser
        self._contexts: list[BrowserContext] = []

    def __call__(self, path: Path, *, hash_: str = "", **options: Any) -> Page:
        """Open a file in a new context, with the options of one."""
        context = self._browser.new_context(**options)
        context.set_default_timeout(60_000)
        self._contexts.append(context)
        page = context.new_page()
        page.on("console", self._keep_message)
        page.on("pageerror", self._keep_error)
        page.on("request", self._keep_request)
        page.on("requestfailed", self._keep_failure)
        page.goto(path.as_uri() + hash_)
        if options.get("java_script_enabled", True):
            page.wait_for_selector("html[data-ready]")
        return page

    def close(self) -> None:
        """Close all pages."""
        for context in self._contexts:
            context.close()

    def _keep_message(self, message: ConsoleMessage) -> None:
        self.complaints.append(f"{message.type}: {message.text}")

    def _keep_request(self, request: Request) -> None:
        if not (request.is_navigation_request() or request.url.startswith("data:")):
            self.complaints.append(f"request: {request.url[:200]}")

    def _keep_failure(self, request: Request) -> None:
        self.complaints.append(f"failed ({request.failure}): {request.url[:200]}")

    def _keep_error(self, error: Error) -> None:
        self.complaints.append(f"error: {error.message}")


def read_rows(table: Locator) -> Rows:
    """Return the texts of a table's rows, without its head."""
    rows: Rows = table.evaluate(_READ_ROWS)
    return rows


def find_table(page: Page, section: str, caption: str) -> Locator:
    """Return the table of a panel whose caption begins with a text."""
    tables = page.locator(f"#{section} table")
    return tables.filter(has=page.locator("caption").filter(has_text=caption)).first


def read_table(page: Page, section: str, caption: str) -> Rows:
    """Return the rows of the table of a panel whose caption begins with a text."""
    return read_rows(find_table(page, section, caption))


def read_twin(page: Page, section: str) -> Rows:
    """Return the rows of the table behind a panel's chart, which is opened."""
    twin = page.locator(f"#{section} details.twin")
    if twin.get_attribute("open") is None:
        twin.locator("summary").click()
    table = twin.locator("table")
    table.wait_for()
    return read_rows(table)


def read_address(page: Page) -> str:
    """Return the hash of the page's address as it is now; `Page.url` follows some time later."""
    hash_: str = page.evaluate("location.hash")
    return hash_


def choose(page: Page, label: str, option: str) -> None:
    """Choose from one of the lists of the bar at the top, by what the list says."""
    select = page.locator(".selection label").filter(has_text=label).locator("select")
    select.select_option(label=option)
