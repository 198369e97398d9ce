"""Published models as data: their names, their configurations, and their vendors' figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Any

from moetool.errors import InputError


class PublishedKind(StrEnum):
    """The kind of model that a catalogue entry describes.

    Attributes:
        OPEN: A Mixture-of-Experts model with open weights.
        DENSE: A model without experts, for comparison.
    """

    OPEN = "open"
    DENSE = "dense"


@dataclass(frozen=True)
class ExtraParameters:
    """Parameters that a model has and that are missing from the class it is counted with.

    Attributes:
        component: A value of `moetool.anatomy.components.Component`.
        params_per_layer: Their number in each layer of the text model. Every token runs them.
        because: Their purpose, in words.
    """

    component: str
    params_per_layer: int
    because: str


@dataclass(frozen=True)
class VendorFigures:
    """The size of a model as its vendor publishes it.

    Attributes:
        total_b: Billions of parameters, with the digits published: `46.7`. Trillions are written
            out as billions, so zeros at the end of `1600` are not significant. None if unknown.
        active_b: Billions of active parameters, in the same form. Vendors count them in different
            ways.
        source: The document with these figures. None without figures.
        active_note: The vendor's own statement on how it counts active parameters.
        notes: Why a figure differs from the model that transformers builds, or needs caution.
    """

    total_b: str | None
    active_b: str | None
    source: str | None
    active_note: str | None
    notes: str | None


@dataclass(frozen=True)
class PublishedModel:
    """A model that can be named without a network.

    Attributes:
        name: The short name, in lower case.
        title: The name as its vendor writes it.
        hub_id: `org/name` on the Hub.
        kind: Mixture-of-Experts or dense.
        counted_as: In words, the class of the same shapes that it is counted with where
            transformers has none for it, or what it is counted by where the published
            configuration describes another model. None where neither is needed.
        extra_parameters: Parameters that are missing from that class.
        vendor: The published figures.
        not_counted_because: Why there is no configuration to count it by; None if there is one.
        stored_as: The quantization of the published files where the configuration doesn't state it;
            None if it does, or if they are not quantized.
        routes_otherwise: Whether its routers score experts in another way than those of the class that
            it is counted with, so that the class shows nothing about them.
        misstated: Fields of the published configuration that contradict the published model, with
            their published values. moetool's own configuration has the right ones.
    """

    name: str
    title: str
    hub_id: str
    kind: PublishedKind
    counted_as: str | None
    extra_parameters: tuple[ExtraParameters, ...]
    vendor: VendorFigures
    not_counted_because: str | None
    stored_as: str | None = None
    misstated: Mapping[str, object] = field(default_factory=dict)
    routes_otherwise: bool = False

    @property
    def can_be_counted(self) -> bool:
        """Whether a configuration of it ships with moetool."""
        return self.not_counted_because is None


@dataclass(frozen=True)
class ReportedSystem:
    """A system known from reports alone. Its figures are quoted; nothing is computed from them.

    Attributes:
        name: The short name, in lower case.
        title: The name as its maker writes it.
        maker: The organisation that made it.
        total: Reported parameters with unit, such as `1.2T`. None if there is no report.
        active: Reported active parameters with unit. None if there is no report.
        experts: Reported experts, and how many a token is routed to. None if there is no report.
        source: The report.
        notes: How far to trust the report.
        total_params_least: The least number of parameters that the report allows for. None if there
            is no report.
        total_params_most: The most that it allows for. None if there is no report.
    """

    name: str
    title: str
    maker: str
    total: str | None
    active: str | None
    experts: str | None
    source: str
    notes: str | None
    total_params_least: int | None = None
    total_params_most: int | None = None


@cache
def read_published_models() -> Mapping[str, PublishedModel]:
    """Return the published models by short name, in alphabetical order."""
    entries = _read_json(_catalogue().joinpath("models.json"))
    return MappingProxyType({name: _as_model(name, entry) for name, entry in entries.items()})


def read_published_config(name: str) -> dict[str, object]:
    """Return the configuration that a published model is counted by, a fresh copy on every call.

    It has the fields of the vendor's config.json that a class or a quantization reads. Where
    `counted_as` names another class, it has the fields of that class.

    Args:
        name: A short name, in upper or lower case.

    Raises:
        InputError: The catalogue has no such model, or no configuration of it.
    """
    model = read_published_models().get(name.lower())
    if model is None:
        raise InputError(
            f"The catalogue has no model '{name}'.", hint="Give a name that `moetool models` lists."
        )
    if model.not_counted_because is not None:
        raise InputError(
            f"{model.title} can't be counted: {model.not_counted_because}",
            hint="Name another model that `moetool models` lists with its parameters.",
        )
    config: dict[str, object] = _read_json(
        _catalogue().joinpath("configs").joinpath(f"{model.name}.json")
    )
    return config


@cache
def read_reported_systems() -> Mapping[str, ReportedSystem]:
    """Return the systems known from reports alone, by short name."""
    entries = _read_json(_catalogue().joinpath("reported.json"))
    return MappingProxyType(
        {name: ReportedSystem(name=name, **entry) for name, entry in entries.items()}
    )


def _as_model(name: str, entry: dict[str, Any]) -> PublishedModel:
    vendor = {"active_note": None, **entry["vendor"]}
    return PublishedModel(
        name=name,
        title=entry["title"],
        hub_id=entry["hub_id"],
        kind=PublishedKind(entry["kind"]),
        counted_as=entry["counted_as"],
        extra_parameters=tuple(ExtraParameters(**row) for row in entry["extra_parameters"]),
        vendor=VendorFigures(**vendor),
        misstated=entry.get("misstated", {}),
        not_counted_because=entry.get("not_counted_because"),
        stored_as=entry.get("stored_as"),
        routes_otherwise=entry.get("routes_otherwise", False),
    )


def _catalogue() -> Traversable:
    return files("moetool.catalogue")


def _read_json(file: Traversable) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
