"""No text of a figure is cut off or lies on another, from one layer to ninety-four."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from matplotlib.figure import Figure

from moetool import (
    draw_capacity,
    draw_coactivation,
    draw_confidence,
    draw_domains,
    draw_load,
    draw_memory,
    draw_parameters,
    draw_specialization,
)
from moetool.errors import InputError, UsageError
from tests.report.examples import make_token_result
from tests.report.figures.drawings import list_faults
from tests.report.figures.results import HOSTILE, Results, make_results, make_sweep
from tests.report.inspect.inspections import make_inspection, make_reported

DRAWERS: dict[str, Callable[[Results, float], Figure]] = {
    "load": lambda results, width: draw_load(results.balance, width_in=width),
    "capacity": lambda results, width: draw_capacity(results.balance, width_in=width),
    "confidence": lambda results, width: draw_confidence(results.confidence, width_in=width),
    "specialization": lambda results, width: draw_specialization(
        results.specialization, width_in=width
    ),
    "domains": lambda results, width: draw_domains(results.specialization, width_in=width),
    "coactivation": lambda results, width: draw_coactivation(results.coactivation, width_in=width),
}
DOMAINS = tuple(f"domain {number:02d}" for number in range(60))
SIZES: dict[str, Callable[[], Results]] = {
    "usual": make_results,
    "one layer": lambda: make_results(num_layers=1),
    "many": lambda: make_results(num_layers=94, num_experts=64, top_k=8, first_layer=3),
    "many domains": lambda: make_results(num_layers=1, num_experts=16, domains=DOMAINS),
    "hostile": lambda: make_results(domains=HOSTILE),
}


# Figures that a size has no effect on are drawn once.
CASES = [
    *[(figure, "usual") for figure in DRAWERS],
    *[
        (figure, size)
        for figure in DRAWERS
        for size in ("one layer", "many")
        if figure != "domains"
    ],
    *[("domains", size) for size in ("many", "many domains", "hostile")],
    ("specialization", "hostile"),
]


@pytest.mark.parametrize(("figure", "size"), CASES)
def test_texts_are_whole_and_apart_in_a_column(figure: str, size: str) -> None:
    assert list_faults(DRAWERS[figure](SIZES[size](), 3.3)) == []


@pytest.mark.parametrize(("figure", "width"), [("domains", 3.0), ("capacity", 3.0), ("load", 6.9)])
def test_texts_are_whole_and_apart_in_other_widths(figure: str, width: float) -> None:
    drawn = DRAWERS[figure](make_results(), width)
    assert list_faults(drawn) == []
    assert drawn.get_figwidth() == width


def test_texts_of_models_are_whole_and_apart() -> None:
    models = [make_inspection(model=name) for name in ("one", "x" * 90, "$three$")]
    assert list_faults(draw_parameters(models)) == []
    assert list_faults(draw_memory(make_sweep())) == []
    assert list_faults(draw_memory(make_sweep()[0])) == []


def test_the_check_finds_texts_that_overlap_or_are_cut_off() -> None:
    figure = draw_load(make_results().balance)
    for place, words in ((0, "one"), (0, "two"), (90, "far")):
        figure.axes[1].text(place, 1, words).set_in_layout(False)
    faults = list_faults(figure)
    assert "'one' overlaps 'two'" in faults
    assert "'far' is cut off" in faults


def test_letters_have_the_size_of_a_paper() -> None:
    for draw in (DRAWERS["load"], DRAWERS["capacity"]):
        for axes in draw(make_results(), 3.3).axes:
            words = (axes.xaxis.label, axes.yaxis.label, *axes.get_xticklabels())
            assert {text.get_fontsize() for text in words} == {7}


def test_a_long_list_of_domains_says_what_it_leaves_out() -> None:
    figure = DRAWERS["domains"](SIZES["many domains"](), 3.3)
    assert figure.axes[0].get_title("left") == "40 of 60 domains"


def test_what_has_no_figure_is_refused() -> None:
    results = make_results()
    with pytest.raises(UsageError, match="by token has no figure"):
        draw_domains(make_token_result())
    with pytest.raises(UsageError, match="no layer 77"):
        draw_domains(results.specialization, layer=77)
    with pytest.raises(UsageError, match="no layer 77"):
        draw_coactivation(results.coactivation, layer=77)
    with pytest.raises(InputError, match="no pairs"):
        draw_coactivation(make_results(top_k=1).coactivation)
    with pytest.raises(InputError, match="by component are unknown"):
        draw_parameters(make_reported())
    with pytest.raises(UsageError, match="one model on one GPU"):
        draw_memory([])
    with pytest.raises(UsageError, match="can't be 1 inches wide"):
        draw_load(results.balance, width_in=1)
