"""Measure pages: their size, the time until they are open, and until they answer a click.

    python -m benchmarks.page                  all geometries
    python -m benchmarks.page "26 x 64"        those whose name has these letters

Times are those of `performance.now` in the page, in Chromium without a window: from the start of
the navigation until all panels stand, and from a click until the next frame is on the screen.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from moetool.library.questions.report import write_report
from tests.command import run_main
from tests.report.page.browser.opening import find_browser
from tests.report.page.browser.traces import Shape, describe, make_trace, write_trace

REPEATS = 7
DEMO = "demo over sample_prompts"
GEOMETRIES = {
    "2 x 8, 6 prompts": Shape(lengths=(20,) * 6, num_layers=2, num_experts=8),
    DEMO: None,
    "16 x 64 top-8, 200 prompts": Shape((50,) * 200, num_layers=16, num_experts=64, top_k=8),
    "26 x 64 top-6, 200 prompts": Shape((50,) * 200, num_layers=26, num_experts=64, top_k=6),
    "58 x 256 top-8, 200 prompts": Shape((50,) * 200, num_layers=58, num_experts=256, top_k=8),
    "58 x 256 top-8, 200 long prompts": Shape((100,) * 200, 58, 256, top_k=8),
}

# Sets a mark once all panels stand.
WATCH = """new MutationObserver(() => { window.readyAt ??= performance.now(); })
  .observe(document, { attributes: true, subtree: true, attributeFilter: ["data-ready"] });"""
# Presses an element, and returns the milliseconds until the frame after is on the screen.
PRESS = """element => new Promise(done => {
  const start = performance.now();
  if (element instanceof HTMLOptionElement) {
    element.parentElement.value = element.value;
    element.parentElement.dispatchEvent(new Event("change"));
  } else {
    element.click();
  }
  requestAnimationFrame(() => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => done(performance.now() - start);
    port2.postMessage(null);
  });
})"""
CLICKS = {
    "expert": ".selection label:nth-of-type(2) option",
    "layer": ".selection label:nth-of-type(1) option",
    "token": "#reader .token",
    "prompt": ".prompts button",
    "domain": ".selection label:nth-of-type(3) option",
}


def main() -> None:
    """Print the table."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    print("| trace | tokens | made in, s | size, kB | open, ms | " + " | ".join(CLICKS) + " |")
    print("|---|---:|---:|---:|---:|" + "---:|" * len(CLICKS))
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        path = find_browser(playwright.chromium)
        with playwright.chromium.launch(executable_path=path, args=["--no-sandbox"]) as browser:
            for name, shape in GEOMETRIES.items():
                if wanted in name:
                    print(measure(browser, Path(folder), name, shape), flush=True)


def measure(browser: Browser, folder: Path, name: str, shape: Shape | None) -> str:
    """Return a row of the table."""
    trace, page = folder / "trace.parquet", folder / "page.html"
    if shape is None:
        run_main(
            *("route-trace", "demo", "--prompts", Path("sample_prompts").resolve()),
            *("-o", trace, "--force"),
            cwd=folder,
        )
        num_tokens = 0
    else:
        write_trace(trace, make_trace(shape), metadata=describe(shape))
        num_tokens = sum(shape.lengths)
    start = time.perf_counter()
    write_report(trace, page, overwrite=True)
    made = time.perf_counter() - start
    opened, clicks = zip(*(open_once(browser, page) for _ in range(3)), strict=True)
    medians = [
        statistics.median(value for found in clicks for value in found[kind]) for kind in CLICKS
    ]
    cells = [
        *(name, f"{num_tokens:,}" if num_tokens else "", f"{made:.1f}"),
        *(f"{page.stat().st_size / 1000:,.0f}", f"{statistics.median(opened):,.0f}"),
        *(f"{median:.0f}" for median in medians),
    ]
    return f"| {' | '.join(cells)} |"


def open_once(browser: Browser, path: Path) -> tuple[float, dict[str, list[float]]]:
    """Return the milliseconds until the page is open, and until it answers clicks of each kind."""
    context = browser.new_context(viewport={"width": 1300, "height": 900})
    page = context.new_page()
    page.add_init_script(WATCH)
    page.goto(path.as_uri())
    page.wait_for_function("window.readyAt", timeout=120_000)
    opened: float = page.evaluate("window.readyAt")
    clicks = {kind: list(press_all(page, selector)) for kind, selector in CLICKS.items()}
    context.close()
    return opened, clicks


def press_all(page: Any, selector: str) -> Iterator[float]:
    """Press some of the elements, one after the other, none of them twice in a row."""
    elements = page.locator(selector)
    count = elements.count()
    for number in range(REPEATS):
        yield elements.nth(1 + number % max(1, count - 1)).evaluate(PRESS)


if __name__ == "__main__":
    main()
