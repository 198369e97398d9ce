"""A vendor's figures, and the definitions of active parameters that they meet."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moetool.anatomy.parameters import ActiveDefinition, ActiveRange
from moetool.catalogue.published import PublishedModel, VendorFigures, read_published_models
from moetool.inspection.published import compare_published, meets_figure


@pytest.mark.parametrize(
    ("number", "figure"),
    [
        (46_702_792_704, "46.7"),
        (12_879_925_248, "12.9"),
        (12_879_925_248, "12.8"),
        (140_620_634_112, "141"),
        (140_620_634_112, "140"),
        (1_026_408_209_408, "1000"),
        (1_026_408_209_408, "1030"),
        (228_689_748_992, "230"),
        (619_339_008, "0.62"),
        (619_339_008, "0.6"),
        (5_000_000_000, "5"),
    ],
)
def test_a_number_that_rounds_or_truncates_to_a_figure_meets_it(number: int, figure: str) -> None:
    assert meets_figure(number, figure)


@pytest.mark.parametrize(
    ("number", "figure"),
    [
        (46_702_792_704, "46.8"),
        (46_702_792_704, "46.6"),
        (12_879_925_248, "12.7"),
        (12_879_925_248, "12.90"),
        (140_620_634_112, "142"),
        (1_026_408_209_408, "1040"),
        (226_689_748_992, "240"),
        (20_000_000_000, "20.1"),
    ],
)
def test_a_number_that_does_neither_does_not_meet_it(number: int, figure: str) -> None:
    assert not meets_figure(number, figure)


@given(st.integers(10**6, 10**13), st.integers(0, 3))
def test_every_number_meets_its_own_digits_and_none_two_steps_away(
    number: int, num_digits: int
) -> None:
    step = Decimal(1).scaleb(-num_digits)
    figure = (Decimal(number) / 10**9).quantize(step)

    assert meets_figure(number, str(figure))
    # One digit more keeps zeros at the end of a whole figure from being no digits.
    exact = f"{figure + 2 * step:.{num_digits}f}"
    if num_digits:
        assert not meets_figure(number, exact)


def vendor(**figures: str | None) -> PublishedModel:
    """Return an entry of the catalogue with other figures."""
    nothing = VendorFigures(total_b=None, active_b=None, source=None, active_note=None, notes=None)
    return replace(read_published_models()["mixtral-8x7b"], vendor=replace(nothing, **figures))


def ranges(*numbers: int | None) -> dict[ActiveDefinition, ActiveRange | None]:
    return {
        definition: None if number is None else ActiveRange(number, number)
        for definition, number in zip(ActiveDefinition, numbers, strict=True)
    }


def test_all_definitions_that_meet_a_figure_are_named() -> None:
    active = ranges(39_150_000_000, 38_950_000_000, 37_100_000_000)

    found = compare_published(vendor(total_b="141", active_b="39"), total=10**9, active=active)

    assert found.meets_total is False
    assert found.meets_active == (
        ActiveDefinition.ALL,
        ActiveDefinition.WITHOUT_INPUT_EMBEDDING,
    )
    assert found.closest_active is None


def test_the_closest_definition_is_named_where_none_meets_a_figure() -> None:
    active = ranges(39_150_000_000, 38_950_000_000, 37_100_000_000)

    found = compare_published(vendor(active_b="35"), total=10**9, active=active)

    assert found.meets_active == ()
    assert found.closest_active is ActiveDefinition.WITHOUT_EMBEDDING_AND_HEAD
    assert found.meets_total is None


def test_unknown_and_varying_numbers_meet_nothing() -> None:
    active = ranges(39_150_000_000, None, None)
    active[ActiveDefinition.ALL] = ActiveRange(38_000_000_000, 40_000_000_000)

    found = compare_published(vendor(total_b="141", active_b="39"), total=None, active=active)

    assert (found.meets_total, found.meets_active, found.closest_active) == (None, (), None)


def test_what_the_vendor_and_the_catalogue_note_is_joined() -> None:
    model = vendor(active_note="Counts one row.", notes="Without a tower.", source="model card")

    found = compare_published(model, total=1, active={})

    assert found.note == "Counts one row. Without a tower."
    assert found.source == "model card"
    assert compare_published(vendor(), total=1, active={}).note is None
