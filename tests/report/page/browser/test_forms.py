"""The page in each form that people read it in: dark, narrow, touched, on paper, as plain tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from moetool.library.report import write_report
from tests.report.page.browser.conftest import OpenPage
from tests.report.page.browser.opening import Opening, read_address, read_rows, read_twin
from tests.report.page.browser.results import Results
from tests.report.page.browser.shown import differences, interval, shows
from tests.report.page.browser.traces import Shape, describe, make_trace, write_trace

LIGHT, DARK = "rgb(255, 255, 255)", "rgb(13, 17, 23)"
ALL_SELECTED = "#layer=2&expert=4&token=30&domain=law"
NARROW = {"viewport": {"width": 400, "height": 800}}
PANELS = (
    *("reader", "map", "expert", "domains", "togetherness", "load"),
    *("compute", "comparison", "data"),
)


def read_background(page: Page) -> str:
    color: str = page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    return color


def read_pixels(page: Page) -> list[str]:
    """Return the pictures of all grids, which are painted before the next frame."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
    pictures: list[str] = page.locator("canvas").evaluate_all(
        "all => all.map(one => one.toDataURL())"
    )
    return pictures


def overflows(page: Page) -> list[str]:
    """Return what is wider than the page."""
    found: list[str] = page.evaluate(
        """() => {
          const width = document.documentElement.clientWidth;
          const isWide = document.documentElement.scrollWidth > width;
          return isWide ? [...document.querySelectorAll("main *")]
            .filter(one => one.getBoundingClientRect().right > width + 1)
            .map(one => one.outerHTML.slice(0, 100)) : [];
        }"""
    )
    return found


def test_theme_follows_the_system_until_one_is_chosen(open_page: OpenPage, page_file: Path) -> None:
    page = open_page(page_file, color_scheme="light")
    assert read_background(page) == LIGHT
    light = read_pixels(page)
    page.emulate_media(color_scheme="dark")
    assert read_background(page) == DARK
    theme = page.locator(".selection label").filter(has_text="Theme").locator("select")
    by_system = open_page(page_file, color_scheme="dark")
    assert read_background(by_system) == DARK
    dark = read_pixels(by_system)
    assert dark != light
    # Grids are drawn anew as the system changes.
    assert read_pixels(page) == dark
    theme.select_option(label="light")
    assert read_background(page) == LIGHT
    assert read_pixels(page) == light
    page.emulate_media(color_scheme="light")
    theme.select_option(label="dark")
    assert read_background(page) == DARK
    assert read_pixels(page) == dark
    assert read_address(page).endswith("theme=dark")


def test_narrow_windows_do_not_scroll_sideways(open_page: OpenPage, page_file: Path) -> None:
    for hash_ in ("", ALL_SELECTED):
        page = open_page(page_file, hash_=hash_, **NARROW)
        for summary in page.locator("details:not([open]) > summary").element_handles():
            summary.click()
        assert page.locator("details[open]").count() == 4
        assert overflows(page) == []
        # What is wider scrolls within its own box.
        assert page.evaluate("document.documentElement.scrollWidth") == 400


def test_targets_are_large_enough_for_fingers(open_page: OpenPage, page_file: Path) -> None:
    page = open_page(page_file, hash_=ALL_SELECTED, has_touch=True, is_mobile=True, **NARROW)
    small = page.locator("button, select, input, summary, nav a").evaluate_all(
        """all => all.filter(one => one.checkVisibility())
          .map(one => [one.outerHTML.slice(0, 80), one.getBoundingClientRect()])
          .filter(([, box]) => box.height < 43.5 || box.width < 43.5)
          .map(([html, box]) => `${html} ${box.width} x ${box.height}`)"""
    )
    assert small == []
    assert overflows(page) == []
    canvas = page.locator("#map canvas")
    canvas.scroll_into_view_if_needed()
    canvas.tap(position={"x": 90, "y": 25})
    assert read_address(page).startswith("#layer=1&expert=1&")


def test_motion_is_left_out_where_it_is_not_wanted(open_page: OpenPage, page_file: Path) -> None:
    page = open_page(page_file, reduced_motion="reduce")
    style = "getComputedStyle(document.documentElement).scrollBehavior"
    assert page.evaluate(style) == "auto"


def test_paper_has_all_panels_in_black_on_white(open_page: OpenPage, page_file: Path) -> None:
    pictures = []
    for theme in ("light", "dark"):
        page = open_page(page_file, hash_=f"{ALL_SELECTED}&theme={theme}")
        # The width of A4 between its margins.
        page.set_viewport_size({"width": 718, "height": 1000})
        page.emulate_media(media="print")
        assert read_background(page) == LIGHT
        for panel in PANELS:
            assert page.locator(f"#{panel} h2").is_visible()
            assert page.locator(f"#{panel} :is(table, canvas)").first.is_visible()
        assert page.locator("#reader .token").first.is_visible()
        assert page.locator("#verdict .tile").first.is_visible()
        assert page.locator(".selection").is_hidden()
        cut = page.locator(".scroll").evaluate_all(
            """all => all.filter(one => one.scrollHeight > one.clientHeight + 1)
              .map(one => one.outerHTML)"""
        )
        assert cut == []
        assert overflows(page) == []
        assert list_pale(page) == []
        pictures.append(read_pixels(page))
        assert page.pdf().startswith(b"%PDF")
    assert pictures[0] == pictures[1]


def list_pale(page: Page) -> list[str]:
    """Return elements whose text is too bright for paper."""
    found: list[str] = page.locator(
        "main :is(p, td, th, button, h2, h3, li, caption)"
    ).evaluate_all(
        """all => {
          const luminance = color => {
            const [red, green, blue] = color.match(/\\d+/g).map(Number);
            return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
          };
          return all.filter(one => one.checkVisibility() && one.textContent.trim())
          .map(one => [one.outerHTML.slice(0, 80), getComputedStyle(one)])
          .filter(([, style]) => style.backgroundColor === "rgba(0, 0, 0, 0)"
            && luminance(style.color) > 110)
          .map(([html, style]) => `${html} ${style.color}`); }"""
    )
    return found


def test_tables_stand_in_where_scripts_are_off(
    open_page: OpenPage, page_file: Path, results: Results
) -> None:
    page = open_page(page_file, java_script_enabled=False)
    assert "Scripts are off" in (page.locator("noscript").text_content() or "")
    assert page.locator("#verdict .tile").first.is_visible()
    assert page.locator("#failure").is_hidden()
    assert page.locator("#panels").inner_text() == ""
    tables = page.locator("#without-scripts table")
    strongest, information, loads = (read_rows(tables.nth(index)) for index in range(3))
    certain = [one for one in results.specialization.experts if one.is_domain_expert]
    assert len(strongest) == min(20, len(certain))
    lifts = sorted((one.lift or 0.0 for one in certain), reverse=True)
    for shown, lift in zip(strongest, lifts, strict=False):
        test = results.tests[int(shown[0]), int(shown[1]), shown[2]]
        limits = interval(shown[4])
        assert limits
        assert differences([shown[3], *limits], [lift, test.lift_low, test.lift_high]) == []
        assert shows(shown[3], test.lift)
    for shown, told in zip(information, results.specialization.layers, strict=True):
        assert differences(shown[:2], [told.layer, told.normalized]) == []
        assert shows(shown[3], told.conditional_normalized)
    for shown, layer in zip(loads, results.balance.layers, strict=True):
        busiest, at_random = layer.max_violation, layer.baseline.max_violation
        assert busiest is not None
        assert at_random is not None
        assert differences(shown, [layer.layer, 1 + busiest, 1 + at_random, len(layer.dead)]) == []


@pytest.mark.parametrize("has_clipboard", [True, False])
def test_a_copy_as_csv_equals_the_table(
    open_page: OpenPage, page_file: Path, results: Results, has_clipboard: bool
) -> None:
    page = open_page(page_file, permissions=["clipboard-read", "clipboard-write"])
    if not has_clipboard:
        page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(); }")
    shown = read_twin(page, "map")
    page.locator("#map").get_by_role("button", name="Copy as CSV").click()
    page.get_by_text("36 rows copied.").wait_for()
    head, *rows = csv.reader(io.StringIO(page.evaluate("navigator.clipboard.readText()")))
    assert head == page.locator("#map .twin th").all_inner_texts()
    assert len(rows) == len(shown) == 36
    for row, texts in zip(rows, shown, strict=True):
        assert [row[0], row[1], row[4]] == [texts[0], texts[1], texts[4]]
        layer = results.balance.layers[int(row[0]) - 1]
        load = layer.load[int(row[1])]
        test = results.tests[int(row[0]), int(row[1]), row[4]]
        assert int(row[2]) == load
        assert float(row[3]) == pytest.approx(load * 12 / sum(layer.load))
        assert float(row[5]) == pytest.approx(test.lift, rel=1e-4)


@pytest.fixture(scope="module")
def small_file(folder: Path) -> Path:
    """A page with all panels and few elements: axe takes a second for each few hundred."""
    shape = Shape(lengths=(9,) * 6, num_layers=2, num_experts=6, num_prompt_tokens=7)
    paths = [
        write_trace(folder / f"small{redrawn}.parquet", rows, metadata=describe(shape))
        for redrawn in (0, 0.3)
        for rows in [make_trace(shape, redrawn=redrawn)]
    ]
    path = folder / "small.html"
    write_report(paths[0], path, compare=paths[1])
    return path


@pytest.fixture(scope="module")
def axe(browser: Browser, small_file: Path) -> Iterator[Any]:
    """Return what axe-core finds on the page with an address and the options of a context."""
    opening = Opening(browser)

    def find(hash_: str, **options: Any) -> list[str]:
        where = options.pop("where", None)
        rules = options.pop("rules", None)
        page = opening(small_file, hash_=hash_, **options)
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        asked = {
            "resultTypes": ["violations"],
            "preload": False,
            **({"rules": rules} if rules else {}),
        }
        found = Axe().run(page, context=where, options=asked).response["violations"]
        return [f"{one['id']}: {node['html'][:120]}" for one in found for node in one["nodes"]]

    yield find
    opening.close()
    assert opening.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_with_a_token_and_an_expert_selected(axe: Any, scheme: str) -> None:
    assert axe(ALL_SELECTED, color_scheme=scheme) == []


# Contrast takes axe most of its time, and the width does not change it.
@pytest.mark.parametrize("hash_", ["", ALL_SELECTED])
def test_axe_finds_nothing_in_narrow_windows(axe: Any, hash_: str) -> None:
    assert axe(hash_, rules={"color-contrast": {"enabled": False}}, **NARROW) == []


@pytest.mark.parametrize("coloring", ["expert", "lift", "confidence"])
def test_axe_finds_nothing_in_the_text_of_each_colour(axe: Any, coloring: str) -> None:
    assert axe(f"#color={coloring}", where="#reader .prompt") == []
