"""Photograph the page about the demonstration model for the README.

    python tools/photograph_page.py     write docs/images/page.webp

It takes Chromium, which `chromium` or `google-chrome` on the PATH starts.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

REPOSITORY = Path(__file__).resolve().parent.parent
IMAGE = REPOSITORY / "docs" / "images" / "page.webp"

_TRACE = ("route-trace", "demo", "--prompts", "sample_prompts", "-q")
_WIDTH, _HEIGHT = 1240, 940
# Of the prompt that the page opens with.
_TOKEN = 30
_QUALITY = 80


def main() -> None:
    """Write the image."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        trace = Path(folder) / "demo.parquet"
        command = [
            sys.executable,
            "-m",
            "moetool",
            *_TRACE,
            "-o",
            str(trace),
            "--report",
            str(page),
        ]
        subprocess.run(command, cwd=REPOSITORY, check=True)
        IMAGE.write_bytes(photograph(page))
    print(f"wrote {IMAGE.relative_to(REPOSITORY)} ({IMAGE.stat().st_size:,} bytes)")


def photograph(path: Path) -> bytes:
    """Return the first screen of a page as WebP."""
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    # Chromium refuses to start its sandbox as root.
    args = ["--no-sandbox"] if os.geteuid() == 0 else []
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=browser_path, args=args) as browser,
    ):
        page = browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT})
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        page.locator(".token").nth(_TOKEN).dispatch_event("click")
        session = page.context.new_cdp_session(page)
        found = session.send("Page.captureScreenshot", {"format": "webp", "quality": _QUALITY})
        return base64.b64decode(found["data"])


if __name__ == "__main__":
    main()
