"""Selections of the catalogue, by name, kind and size."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moetool.catalogue.published import (
    PublishedKind,
    PublishedModel,
    ReportedSystem,
    VendorFigures,
    read_published_models,
)
from moetool.catalogue.selection import (
    ModelSort,
    SelectedKind,
    Selection,
    find_active,
    find_total,
    select_models,
)


def model(name: str, total_b: str | None, active_b: str | None) -> PublishedModel:
    return PublishedModel(
        name=name,
        title=name.upper(),
        hub_id=f"org-of-{name}/{name}",
        kind=PublishedKind.OPEN,
        counted_as=None,
        extra_parameters=(),
        vendor=VendorFigures(total_b, active_b, "model card", None, None),
        not_counted_because=None,
    )


LARGE = model("large", "671", "37")
SMALL = model("small", "6.9", "1.3")
UNKNOWN = model("unknown", None, None)
HALF_KNOWN = model("half-known", "54.5", None)
DENSE = replace(model("dense", "70", None), kind=PublishedKind.DENSE)
MODELS = (UNKNOWN, SMALL, LARGE, HALF_KNOWN, DENSE)
REPORTED = ReportedSystem("closed", "Closed", "Maker", "1.2T", "96.6B", None, "paper", None)


def names(selection: Selection) -> list[str]:
    return [one.name for one in selection.models]


def test_without_filters_all_are_listed_by_name() -> None:
    selection = select_models(MODELS, [REPORTED])
    assert names(selection) == ["dense", "half-known", "large", "small", "unknown"]
    assert (selection.systems, selection.num_unknown) == ((REPORTED,), 0)


def test_sizes_are_the_vendors_and_all_of_a_dense_model_is_active() -> None:
    assert (find_total(SMALL), find_active(SMALL)) == (6_900_000_000, 1_300_000_000)
    assert (find_total(DENSE), find_active(DENSE)) == (70_000_000_000, 70_000_000_000)
    assert (find_total(HALF_KNOWN), find_active(HALF_KNOWN)) == (54_500_000_000, None)


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        (ModelSort.TOTAL, ["large", "dense", "half-known", "small", "unknown"]),
        (ModelSort.ACTIVE, ["dense", "large", "small", "half-known", "unknown"]),
    ],
)
def test_the_largest_come_first_and_the_unknown_last(sort: ModelSort, order: list[str]) -> None:
    assert names(select_models(MODELS, sort=sort)) == order


def test_a_limit_admits_its_own_size_and_leaves_out_what_is_unknown() -> None:
    selection = select_models(MODELS, [REPORTED], max_total=54_500_000_000)
    assert names(selection) == ["half-known", "small"]
    # The model without a figure, and the system whose figures are only quoted.
    assert (selection.systems, selection.num_unknown) == ((), 2)
    assert names(select_models(MODELS, max_total=54_499_999_999)) == ["small"]


def test_what_one_limit_excludes_is_not_counted_as_unknown() -> None:
    selection = select_models(MODELS, max_total=10**10, max_active=2 * 10**9)
    assert (names(selection), selection.num_unknown) == (["small"], 1)


@pytest.mark.parametrize("part", ["SMALL", "org-of-small", " small "])
def test_a_family_is_a_part_of_any_name(part: str) -> None:
    assert names(select_models(MODELS, [REPORTED], family=part)) == ["small"]


def test_a_maker_of_reported_systems_is_a_family() -> None:
    selection = select_models(MODELS, [REPORTED], family="maker")
    assert (selection.models, selection.systems) == ((), (REPORTED,))


def test_a_kind_is_moe_or_dense() -> None:
    dense = select_models(MODELS, [REPORTED], kind=SelectedKind.DENSE)
    assert (names(dense), dense.systems) == (["dense"], ())
    moe = select_models(MODELS, [REPORTED], kind=SelectedKind.MOE)
    assert (names(moe), moe.systems) == (
        ["half-known", "large", "small", "unknown"],
        (REPORTED,),
    )


def test_the_catalogues_own_figures_are_compared_exactly() -> None:
    limited = select_models(
        read_published_models().values(), family="mixtral", max_active=12_900_000_000
    )
    assert names(limited) == ["mixtral-8x7b"]
