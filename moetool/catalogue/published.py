"""Published models as data: what they are called, how they are built, what their vendors say."""

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
    """What sort of model an entry of the catalogue is.

    Attributes:
        OPEN: A Mixture-of-Experts model with open weights.
        DENSE: A model without experts, there to compare with.
    """

    OPEN = "open"
    DENSE = "dense"


@dataclass(frozen=True)
class ExtraParameters:
    """Parameters that a model has and the class it is counted with lacks.

    Attributes:
        component: What they belong to, a value of `moetool.anatomy.components.Component`.
        params_per_layer: How many there are in each of the text model's layers; every token runs
            them.
        because: What they are, in words.
    """

    component: str
    params_per_layer: int
    because: str


@dataclass(frozen=True)
class VendorFigures:
    """What a model's vendor publishes of its size.

    Attributes:
        total_b: Billions of parameters, with the digits published: `46.7`. What is published in
            trillions is written out, so zeros at the end of `1600` are no digits. None if unknown.
        active_b: Billions that a token runs, likewise. Vendors count them in different ways.
        source: Where it says so. None without figures.
        active_note: What the vendor itself says of how active parameters are counted.
        notes: Why a figure differs from the model that transformers builds, or is to be read with
            care.
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
        counted_as: Where transformers has no class for it: which class of the same shapes stands
            in, in words. Where its published configuration is of another model: what it is counted
            by instead. None for transformers' own class and the published configuration.
        extra_parameters: What that class lacks.
        vendor: The published figures.
        not_counted_because: Why there is no configuration to count it by; None if there is one.
        stored_as: How the published files are quantized, where the configuration doesn't say so;
            None if it does, or if they are not.
        misstated: Fields of the published configuration that contradict the published model, with
            the values that it gives them. moetool's own configuration has others.
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
        maker: Who made it.
        total: Parameters as reported, with unit: `1.2T`. None if nobody says.
        active: Parameters that a token runs as reported, with unit. None if nobody says.
        experts: Experts and how many a token is routed to, as reported. None if nobody says.
        source: Who reports it.
        notes: How far to trust it.
    """

    name: str
    title: str
    maker: str
    total: str | None
    active: str | None
    experts: str | None
    source: str
    notes: str | None


@cache
def read_published_models() -> Mapping[str, PublishedModel]:
    """Return the published models by short name, in alphabetical order."""
    entries = _read_json(_catalogue().joinpath("models.json"))
    return MappingProxyType({name: _as_model(name, entry) for name, entry in entries.items()})


def read_published_config(name: str) -> dict[str, object]:
    """Return the configuration a published model is counted by, a fresh copy on every call.

    Its fields are those of the vendor's config.json that a class or a quantization reads; where
    `counted_as` says so, those of the class that stands in.

    Args:
        name: A short name, in upper or lower case.

    Raises:
        InputError: The catalogue has no such model, or no configuration of it.
    """
    model = read_published_models().get(name.lower())
    if model is None:
        raise InputError(
            f"The catalogue has no model '{name}'.", hint="`moetool models` lists those it has."
        )
    if model.not_counted_because is not None:
        raise InputError(
            f"{model.title} can't be counted: {model.not_counted_because}",
            hint="Name another model; `moetool models` lists those that can be counted.",
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
    )


def _catalogue() -> Traversable:
    return files("moetool.catalogue")


def _read_json(file: Traversable) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
