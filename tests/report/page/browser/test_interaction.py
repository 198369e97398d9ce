"""One selection links all panels, by pointer and by keyboard, and is kept in the address."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.report.page.browser.conftest import OpenPage
from tests.report.page.browser.opening import (
    choose,
    find_table,
    read_address,
    read_rows,
)
from tests.report.page.browser.results import Results

NONE = "none"


@pytest.fixture
def page(open_page: OpenPage, page_file: Path) -> Page:
    return open_page(page_file)


def read_hash(page: Page) -> dict[str, str]:
    """Return the selection in the address."""
    text = read_address(page).removeprefix("#")
    return dict(part.split("=") for part in text.split("&") if part)


def read_bar(page: Page) -> list[str]:
    """Return what the bar's lists of layers, experts and domains say."""
    chosen: list[str] = page.locator(".selection select").evaluate_all(
        "all => all.slice(0, 3).map(one => one.selectedOptions[0].text)"
    )
    return chosen


def read_prompt(page: Page) -> str:
    """Return the id of the prompt in the reader."""
    return page.locator("#reader h3").inner_text().split(" · prompt ")[1]


def point_at(page: Page, panel: str, row: str, column: str) -> None:
    """Move the pointer down a panel's grid, then to the right, until it reads a cell."""
    canvas = page.locator(f"#{panel} canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box
    x, y = 68, 20
    while not (text := page.locator(f"#{panel} .readout").inner_text()).startswith(row):
        assert y < box["height"], text
        page.mouse.move(box["x"] + x, box["y"] + (y := y + 10))
    while column not in (text := page.locator(f"#{panel} .readout").inner_text()):
        assert x < box["width"], text
        page.mouse.move(box["x"] + (x := x + 20), box["y"] + y)


def test_a_cell_of_the_map_selects_its_expert_everywhere(page: Page) -> None:
    point_at(page, "map", "Layer 2,", ", expert 4:")
    page.mouse.down()
    page.mouse.up()
    assert read_hash(page) == {"layer": "2", "expert": "4"}
    assert read_bar(page) == ["2", "4", "all"]
    assert page.locator("#expert h2").inner_text() == "Expert 4 of layer 2"
    assert page.locator("#domains h3").first.inner_text().endswith("layer 2")
    assert page.locator("#togetherness p").nth(1).inner_text().startswith("Layer 2:")
    assert page.locator("#reader .chip").all_inner_texts() == ["expert 4"]
    selected = page.locator("#load .bars tr.selected th, #domains .bars tr.selected th")
    assert set(selected.all_inner_texts()) == {"2"}
    # The expert of another layer with the same number.
    point_at(page, "map", "Layer 3,", ", expert 4:")
    page.mouse.down()
    page.mouse.up()
    assert read_hash(page) == {"layer": "3", "expert": "4"}
    assert read_bar(page) == ["3", "4", "all"]


def test_lists_bars_and_contexts_select(page: Page) -> None:
    page.locator("#load .bars").first.get_by_role("button", name="3", exact=True).click()
    assert read_bar(page) == ["3", NONE, "all"]
    choose(page, "Expert", "5")
    page.locator("#expert").get_by_role("button", name="law", exact=True).click()
    assert read_bar(page) == ["3", "5", "law"]
    prompts = page.locator(".prompts button .muted").all_inner_texts()
    assert len(prompts) == 4
    assert all(" · law · " in text for text in prompts)
    # The reader shows the first of them.
    assert page.locator(".prompts button[aria-current] .muted").inner_text() == prompts[0]
    assert read_prompt(page) == prompts[0].rpartition(" · ")[2]
    page.locator("#expert").get_by_role("button", name="law", exact=True).click()
    assert read_bar(page) == ["3", "5", "all"]
    partner = find_table(page, "expert", "How often both are chosen").get_by_role("button").first
    name = partner.inner_text().removeprefix("expert ")
    partner.click()
    assert read_bar(page) == ["3", name, "all"]
    # A context leads to its token in the reader, whose experts are shown.
    page.locator("#expert .contexts button").first.click()
    token = page.locator("#reader .token.selected")
    assert token.get_attribute("data-token") == read_hash(page)["token"]
    rows = read_rows(find_table(page, "reader", "Experts of"))
    assert any(cell.startswith(name) for cell in rows[2][1:])
    # Experts of another layer share nothing but their number.
    choose(page, "Layer", "1")
    assert read_bar(page) == ["1", NONE, "all"]
    page.get_by_role("button", name="Clear").click()
    assert read_hash(page) == {"layer": "1", **_prompt(page)}


def _prompt(page: Page) -> dict[str, str]:
    """Return the prompt in the address, if it is not the one that the page opens with."""
    found = read_hash(page)
    return {"prompt": found["prompt"]} if "prompt" in found else {}


def test_going_back_undoes_selections_but_not_steps_over_tokens(page: Page) -> None:
    choose(page, "Layer", "2")
    choose(page, "Expert", "3")
    tokens = page.locator("#reader .token")
    tokens.first.click()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert read_hash(page) == {"layer": "2", "expert": "3", "token": "3"}
    choose(page, "Domain", "prose")
    assert "token" not in read_hash(page)
    for hash_, bar, token in [
        ("#layer=2&expert=3&token=3", ["2", "3", "all"], "3"),
        ("#layer=2", ["2", NONE, "all"], None),
        ("", ["1", NONE, "all"], None),
    ]:
        page.go_back()
        page.wait_for_function("hash => location.hash === hash", arg=hash_)
        assert read_bar(page) == bar
        selected = page.locator("#reader .token.selected")
        assert selected.count() == (0 if token is None else 1)
        assert token is None or selected.get_attribute("data-token") == token
    page.go_forward()
    page.wait_for_function("location.hash === '#layer=2'")
    assert read_bar(page) == ["2", NONE, "all"]


def test_pinned_experts_alone_have_a_colour(page: Page, results: Results) -> None:
    chip = page.locator("#reader .chip").nth(1)
    name = chip.inner_text()
    expert = name.removeprefix("expert ")
    chip.click()
    assert read_hash(page)["pins"] == expert
    assert page.locator("#reader .chip").all_inner_texts() == [name]
    colors = page.locator("#reader .token").evaluate_all(
        "all => all.map(one => one.style.backgroundColor)"
    )
    prompt = read_prompt(page)
    mine = [one for one in results.decisions if (one.prompt_id, one.layer) == (prompt, 1)]
    chosen = [int(expert) in one.experts for one in mine]
    assert [bool(color) for color in colors] == chosen
    assert len(set(colors)) == 2
    # The number stands above the first of several tokens in a row.
    marks = page.locator("#reader .token").evaluate_all("all => all.map(one => one.dataset.mark)")
    first = [now and not before for now, before in zip(chosen, [False, *chosen], strict=False)]
    assert marks == [expert if one else None for one in first]
    page.locator("#reader .chip").click()
    assert "pins" not in read_hash(page)


def test_pins_keep_their_colour_as_others_go(open_page: OpenPage, page_file: Path) -> None:
    page = open_page(page_file, hash_="#pins=1.11.7")
    read = "all => all.map(one => [one.textContent, one.style.backgroundColor])"
    before = page.locator("#reader .chip").evaluate_all(read)
    assert [name for name, _ in before] == ["expert 1", "expert 11", "expert 7"]
    assert len({color for _, color in before}) == 3
    page.locator("#reader .chip").first.click()
    assert page.locator("#reader .chip").evaluate_all(read) == before[1:]


def test_address_opens_the_same_page_again(open_page: OpenPage, page_file: Path) -> None:
    hash_ = "#layer=3&expert=5&domain=law&token=100&color=lift&pins=1.7&theme=dark"
    first = open_page(page_file, hash_=hash_)
    # Any change writes the address anew, with all parts.
    choose(first, "Theme", "light")
    assert read_hash(first) == {
        "layer": "3",
        "expert": "5",
        "domain": "law",
        "token": "100",
        "color": "lift",
        "pins": "1.7",
        "theme": "light",
    }
    second = open_page(page_file, hash_=read_address(first))
    assert second.locator("main").inner_text() == first.locator("main").inner_text()
    assert read_bar(second) == ["3", "5", "law"]
    assert second.locator("html").get_attribute("data-theme") == "light"
    assert second.locator("#reader .token.selected").get_attribute("data-token") == "100"


HOSTILE_HASHES = (
    *("#layer=999&expert=-1", "#layer=1e9&expert=0x1", "#expert=__proto__&domain=constructor"),
    *("#token=99999999999&prompt=5000", "#theme=<img src=x onerror=alert(1)>", "#%E0%A4%A"),
    *("#color=toString&pins=0.1.1e5.-2..", f"#layer={'9' * 10_000}", "#&&&===", "#layer=NaN"),
)


def test_addresses_that_no_page_wrote_select_nothing(page: Page) -> None:
    for hash_ in HOSTILE_HASHES:
        choose(page, "Layer", "2")
        choose(page, "Expert", "3")
        page.evaluate("hash => { location.hash = hash; }", hash_)
        page.wait_for_function("document.querySelector('.selection select').value === '0'")
        assert read_bar(page) == ["1", NONE, "all"], hash_
        assert page.locator("#expert h2").inner_text() == "One expert"
        assert page.locator("html").get_attribute("data-theme") == "auto"
        assert page.locator("#reader .token").count() == 24


def test_arrows_walk_through_a_grid_and_enter_selects(page: Page) -> None:
    page.locator("#map canvas").focus()
    readout = page.locator("#map .readout")
    for key, place in [
        ("ArrowRight", "Layer 1, expert 1:"),
        ("ArrowDown", "Layer 2, expert 1:"),
        ("ArrowLeft", "Layer 2, expert 0:"),
        ("ArrowLeft", "Layer 2, expert 0:"),
        ("ArrowDown", "Layer 3, expert 0:"),
        ("ArrowDown", "Layer 3, expert 0:"),
        ("ArrowUp", "Layer 2, expert 0:"),
        ("ArrowRight", "Layer 2, expert 1:"),
    ]:
        page.keyboard.press(key)
        assert readout.inner_text().startswith(place)
    page.keyboard.press("Enter")
    assert read_hash(page) == {"layer": "2", "expert": "1"}
    page.locator("#domains canvas").focus()
    for key in ("ArrowDown", "ArrowRight", "Space"):
        page.keyboard.press(key)
    assert read_bar(page)[2] == "law"


def test_keys_walk_through_tokens_and_layers(page: Page) -> None:
    tokens = page.locator("#reader .token")

    def focused() -> str | None:
        number: str | None = page.evaluate("document.activeElement.dataset.token ?? null")
        return number

    # One stop for Tab, whatever the number of tokens.
    assert tokens.evaluate_all("all => all.filter(one => one.tabIndex === 0).length") == 1
    tokens.first.focus()
    for key, place in [
        *(("ArrowRight", "1"), ("ArrowRight", "2"), ("ArrowLeft", "1"), ("End", "23")),
        *(("ArrowRight", "23"), ("Home", "0"), ("ArrowLeft", "0"), ("ArrowRight", "1")),
    ]:
        page.keyboard.press(key)
        assert focused() == place
    assert "token" not in read_hash(page)
    assert find_table(page, "reader", "Experts of").is_visible()
    page.keyboard.press("Enter")
    assert read_hash(page)["token"] == "1"
    page.keyboard.press("ArrowRight")
    assert read_hash(page)["token"] == "2"
    page.keyboard.press("ArrowDown")
    assert read_hash(page)["layer"] == "2"
    assert focused() == "2"
    page.keyboard.press("Space")
    assert "token" not in read_hash(page)


def test_keys_that_work_everywhere(page: Page) -> None:
    for key, layer in (("[", "1"), ("]", "2"), ("]", "3"), ("]", "3"), ("[", "2")):
        page.keyboard.press(key)
        assert read_bar(page)[0] == layer
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "prompt-search"
    page.keyboard.type("]p1")
    assert read_bar(page)[0] == "2"
    assert page.locator("#prompt-search").input_value() == "]p1"
    # Esc clears the search, then leaves it, then clears the selection.
    choose(page, "Expert", "7")
    page.keyboard.press("/")
    page.keyboard.press("Escape")
    assert page.locator("#prompt-search").input_value() == ""
    assert page.locator(".prompts button").count() == 12
    assert page.evaluate("document.activeElement.id") == "prompt-search"
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") != "prompt-search"
    assert read_bar(page) == ["2", "7", "all"]
    choose(page, "Domain", "law")
    page.locator("#reader .token").first.click()
    page.keyboard.press("Escape")
    assert read_hash(page) == {"layer": "2", **_prompt(page)}
    assert read_bar(page) == ["2", NONE, "all"]


@pytest.mark.parametrize(
    ("panel", "button"),
    [("load", "3"), ("domains", "2"), ("expert", "law"), ("togetherness", None), ("reader", None)],
)
def test_keyboard_stays_at_the_button_that_was_pressed(
    open_page: OpenPage, page_file: Path, panel: str, button: str | None
) -> None:
    page = open_page(page_file, hash_="#layer=1&expert=4")
    buttons = page.locator(f"#{panel} :is(.bars, .prompts)").get_by_role("button")
    pressed = buttons.get_by_text(button, exact=True) if button else buttons.nth(1)
    pressed.focus()
    before = page.evaluate("document.activeElement.textContent")
    old = read_address(page)
    page.keyboard.press("Enter")
    assert read_address(page) != old
    assert page.evaluate("document.activeElement.tagName") == "BUTTON"
    assert page.evaluate("document.activeElement.textContent") == before


def test_search_finds_texts_ids_and_nothing(page: Page) -> None:
    search, prompts = page.locator("#prompt-search"), page.locator(".prompts button")
    assert prompts.count() == 12
    # One token of the trace is a zebra.
    search.fill(" ZEBRA ")
    assert prompts.count() == 1
    prompts.first.click()
    assert " zebra" in page.locator("#reader .token").all_text_contents()
    search.fill("p11")
    assert prompts.locator(".muted").all_inner_texts() == ["24 tokens · prose · p11"]
    page.keyboard.press("Enter")
    assert read_prompt(page) == "p11"
    search.fill("no such words")
    assert prompts.count() == 0
    assert page.locator(".prompts").inner_text() == "No prompt has these words."


def test_list_of_prompts_is_one_stop_whose_arrows_move(page: Page) -> None:
    prompts = page.locator(".prompts button")
    stops = "all => all.filter(one => one.tabIndex === 0).map(one => one.ariaCurrent)"
    assert prompts.evaluate_all(stops) == ["true"]
    page.locator("#prompt-search").focus()
    place = "[...document.querySelectorAll('.prompts button')].indexOf(document.activeElement)"
    for key, at in [
        *(("ArrowDown", 0), ("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1), ("ArrowUp", 0)),
        *(("ArrowUp", -1), ("ArrowDown", 0), ("ArrowDown", 1), ("Enter", 1)),
    ]:
        page.keyboard.press(key)
        assert page.evaluate(place) == at, key
    assert read_hash(page)["prompt"] == "1"
    assert prompts.evaluate_all(stops) == ["true"]
    assert prompts.nth(1).get_attribute("aria-current") == "true"
