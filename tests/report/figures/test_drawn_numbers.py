"""Figures show the numbers of the results that they are drawn from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.container import BarContainer

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
from moetool.analysis.confidence.result import EqualWeights
from tests.report.figures.drawings import (
    find_panel,
    read_bars,
    read_line,
    read_map,
    read_points,
)
from tests.report.figures.results import make_results, make_sweep
from tests.report.inspect.inspections import make_inspection
from tests.report.memory.estimates import GIB

RESULTS = make_results()


def near(points: Iterable[tuple[float, float]]) -> list[Any]:
    """Return points that are equal to others up to rounding."""
    return [pytest.approx(point) for point in points]


def test_the_map_of_load_has_every_expert_of_every_layer() -> None:
    figure = draw_load(RESULTS.balance)
    drawn = read_map(find_panel(figure, "expert"))
    for index, layer in enumerate(RESULTS.balance.layers):
        mean = sum(layer.load) / layer.num_experts
        assert drawn[:, index].tolist() == pytest.approx([load / mean for load in layer.load])


def test_an_expert_that_was_never_chosen_is_black_and_named_in_the_legend() -> None:
    first, *others = RESULTS.balance.layers
    load = (0, *first.load[1:])
    silent = replace(RESULTS.balance, layers=(replace(first, load=load), *others))
    words = [text.get_text() for text in draw_load(silent).legends[0].get_texts()]
    assert "never chosen" in words
    assert read_map(find_panel(draw_load(silent), "expert"))[0, 0] == 0
    words = [text.get_text() for text in draw_load(RESULTS.balance).legends[0].get_texts()]
    assert "never chosen" not in words


def test_the_spread_of_load_stands_next_to_that_of_a_random_router() -> None:
    axes = find_panel(draw_load(RESULTS.balance), "layer")
    percentiles = [layer.percentiles or {} for layer in RESULTS.balance.layers]
    assert read_bars(axes, "least to most") == [
        pytest.approx((place, each["p0"], each["p100"])) for place, each in enumerate(percentiles)
    ]
    assert read_bars(axes, "middle half") == [
        pytest.approx((place, each["p25"], each["p75"])) for place, each in enumerate(percentiles)
    ]
    assert read_line(axes, "median") == [(n, each["p50"]) for n, each in enumerate(percentiles)]
    (band,) = (each for each in axes.collections if "random" in str(each.get_label()))
    for place, layer in enumerate(RESULTS.balance.layers):
        random = layer.baseline.percentiles or {}
        corners = np.asarray(band.get_paths()[0].vertices)
        mine = corners[np.abs(corners[:, 0] - place) <= 0.5]
        assert {random["p0"], random["p100"]} <= set(mine[:, 1].tolist())


def test_dropped_shares_are_drawn_by_factor_and_place_next_to_the_random_router() -> None:
    above, below = draw_capacity(RESULTS.balance).axes
    by_place = [each for each in RESULTS.balance.capacity if each.policy == "position"]
    shares = [(each.factor, (each.dropped_share or 0) * 100) for each in by_place]
    assert read_line(above, "all layers") == near(shares)
    random = [(each.factor, (each.baseline.dropped_share or 0) * 100) for each in by_place]
    assert read_line(above, "random router") == near(random)
    for each in RESULTS.balance.capacity:
        if each.factor == 1.25:
            label = {"position": "first tokens first", "probability": "largest weights first"}
            expected = [
                (place, share * 100)
                for place, share in enumerate(each.by_position or (), start=1)
                if share is not None
            ]
            assert read_line(below, label[each.policy]) == near(expected)


def test_the_weight_of_first_choices_stands_above_equal_weights() -> None:
    result = RESULTS.confidence
    axes = find_panel(draw_confidence(result), "layer")
    for layer, (_, low, high) in zip(result.layers, read_bars(axes, "middle 90 %"), strict=True):
        assert layer.share is not None
        assert (low, high) == (layer.share.p5, layer.share.p95)
    equal = read_line(axes, "equal weights")
    assert {value for _, value in equal} == {
        layer.baseline.share for layer in result.layers if layer.baseline
    }


def test_weights_that_do_not_add_up_to_1_have_a_panel_next_to_their_shares() -> None:
    result = RESULTS.confidence
    assert len(draw_confidence(result).axes) == 1
    layers = tuple(
        replace(layer, is_normalized=False, baseline=EqualWeights(weight=0.1, share=0.5))
        for layer in result.layers
    )
    weights, shares = draw_confidence(replace(result, layers=layers)).axes
    assert {value for _, value in read_line(weights, "equal weights")} == {0.1}
    assert {value for _, value in read_line(shares, "equal weights")} == {0.5}


def test_information_stands_next_to_permuted_labels_and_a_random_router() -> None:
    result = RESULTS.specialization
    above, below = draw_specialization(result).axes
    for label, name in (
        ("observed", "mutual_information_nats"),
        ("labels permuted", "null_nats"),
    ):
        expected = [(place, getattr(each, name)) for place, each in enumerate(result.layers)]
        assert read_line(above, label) == near(expected)
    random = [each.baseline for each in result.layers if each.baseline]
    assert read_line(above, "random router") == near(
        (place, each.mutual_information_nats or math.nan) for place, each in enumerate(random)
    )
    shares = [(n, 100 * (each.normalized or 0)) for n, each in enumerate(result.layers)]
    assert read_line(below, "of H(domain)") == near(shares)


def test_shares_that_may_be_chance_are_hollow() -> None:
    result = RESULTS.specialization
    first, *others = result.layers
    sure = [replace(each, q_value=0.05) for each in others]
    unsure = replace(result, layers=(replace(first, q_value=0.0501), *sure))
    _, below = draw_specialization(unsure).axes
    hollow = [
        point
        for line in below.get_lines()
        if to_rgba(line.get_markerfacecolor()) == to_rgba("white")
        for point in read_points(line)
    ]
    assert hollow == near([(0, 100 * (first.normalized or 0))])


def test_the_map_of_domains_fades_what_may_be_chance() -> None:
    result = RESULTS.specialization
    figure = draw_domains(result, layer=1)
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    drawn = read_map(axes)
    (mesh,) = axes.collections[:1]
    alpha = np.asarray(mesh.get_alpha())
    cells = [cell for cell in result.experts if cell.layer == 1]
    assert len(cells) == drawn.size
    for cell in cells:
        place = names.index(cell.domain), cell.expert
        assert drawn[place] == pytest.approx(cell.lift)
        assert (alpha[place] == 1) == (cell.q_value is not None and cell.q_value <= 0.05)


def test_the_surest_experts_of_each_domain_have_their_intervals() -> None:
    result = make_results(domains=("code", "law", "prose")).specialization
    below = draw_domains(result).axes[1]
    cells = [cell for cells in result.most_lifted.values() for cell in cells[:3]]
    assert cells
    assert read_line(below, "lift") == [(cell.lift, n) for n, cell in enumerate(cells)]
    names = [label.get_text() for label in below.get_yticklabels()]
    assert names == [f"{cell.domain}  L{cell.layer}.E{cell.expert}" for cell in cells]
    intervals = [read_points(line) for line in below.get_lines()][: len(cells)]
    for place, (cell, points) in enumerate(zip(cells, intervals, strict=True)):
        assert points == [(cell.lift_low, place), (cell.lift_high or cell.lift, place)]


def test_the_map_of_pairs_is_symmetric_and_white_at_the_random_router() -> None:
    result = RESULTS.coactivation
    figure = draw_coactivation(result, layer=1)
    drawn = read_map(figure.axes[0])
    layer = result.layers[1]
    for i, j, lift in zip(
        layer.matrix.expert_i, layer.matrix.expert_j, layer.matrix.lift, strict=True
    ):
        assert drawn[i, j] == drawn[j, i] == pytest.approx(float(lift), nan_ok=True)
    assert np.isnan(drawn.diagonal()).all()
    assert layer.baseline is not None
    norm = figure.axes[0].collections[0].norm
    (middle,) = np.asarray(norm(np.array([layer.baseline.lift]))).tolist()
    assert middle == pytest.approx(0.5)
    strongest = find_panel(figure, "layer")
    assert read_line(strongest, "strongest pair") == near(
        [(n, each.pairs[0].lift) for n, each in enumerate(result.layers)]
    )
    random = {value for _, value in read_line(strongest, "strongest of a random router")}
    assert random == {each.baseline.strongest_lift for each in result.layers if each.baseline}


def test_bars_of_parameters_are_as_long_as_the_components_are_large() -> None:
    model = make_inspection()
    assert model.parameters is not None
    (axes,) = draw_parameters(model).axes
    drawn: dict[float, dict[str, float]] = {0.0: {}, 1.0: {}}
    bars = [each for each in axes.containers if isinstance(each, BarContainer)]
    words = " ".join(text.get_text() for text in axes.texts)
    total = {0.0: 0.0, 1.0: 0.0}
    for bar in bars:
        (patch,) = bar.patches
        place = patch.get_y() + patch.get_height() / 2
        drawn[place][f"{patch.get_x():.6f}"] = patch.get_width()
        total[place] += patch.get_width()
    assert total[0.0] == pytest.approx((model.parameters.total or 0) / 1e6)
    assert total[1.0] == pytest.approx((model.parameters.active_params or 0) / 1e6)
    assert sorted(drawn[0.0].values()) == pytest.approx(
        sorted(size / 1e6 for size in model.parameters.components.values() if size)
    )
    assert model.model in words


def test_memory_is_a_line_for_each_batch_with_the_limit_of_the_gpu() -> None:
    (axes,) = draw_memory(make_sweep()).axes
    assert read_line(axes, "batch of 1") == [(512, 18), (4096, 20)]
    assert read_line(axes, "batch of 8") == [(512, 24), (4096, 52)]
    assert {value for _, value in read_line(axes, "memory of mid")} == {40}
    (weights,) = {value for _, value in read_line(axes, "weights alone")}
    assert weights == (make_sweep()[0].weights_bytes or 0) / GIB
    hollow = [
        point
        for line in axes.get_lines()
        if line.get_markerfacecolor() == "white"
        for point in read_points(line)
    ]
    assert hollow == [(4096, 52)]
