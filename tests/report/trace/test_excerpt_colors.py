"""The colours of experts in an excerpt."""

from __future__ import annotations

import re

import pytest
from rich.color import Color, ColorSystem

from moetool.report.trace_excerpt import EXPERT_COLORS
from tests.report.trace.excerpts import ESCAPE, describe_layers, make_prompt, make_stack, render


def test_without_colour_there_are_no_escapes() -> None:
    assert "\x1b" not in render(make_prompt(make_stack([[[1]]]), written="x"))


def test_colour_changes_no_letter() -> None:
    stack = make_stack([[[1, 2]]] * 5, num_given=3)
    plain, colored = (
        render(make_prompt(stack, written="more"), has_color=has_color)
        for has_color in (False, True)
    )
    colored = ESCAPE.sub("", colored).replace(", which sets the colour", "")
    assert [line.rstrip() for line in colored.splitlines()] == plain.splitlines()


def test_the_first_expert_decides_the_colour() -> None:
    tops = [0, 1, 7, 1]
    experts = [[[top, other]] for top, other in zip(tops, [3, 2, 4, 6], strict=True)]
    text = render(make_prompt(make_stack(experts)), has_color=True)
    found = re.findall(r"38;5;(\d+)m(\d)\x1b\[0m\x1b\[38;5;(\d+)m (\d)", text)
    assert [(int(top), int(other)) for _, top, _, other in found] == [
        tuple(chosen) for ((chosen),) in experts
    ]
    assert all(first == second for first, _, second, _ in found)
    colors = [first for first, _, _, _ in found]
    assert colors[1] == colors[3]
    assert len(set(colors)) == len(set(tops))


def test_colours_repeat_after_the_last() -> None:
    num_colors = len(EXPERT_COLORS)
    experts = [[[3]], [[3 + num_colors]]]
    layers = describe_layers(1, num_experts=64)
    text = render(make_prompt(make_stack(experts)), layers=layers, has_color=True)
    first, second = re.findall(r"38;5;(\d+)m *\d+\x1b", text)
    assert first == second


def measure_luminance(color: str) -> float:
    """Return the relative luminance of a colour (WCAG 2.2)."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("color", EXPERT_COLORS)
def test_every_colour_is_legible_on_black_and_on_white(color: str) -> None:
    luminance = measure_luminance(color)
    on_white, on_black = 1.05 / (luminance + 0.05), (luminance + 0.05) / 0.05
    # WCAG's least contrast for large or bold text and for graphics.
    assert min(on_white, on_black) >= 3
    # One of the 256 that terminals have, so that none is replaced by its neighbour.
    assert (
        Color.parse(color).downgrade(ColorSystem.EIGHT_BIT).get_truecolor()
        == Color.parse(color).get_truecolor()
    )


def test_no_two_colours_are_the_same() -> None:
    assert 8 <= len(set(EXPERT_COLORS)) == len(EXPERT_COLORS) <= 16
