"""Measure pages: their size, the time until they are open, and until they answer a click.

    python -m benchmarks.page                  all geometries
    python -m benchmarks.page "26 x 64"        those whose name has these letters
    python -m benchmarks.page page.html        a page that exists

Times are those of `performance.now` in the page, in Chromium without a window: from the start of
the navigation until all panels stand, and from a click until the next frame is on the screen. In
brackets: the processor time of the page's thread, which other work on the machine affects less.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
from playwright.sync_api import Browser, CDPSession, Page, sync_playwright

from moetool.library.report import write_report
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
    print(
        "| trace | tokens | made in, s | size, kB | open, ms | " + ", ms | ".join(CLICKS) + ", ms |"
    )
    print("|---|---:|---:|---:|---:|" + "---:|" * len(CLICKS))
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        path = find_browser(playwright.chromium)
        with playwright.chromium.launch(executable_path=path, args=["--no-sandbox"]) as browser:
            if wanted.endswith(".html"):
                print(show_row(browser, Path(wanted).resolve(), name=wanted))
                return
            for name, shape in GEOMETRIES.items():
                if wanted in name:
                    print(measure(browser, Path(folder), name, shape), flush=True)


def measure(browser: Browser, folder: Path, name: str, shape: Shape | None) -> str:
    """Return a row of the table for a trace that is made first."""
    trace, page = folder / "trace.parquet", folder / "page.html"
    if shape is None:
        run_main(
            *("route-trace", "demo", "--prompts", Path("sample_prompts").resolve()),
            *("-o", trace, "--force"),
            cwd=folder,
        )
        places = pq.read_table(trace, columns=["prompt_id", "position"]).to_pandas()
        num_tokens = f"{len(places.drop_duplicates()):,}"
    else:
        write_trace(trace, make_trace(shape), metadata=describe(shape))
        num_tokens = f"{sum(shape.lengths):,}"
    start = time.perf_counter()
    write_report(trace, page, overwrite=True)
    made = f"{time.perf_counter() - start:.1f}"
    return show_row(browser, page, name=name, num_tokens=num_tokens, made=made)


def show_row(
    browser: Browser, page: Path, *, name: str, num_tokens: str = "", made: str = ""
) -> str:
    """Return a row of the table, with medians."""
    runs = [open_once(browser, page) for _ in range(3)]
    times = [
        "{:.0f} ({:.0f})".format(
            *(
                statistics.median(part)
                for part in zip(*(one for run in runs for one in run[kind]), strict=True)
            )
        )
        for kind in runs[0]
    ]
    size = f"{page.stat().st_size / 1000:,.0f}"
    return f"| {' | '.join([name, num_tokens, made, size, *times])} |"


def open_once(browser: Browser, path: Path) -> dict[str, list[tuple[float, float]]]:
    """Return the milliseconds of opening a page and of each click, by kind: wall, processor."""
    context = browser.new_context(viewport={"width": 1300, "height": 900})
    page = context.new_page()
    page.add_init_script(WATCH)
    session = context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(path.as_uri())
    page.wait_for_function("window.readyAt", timeout=120_000)
    times = {"open": [(page.evaluate("window.readyAt"), read_processor_ms(session))]}
    for kind, selector in CLICKS.items():
        times[kind] = list(press_all(page, session, selector))
    context.close()
    return times


def press_all(page: Page, session: CDPSession, selector: str) -> Iterator[tuple[float, float]]:
    """Press some of the elements, one after the other, none of them twice in a row."""
    elements = page.locator(selector)
    count = elements.count()
    for number in range(REPEATS):
        element = elements.nth((1 + number) % count).element_handle()
        start = read_processor_ms(session)
        wall: float = element.evaluate(PRESS)
        yield wall, read_processor_ms(session) - start


def read_processor_ms(session: CDPSession) -> float:
    """Return the processor time that the page's thread has taken."""
    metrics = session.send("Performance.getMetrics")["metrics"]
    seconds: float = next(one["value"] for one in metrics if one["name"] == "TaskDuration")
    return 1000 * seconds


if __name__ == "__main__":
    main()
