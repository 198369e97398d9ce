"""Maps of layers and experts: blocks for values, few lines, as wide as the terminal."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.analysis.binning import Cells
from moetool.report.renderer import View
from moetool.report.text.heat_map import (
    ABOVE_ONE,
    AROUND_ONE,
    HeatMap,
    MapLayer,
    Scale,
    suits_map,
)
from moetool.report.text.page import render_page

BLOCKS = "▁▂▃▄▅▆▇█"


def make_map(
    *rows: Cells, scale: Scale = AROUND_ONE, by: str = "mean", stack: str = "decoder"
) -> HeatMap:
    layers = [MapLayer(stack, number, row) for number, row in enumerate(rows)]
    return HeatMap("title", layers, scale, by="max" if by == "max" else "mean")


def show(heat_map: HeatMap, *, width: int = 80) -> list[str]:
    """Return the lines of a map, without colours."""
    text = render_page([[heat_map]], View(width=width, has_color=True))
    return re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()


def read_cells(line: str) -> list[str]:
    """Return the blocks of a line whose cells are three columns wide."""
    return [each.strip()[:1] for each in re.findall(r"(.{3}) ?", line.partition(" ")[2])]


@pytest.mark.parametrize("scale", [AROUND_ONE, ABOVE_ONE])
def test_a_higher_value_never_has_a_lower_block(scale: Scale) -> None:
    values = [0.1 * 1.07**number for number in range(80)]
    blocks = [scale.draw(value, 1).plain for value in values]
    places = [BLOCKS.index(block) for block in blocks]
    assert places == sorted(places)
    assert set(blocks) == set(BLOCKS)
    assert len(scale.steps) == 7
    assert len(scale.colors) == 8


def test_steps_around_1_are_equal_on_a_logarithmic_scale() -> None:
    logs = [math.log(step) for step in AROUND_ONE.steps]
    steps = [after - before for before, after in pairwise(logs)]
    assert steps == pytest.approx([math.log(2) / 2] * 6, abs=0.004)
    assert AROUND_ONE.draw(1.0, 1).plain == BLOCKS[4]


def test_a_line_shows_each_expert_and_what_was_never_chosen() -> None:
    title, line, axis, legend = show(make_map([1.0, 0.0, 4.0, 0.1, None, 2.0, 0.5, 1.2]))
    assert title == "title"
    assert read_cells(line) == ["▅", "·", "█", "▁", "·", "▇", "▃", "▆"]
    assert axis.split() == ["E0", "E7"]
    assert axis.index("E0") == line.index("▅")
    assert "▅ 1×" in legend
    assert legend.endswith("· never")


def test_colours_are_blue_below_1_and_orange_above() -> None:
    text = render_page([[make_map([0.2, 1.0, 3.0])]], View(width=80, has_color=True))
    line = next(line for line in text.splitlines() if line.startswith("L0"))
    assert re.findall(r"\x1b\[38;5;(\d+)m(.)", line) == [("25", "▁"), ("246", "▅"), ("166", "█")]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize(("layers", "experts"), [(1, 1), (6, 8), (26, 64), (94, 512), (400, 2)])
def test_a_map_of_any_size_fits_a_screen(width: int, layers: int, experts: int) -> None:
    rows = [[1.0 + (layer + expert) % 3 for expert in range(experts)] for layer in range(layers)]
    lines = show(make_map(*rows), width=width)
    assert len(lines) <= 21
    assert max(map(len, lines)) <= width
    drawn = [line for line in lines if line.lstrip().startswith("L")]
    assert len(drawn) <= 16
    is_merged = len(drawn) < layers or experts > width - 10
    assert lines[-1].startswith("a block: the mean of") == is_merged


def test_merged_cells_are_means_or_largest_ones_of_the_layers_and_experts_named() -> None:
    rows = [[float(layer < 2)] * 2 for layer in range(32)]
    lines = show(make_map(*rows))
    assert lines[1].split() == ["L0–1", "▅▅▅", "▅▅▅"]
    assert lines[-1] == "a block: the mean of 2 layers"
    mixed = [[4.0 * (layer % 2), 1.0] for layer in range(32)]
    assert show(make_map(*mixed))[1].split() == ["L0–1", "▇▇▇", "▅▅▅"]
    assert show(make_map(*mixed, by="max"))[1].split() == ["L0–1", "███", "▅▅▅"]


def test_stacks_have_their_own_lines() -> None:
    layers = [MapLayer(stack, n, [1.0]) for stack in ("decoder", "encoder") for n in range(20)]
    lines = show(HeatMap("title", layers, AROUND_ONE, by="mean"))
    names = [line.partition("  ▅")[0].strip().partition(" ▅")[0] for line in lines if "L" in line]
    assert all(not ("encoder" in name and name.startswith("L")) for name in names)
    assert any(name.startswith("encoder L0") for name in names)


@given(
    rows=st.lists(
        st.lists(st.none() | st.floats(0, 50), min_size=1, max_size=70), min_size=1, max_size=40
    ),
    width=st.integers(60, 200),
)
def test_layers_of_different_sizes_are_drawn(rows: list[list[float | None]], width: int) -> None:
    lines = show(make_map(*rows), width=width)
    assert max(map(len, lines)) <= width


def test_a_map_needs_a_terminal_with_colour_that_is_wide_enough() -> None:
    assert suits_map(View(width=60, has_color=True))
    assert not suits_map(View(width=60))
    assert not suits_map(View(has_color=True))
