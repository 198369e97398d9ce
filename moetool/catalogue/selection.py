"""A selection of published models and reported systems, by name, kind and size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from moetool.catalogue.published import PublishedKind, PublishedModel, ReportedSystem

_BILLION = 10**9


class ModelSort(StrEnum):
    """Orders of the catalogue: by name from A to Z, or by size, the largest first."""

    NAME = "name"
    TOTAL = "total"
    ACTIVE = "active"


class SelectedKind(StrEnum):
    """Kinds of models that can be selected: Mixture-of-Experts, or dense."""

    MOE = "moe"
    DENSE = "dense"


@dataclass(frozen=True)
class Selection:
    """Selected entries of the catalogue.

    Attributes:
        models: Published models, in the order that was asked for.
        systems: Systems known from reports, in the order of the catalogue.
        num_unknown: Entries that were left out because a limit applies to a figure that their
            vendor doesn't publish, or that is only reported.
    """

    models: tuple[PublishedModel, ...]
    systems: tuple[ReportedSystem, ...]
    num_unknown: int = 0


def select_models(
    models: Iterable[PublishedModel],
    systems: Iterable[ReportedSystem] = (),
    *,
    family: str | None = None,
    kind: SelectedKind | None = None,
    max_total: int | None = None,
    max_active: int | None = None,
    sort: ModelSort = ModelSort.NAME,
) -> Selection:
    """Return the entries of a catalogue that match all that is asked for.

    Sizes are the vendors' own. Models of unknown size come last where they are sorted by it.

    Args:
        models: Published models.
        systems: Systems known from reports. Their figures are quoted, so no limit admits them.
        family: A part of the name, title, Hub id or maker, in upper or lower case.
        kind: The kind of model; None for both.
        max_total: The most parameters.
        max_active: The most active parameters. All parameters of a dense model are active.
        sort: The order of the published models.
    """
    named = [
        model
        for model in models
        if _is_named(family, (model.name, model.title, model.hub_id))
        and kind in (None, _find_kind(model))
    ]
    reported = [
        system
        for system in systems
        if _is_named(family, (system.name, system.title, system.maker))
        and kind in (None, SelectedKind.MOE)
    ]
    limits = [
        (find, limit)
        for find, limit in ((find_total, max_total), (find_active, max_active))
        if limit is not None
    ]
    fitting, num_unknown = [], len(reported) if limits else 0
    for model in named:
        sizes = [(find(model), limit) for find, limit in limits]
        if any(size is not None and size > limit for size, limit in sizes):
            continue
        if any(size is None for size, _ in sizes):
            num_unknown += 1
        else:
            fitting.append(model)
    return Selection(
        models=tuple(_sort(fitting, sort)),
        systems=() if limits else tuple(reported),
        num_unknown=num_unknown,
    )


def find_total(model: PublishedModel) -> int | None:
    """Return a model's parameters by its vendor's figure; None if there is none."""
    return _count(model.vendor.total_b)


def find_active(model: PublishedModel) -> int | None:
    """Return a model's active parameters by its vendor's figure; None if there is none.

    Those of a dense model are all its parameters.
    """
    return find_total(model) if model.kind is PublishedKind.DENSE else _count(model.vendor.active_b)


def _count(billions: str | None) -> int | None:
    return None if billions is None else int(Decimal(billions) * _BILLION)


def _find_kind(model: PublishedModel) -> SelectedKind:
    return SelectedKind.DENSE if model.kind is PublishedKind.DENSE else SelectedKind.MOE


def _is_named(part: str | None, names: Sequence[str]) -> bool:
    return part is None or any(part.strip().lower() in name.lower() for name in names)


def _sort(models: Sequence[PublishedModel], sort: ModelSort) -> list[PublishedModel]:
    by_name = sorted(models, key=lambda model: model.name)
    if sort is ModelSort.NAME:
        return by_name
    find = find_total if sort is ModelSort.TOTAL else find_active
    return sorted(by_name, key=lambda model: -(find(model) or 0))
