"""Which definition of active parameters a vendor's figure meets."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal

from moetool.anatomy.parameters import ActiveDefinition, ActiveRange
from moetool.catalogue.published import PublishedModel
from moetool.inspection.result import PublishedFigures

_BILLION = Decimal(10**9)


def compare_published(
    model: PublishedModel,
    *,
    total: int | None,
    active: Mapping[ActiveDefinition, ActiveRange | None],
) -> PublishedFigures:
    """Return a vendor's figures, and what of the computed ones they agree with.

    Args:
        model: The catalogue's entry.
        total: The computed total.
        active: The computed active parameters by definition.
    """
    vendor = model.vendor
    exact = {
        definition: number.exact
        for definition, number in active.items()
        if number is not None and number.exact is not None
    }
    meets: tuple[ActiveDefinition, ...] = ()
    closest = None
    if vendor.active_b is not None:
        figure = Decimal(vendor.active_b)
        meets = tuple(d for d, number in exact.items() if meets_figure(number, vendor.active_b))
        if not meets and exact:
            closest = min(exact, key=lambda d: abs(Decimal(exact[d]) / _BILLION - figure))
    return PublishedFigures(
        total_b=vendor.total_b,
        active_b=vendor.active_b,
        meets_total=None
        if vendor.total_b is None or total is None
        else meets_figure(total, vendor.total_b),
        meets_active=meets,
        closest_active=closest,
        source=vendor.source,
        note=" ".join(filter(None, (vendor.active_note, vendor.notes))) or None,
    )


def meets_figure(number: int, published_b: str) -> bool:
    """Return whether a number rounds or truncates to a published figure.

    Zeros at the end of a whole figure may be digits or not: 1000 is met by 1,026 billion, which is
    1.0 trillion, and 230 by 229.6.

    Args:
        number: Of parameters.
        published_b: Billions, with the digits published.

    Example:
        >>> meets_figure(46_702_792_704, "46.7"), meets_figure(12_879_925_248, "12.8")
        (True, True)
        >>> meets_figure(12_879_925_248, "12.7")
        False
    """
    figure, exact = Decimal(published_b), Decimal(number) / _BILLION
    last = figure.as_tuple().exponent
    assert isinstance(last, int)
    zeros = len(published_b) - len(published_b.rstrip("0")) if last == 0 else 0
    return any(
        exact.quantize(Decimal(1).scaleb(place), rounding=rounding) == figure
        for place in range(last, last + zeros + 1)
        for rounding in (ROUND_HALF_UP, ROUND_DOWN)
    )
