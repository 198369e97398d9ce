"""A comparison with the figures that a vendor publishes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal

from moetool.anatomy.parameters import ActiveDefinition, ActiveRange
from moetool.catalogue.published import (
    PublishedModel,
    read_published_config,
    read_published_models,
)
from moetool.checkpoint.subject import Subject
from moetool.inspection.figures import PublishedFigures

_BILLION = Decimal(10**9)

# A configuration is a model's own if it states at least the first number of its fields, and at most
# the second number of them differ.
_FEWEST_SHARED = 8
_MOST_DIFFERING = 3


def compare_published(
    model: PublishedModel,
    *,
    total: int | None,
    active: Mapping[ActiveDefinition, ActiveRange | None],
) -> PublishedFigures:
    """Return a vendor's figures, and the computed ones that they agree with.

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


def note_contradictions(subject: Subject, *, total: int | None) -> Iterator[str]:
    """Yield contradictions between a configuration and the published model that it is meant to be.

    Args:
        subject: A model that is not the catalogue's own.
        total: The computed total.
    """
    if subject.is_from_catalogue or total is None:
        return
    billions = f"{total / 1e9:,.1f}B"
    for model in read_published_models().values():
        differing = _find_misstated(subject.config, model)
        if differing:
            yield (
                f"This config.json says {' and '.join(differing)}, which builds {billions}; "
                f"{model.title} was published with {model.vendor.total_b}B. `moetool inspect "
                f"{model.name}` counts what was published."
            )
            return
    published = subject.published
    if published is None or published.vendor.total_b is None or published.vendor.notes:
        return
    if not meets_figure(total, published.vendor.total_b):
        yield (
            f"This config.json builds {billions}, and {published.title} was published with "
            f"{published.vendor.total_b}B: one of the two is of another model."
        )


def _find_misstated(config: Mapping[str, object], model: PublishedModel) -> list[str]:
    """Return the fields of a model's own published configuration that contradict it, in words.

    Empty if it is another configuration: the right one has the fields that are known to be wrong,
    and hardly any other difference.
    """
    if not model.misstated or any(
        config.get(name) != value or isinstance(config.get(name), bool)
        for name, value in model.misstated.items()
    ):
        return []
    right = read_published_config(model.name)
    numbers = [name for name, value in right.items() if type(value) is int and name in config]
    differing = [name for name in numbers if config[name] != right[name]]
    is_same = config.get("model_type") == right["model_type"]
    if not is_same or len(numbers) < _FEWEST_SHARED or len(differing) > _MOST_DIFFERING:
        return []
    return [f"{name} {config[name]} (not {right[name]})" for name in differing]


def meets_figure(number: int, published_b: str) -> bool:
    """Return whether a number rounds or truncates to a published figure.

    Zeros at the end of a whole figure may be significant or not: 1,026 billion, which is 1.0
    trillion, meets 1000, and 229.6 meets 230.

    Args:
        number: A number of parameters.
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
        exact.quantize(Decimal(1).scaleb(exponent), rounding=rounding) == figure
        for exponent in range(last, last + zeros + 1)
        for rounding in (ROUND_HALF_UP, ROUND_DOWN)
    )
