"""Traces that lack something, or have a lot of it, get a page that says what it can't show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from playwright.sync_api import Page

from moetool import compare_traces, measure_balance, measure_specialization
from moetool.analysis.specialization.result import Specialization
from moetool.library import report
from moetool.library.report import write_report
from moetool.trace.loads.metadata import LoadMetadata
from moetool.trace.loads.rows import LOAD_SCHEMA
from moetool.trace.loads.writing import write_loads
from tests.report.page.browser.conftest import OpenPage
from tests.report.page.browser.opening import choose, read_table, read_twin
from tests.report.page.browser.shown import shows
from tests.report.page.browser.traces import Shape, describe, make_trace, write_trace

MakeAndOpen = Callable[..., Page]


@pytest.fixture
def open_trace(
    open_page: OpenPage,
    folder: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> MakeAndOpen:
    """Write a trace of some shapes, without some columns, and open its page."""
    # Placing 512 experts on each number of GPUs takes longer than all the rest.
    monkeypatch.setattr(report, "_NUMS_GPUS", (2,))

    def make(*shapes: Shape, without: tuple[str, ...] = (), **options: object) -> Page:
        name = request.node.name.replace("/", "_")
        tables = [make_trace(shape) for shape in shapes]
        path = write_trace(
            folder / f"{name}.parquet", *tables, metadata=describe(*shapes), without=without
        )
        target = folder / f"{name}.html"
        write_report(path, target)
        assert target.stat().st_size <= 2_000_000
        return open_page(target, **options)

    return make


def read_missing(page: Page, panel: str) -> str:
    return " ".join(page.locator(f"#{panel} .missing").all_inner_texts())


def walk(page: Page) -> None:
    """Select an expert and a token of each layer's end, so that every panel draws itself."""
    layers = page.locator(".selection select").first
    last = layers.locator("option").last.inner_text()
    choose(page, "Layer", last)
    choose(page, "Expert", "0")
    assert page.locator("#expert h2").inner_text() == f"Expert 0 of layer {last}"
    for key in ("[", "]", "Escape"):
        page.keyboard.press(key)
    assert "NaN" not in page.locator("main").inner_text()
    assert "undefined" not in page.locator("main").inner_text()
    assert "Infinity" not in page.locator("main").inner_text()


def test_one_layer(open_trace: MakeAndOpen) -> None:
    page = open_trace(Shape(num_layers=1))
    walk(page)
    assert "No routed layer of the same stack follows" in read_missing(page, "togetherness")
    assert len(read_twin(page, "map")) == 12


def test_one_prompt(open_trace: MakeAndOpen) -> None:
    page = open_trace(Shape(lengths=(30,), domains=("code",)))
    walk(page)
    assert page.locator(".prompts button").count() == 1
    assert len(read_twin(page, "map")) == 36
    assert read_missing(page, "domains")


def test_no_text(open_trace: MakeAndOpen) -> None:
    page = open_trace(Shape(), without=("token", "token_id"))
    walk(page)
    assert page.locator("#reader .token").count() == 24
    page.locator("#reader .token").nth(5).click()
    assert page.locator("#reader .strip tbody tr").count() == 3
    choose(page, "Expert", "4")
    assert page.locator("#expert .contexts").count() == 0
    assert "token" in read_missing(page, "expert")


def test_no_domains(open_trace: MakeAndOpen) -> None:
    page = open_trace(Shape(), without=("domain",))
    walk(page)
    assert read_missing(page, "domains")
    assert page.locator(".selection label").filter(has_text="Domain").count() == 0
    assert len(read_twin(page, "map")[0]) == 4


def test_no_weights(open_trace: MakeAndOpen) -> None:
    page = open_trace(Shape(), without=("weight",))
    walk(page)
    colors = page.locator("#reader label").filter(has_text="Colour").locator("option")
    assert "weight of the first choice" not in colors.all_inner_texts()
    page.locator("#reader .token").first.click()
    assert "weights" not in page.locator("#reader .strip").inner_text()


def test_no_ranks(open_trace: MakeAndOpen) -> None:
    page = open_trace(Shape(), without=("rank",))
    walk(page)
    page.locator("#reader .token").first.click()
    assert page.locator("#reader .strip tbody tr").count() == 3


def test_many_layers_on_a_dense_screen(open_trace: MakeAndOpen) -> None:
    shape = Shape(lengths=(4,) * 2, num_layers=400, num_experts=4, top_k=1, domains=("code",))
    page = open_trace(shape, device_scale_factor=3)
    walk(page)
    assert page.locator(".selection select").first.locator("option").count() == 400
    # A canvas that is too large stays blank.
    painted = page.locator("#map canvas").evaluate(
        """one => {
          const { width, height } = one;
          const { data } = one.getContext("2d").getImageData(0, height - 400, width, 400);
          return data.some(value => value > 0);
        }"""
    )
    assert painted
    choose(page, "Layer", "399")
    assert page.locator("#load tr.selected th").first.inner_text() == "399"
    # A table shows its first rows; the copy has all.
    assert len(read_twin(page, "map")) == 500
    assert "of 1600 rows" in page.locator("#map .twin caption").inner_text()


def test_many_experts(open_trace: MakeAndOpen) -> None:
    shape = Shape(lengths=(30,) * 2, num_layers=2, num_experts=512, top_k=8)
    page = open_trace(shape)
    walk(page)
    choose(page, "Expert", "511")
    assert page.locator("#expert h2").inner_text() == "Expert 511 of layer 2"
    # Ids of two bytes: those of the strip are those of the trace.
    page.locator("#reader .token").nth(7).click()
    shown = page.locator("#reader .strip tbody button").all_inner_texts()
    rows = make_trace(shape).to_pandas()
    name = page.locator("#reader h3").inner_text().split(" · prompt ")[1]
    mine = rows[(rows["prompt_id"] == name) & (rows["position"] == 7)]
    assert [int(text) for text in shown] == mine.sort_values(["layer", "rank"])["expert"].tolist()
    assert page.locator("#togetherness canvas").is_hidden()
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    # The grid scrolls to the cell that the keyboard is on.
    page.locator("#map canvas").focus()
    for key in ("ArrowLeft", "ArrowLeft", "ArrowLeft"):
        page.keyboard.press(key)
    assert page.locator("#map .readout").inner_text().startswith("Layer 2, expert 508:")
    left = page.locator("#map .grid").evaluate("one => [one.scrollLeft, one.clientWidth]")
    assert left[0] <= 64 + 508 * 4 <= left[0] + left[1]


def test_prompts_of_thousands_of_tokens(open_trace: MakeAndOpen) -> None:
    shape = Shape(lengths=(3200, 20), num_layers=1, num_experts=4, top_k=1, domains=("code",))
    page = open_trace(shape)
    tokens = page.locator("#reader .token")
    more = page.get_by_role("button", name="Show more tokens")
    for count in (1500, 3000, 3200):
        assert tokens.count() == count
        if count < 3200:
            more.click()
    assert more.is_hidden()
    # An address may name a token that is not among the first.
    page.evaluate("location.hash = '#layer=0&token=3100'")
    page.locator("#reader .token.selected").wait_for()
    assert page.locator("#reader .token.selected").get_attribute("data-token") == "3100"


def test_stacks_of_an_encoder_and_a_decoder(open_trace: MakeAndOpen) -> None:
    encoder = Shape(stack="encoder", num_experts=8)
    page = open_trace(Shape(num_layers=2), encoder)
    names = page.locator(".selection select").first.locator("option").all_inner_texts()
    assert sorted(names) == sorted(
        [*(f"decoder {number}" for number in (1, 2)), *(f"encoder {n}" for n in (1, 2, 3))]
    )
    choose(page, "Layer", "encoder 3")
    assert page.locator("#domains h3").first.inner_text().endswith("layer encoder 3")
    page.locator("#reader .token").last.click()
    assert page.locator("#reader .strip tbody th").all_inner_texts() == [
        f"encoder {number}" for number in (1, 2, 3)
    ]
    page.keyboard.press("Escape")
    # Only the tokens of the layer's stack are shown.
    tokens = page.locator("#reader .token")
    assert tokens.count() == 24
    assert page.locator("#reader h3").inner_text().endswith(", encoder")
    encoded = tokens.evaluate_all("all => all.map(one => one.dataset.token)")
    choose(page, "Layer", "decoder 1")
    assert tokens.count() == 24
    assert page.locator("#reader h3").inner_text().endswith(", decoder")
    decoded = tokens.evaluate_all("all => all.map(one => one.dataset.token)")
    assert set(encoded).isdisjoint(decoded)
    tokens.first.click()
    assert page.locator("#reader .strip tbody th").all_inner_texts() == ["decoder 1", "decoder 2"]


def test_prompts_that_run_other_numbers_of_experts(open_page: OpenPage, folder: Path) -> None:
    """Tokens of a router that skips experts have fewer choices, and may have none."""
    shape = Shape(num_layers=2)
    rows = make_trace(shape)
    rng = np.random.default_rng(3)
    ran = (rows["rank"].to_numpy() == 0) & (rng.random(rows.num_rows) < 0.9)
    ran |= rng.random(rows.num_rows) < 0.5
    experts = np.where(ran, rows["expert"].to_numpy(), -1).astype(np.int16)
    rows = rows.set_column(rows.column_names.index("expert"), "expert", pa.array(experts))
    path = write_trace(folder / "fewer.parquet", rows, metadata=describe(shape))
    write_report(path, folder / "fewer.html")
    page = open_page(folder / "fewer.html")
    prompt = page.locator("#reader h3").inner_text().split(" · prompt ")[1]
    frame = rows.to_pandas()
    mine = frame[(frame["prompt_id"] == prompt) & (frame["expert"] >= 0)]
    seen = set()
    for position in range(0, 24, 3):
        page.locator("#reader .token").nth(position).hover()
        shown = page.locator("#reader .strip tbody button").all_inner_texts()
        here = mine[mine["position"] == position].sort_values(["layer", "rank"])
        assert [int(text) for text in shown] == here["expert"].tolist()
        seen.add(len(shown))
    assert len(seen) > 1
    walk(page)


def test_load_table(open_page: OpenPage, folder: Path) -> None:
    load = np.random.default_rng(0).integers(1, 50, size=(2, 8))
    table = pa.table(
        {
            "layer": np.repeat([0, 1], 8).astype(np.int16),
            "expert": np.tile(np.arange(8), 2).astype(np.int16),
            "count": load.ravel().astype(np.int64),
        }
    )
    columns = ("layer", "expert", "count")
    path = folder / "loads.parquet"
    schema = pa.schema([LOAD_SCHEMA.field(name) for name in columns])
    write_loads(
        [table.cast(schema)], path, describe=lambda: LoadMetadata(format="csv"), columns=columns
    )
    write_report(path, folder / "loads.html")
    page = open_page(folder / "loads.html")
    for panel in ("reader", "domains", "togetherness"):
        assert read_missing(page, panel), panel
    rows = read_twin(page, "map")
    assert [int(row[2]) for row in rows] == load.ravel().tolist()
    choose(page, "Expert", "3")
    assert page.locator("#expert h2").inner_text() == "Expert 3 of layer 0"
    assert page.locator("#expert p").first.inner_text().startswith(f"{load[0, 3]} assignments,")
    assert "NaN" not in page.locator("main").inner_text()


def test_pages_leave_out_whole_prompts_of_all_domains_and_say_so(
    open_page: OpenPage, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_MOST_ASSIGNMENTS_OF_FEW", 144 * 4)
    monkeypatch.setattr(report, "_MOST_ASSIGNMENTS", 144 * 4)
    shape = Shape()
    metadata = replace(describe(shape), model=None)
    path = write_trace(folder / "sampled.parquet", make_trace(shape), metadata=metadata)
    write_report(path, folder / "sampled.html")
    page = open_page(folder / "sampled.html")
    shown = page.locator(".prompts button .muted").all_inner_texts()
    assert len(shown) == 4
    assert {text.split(" · ")[1] for text in shown} == {"code", "law", "prose"}
    assert "of 12 prompts" in page.locator("#data").inner_text()
    # All other figures are those of the whole trace.
    assert sum(int(row[2]) for row in read_twin(page, "map")) == 3 * 12 * 24 * 2


def test_pages_open_with_the_largest_difference(open_page: OpenPage, folder: Path) -> None:
    rows = make_trace(seed=2)
    path = write_trace(folder / "opened.parquet", rows, metadata=describe(Shape()))
    specialization = measure_specialization(path)
    assert isinstance(specialization, Specialization)
    strongest = specialization.strongest
    assert strongest
    # Neither the first layer nor the first domain.
    assert strongest.layer > 1
    assert strongest.domain != "code"
    write_report(path, folder / "opened.html")
    page = open_page(folder / "opened.html")
    layer = page.locator(".selection select").first
    assert layer.evaluate("one => one.selectedOptions[0].text") == str(strongest.layer)
    assert page.locator("#reader h3").inner_text().startswith(f"{strongest.domain} · prompt ")


def test_confidence_is_a_share_of_the_weight_of_a_token(open_page: OpenPage, folder: Path) -> None:
    shape = Shape(num_layers=1, top_k=1)
    rows = make_trace(shape)
    weights = np.random.default_rng(1).uniform(0.1, 0.7, rows.num_rows).astype(np.float32)
    rows = rows.set_column(rows.column_names.index("weight"), "weight", pa.array(weights))
    path = write_trace(folder / "single.parquet", rows, metadata=describe(shape))
    write_report(path, folder / "single.html")
    page = open_page(folder / "single.html", hash_="#color=confidence")
    colors = page.locator("#reader .token").evaluate_all(
        "all => all.map(one => one.style.backgroundColor)"
    )
    # An only choice has all of it.
    assert set(colors) == {"rgb(253, 231, 37)"}


def test_results_with_other_layers_are_paired_by_layer(open_page: OpenPage, folder: Path) -> None:
    """Layer 2 has metadata but no rows, and the other trace lacks layer 3."""
    shape = Shape(num_layers=4)
    rows, others = make_trace(shape), make_trace(shape, redrawn=0.3)
    has_layer = pc.not_equal(rows["layer"], 2)
    path = write_trace(folder / "lacks2.parquet", rows.filter(has_layer), metadata=describe(shape))
    has_both = pc.and_(pc.not_equal(others["layer"], 2), pc.not_equal(others["layer"], 3))
    other = write_trace(
        folder / "lacks3.parquet", others.filter(has_both), metadata=describe(shape)
    )
    write_report(path, folder / "pairs.html", compare=other)
    page = open_page(folder / "pairs.html")
    names = page.locator(".selection select").first.locator("option").all_inner_texts()
    balance = {one.layer: one.load for one in measure_balance(path).layers}
    loads: dict[int, list[int]] = {}
    for row in read_twin(page, "map"):
        loads.setdefault(int(row[0]), []).append(int(row[2].replace(",", "")))
    assert sorted(loads) == sorted(map(int, names))
    for number in (1, 3, 4):
        assert loads[number] == list(balance[number])
    changed = {one.layer: one.changed_decisions for one in compare_traces(path, other).layers}
    assert sorted(changed) == [1, 4]
    shown = {int(row[0]): row[1] for row in read_table(page, "comparison", "Decisions with other")}
    for number in (1, 4):
        assert shows(shown[number], changed[number])
    assert shown[3] == "not in the other trace"
    assert sorted(shown) == [1, 3, 4]
    assert names == ["1", "3", "4"]
    walk(page)
    page.locator("#reader .token").first.click()
    strip = page.locator("#reader .strip tbody th").all_inner_texts()
    assert strip == ["1", "3", "4"]
