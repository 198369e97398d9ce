"""Links between the project's pages lead somewhere, and every command has a page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moetool.cli.main import app
from tools.refresh_docs import REPOSITORY

FOLDERS = (
    *(".", "docs", "docs/models", "docs/traces", "docs/questions"),
    *("benchmarks", "sample_prompts", "moetool/catalogue/demo"),
)
PAGES = [
    page.relative_to(REPOSITORY).as_posix()
    for folder in FOLDERS
    for page in sorted((REPOSITORY / folder).glob("*.md"))
]


def find_anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_pages_are_found() -> None:
    assert {"README.md", "docs/models/inspect.md", "docs/architecture.md"} <= set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name: str) -> None:
    page = REPOSITORY / name
    text = page.read_text(encoding="utf-8")
    for path, _, anchor in re.findall(r"\]\((?!http)([^)#]*)(#([^)\s]+))?\)", text):
        target = page.parent / path if path else page
        assert target.exists(), f"{name} links to {path}"
        if anchor:
            assert anchor in find_anchors(target), f"{name} links to {path}#{anchor}"


@pytest.mark.parametrize("command", [str(item.name) for item in app.registered_commands])
def test_every_command_has_a_page_or_a_section(command: str) -> None:
    shared = {"models": "## Published models", "gpus": "## Known GPUs"}
    heading = shared.get(command, f"# moetool {command}")
    pages = [page.read_text(encoding="utf-8") for page in (REPOSITORY / "docs").rglob("*.md")]
    (page,) = [page for page in pages if f"\n{heading}\n" in f"\n{page}"]
    assert f"moetool {command}" in page
