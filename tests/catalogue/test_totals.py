"""Every configuration of the catalogue builds the model that was published."""

from __future__ import annotations

from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal

import pytest

from moetool.catalogue.published import (
    PublishedModel,
    read_published_config,
    read_published_models,
)
from tests.catalogue.totals import (
    TOTALS,
    UNLIKE_PUBLISHED,
    build_as_published,
    count_parameters,
)


def meets(total: int, published_b: str) -> bool:
    """Return whether a total, rounded or truncated to the digits of a published figure, is it.

    Written independently of `inspection.published.meets_figure`, which it referees.

    Zeros before the decimal point are not significant: 1026.4 billion meets 1000, published as
    1T.
    """
    digits = published_b if "." in published_b else published_b.rstrip("0")
    exponent = -len(digits.partition(".")[2]) or len(published_b) - len(digits)
    unit = Decimal(10) ** exponent
    whole = Decimal(total) / 10**9 / unit
    figure = Decimal(published_b) / unit
    return figure in {
        whole.to_integral_value(ROUND_HALF_UP),
        whole.to_integral_value(ROUND_DOWN),
    }


def count_extra_parameters(model: PublishedModel) -> int:
    layers = read_published_config(model.name)["num_hidden_layers"]
    assert isinstance(layers, int)
    return sum(layers * row.params_per_layer for row in model.extra_parameters)


def test_the_totals_are_those_of_all_models_that_can_be_counted() -> None:
    models = read_published_models().values()
    assert set(TOTALS) == {model.name for model in models if model.can_be_counted}


# It takes longest to build, and is counted where every model is inspected.
INSPECTED = "switch-c-2048"


@pytest.mark.parametrize("name", [name for name in TOTALS if name != INSPECTED])
def test_a_configuration_builds_the_model_with_its_exact_total(name: str) -> None:
    model = build_as_published(read_published_config(name))
    assert count_parameters(model) == TOTALS[name]


def test_totals_meet_the_published_ones_except_where_the_catalogue_says_why() -> None:
    unlike = set()
    for name, total in TOTALS.items():
        model = read_published_models()[name]
        extra = count_extra_parameters(model) if model.extra_parameters else 0
        published = model.vendor.total_b
        if published is not None and not meets(total + extra, published):
            unlike.add(name)
            assert model.vendor.notes, name
    assert unlike == UNLIKE_PUBLISHED


@pytest.mark.parametrize(
    ("total", "published", "expected"),
    [
        (46_702_792_704, "46.7", True),
        (46_762_792_704, "46.7", True),
        (46_812_792_704, "46.7", False),
        (140_620_634_112, "141", True),
        (352_797_814_784, "355", False),
        (1_026_408_209_408, "1000", True),
        (1_572_997_179_491, "1600", True),
        (1_726_408_209_408, "1600", False),
        (619_339_008, "0.62", True),
        (619_339_008, "0.60", False),
    ],
)
def test_a_total_meets_a_figure_if_it_rounds_or_truncates_to_its_digits(
    total: int, published: str, expected: bool
) -> None:
    assert meets(total, published) is expected
