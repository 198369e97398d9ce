"""The catalogue as tables that fit a terminal, as JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, replace

import pytest

import moetool
from moetool.catalogue.published import (
    ExtraParameters,
    PublishedKind,
    PublishedModel,
    ReportedSystem,
    VendorFigures,
    read_published_models,
    read_reported_systems,
)
from moetool.catalogue.selection import Selection, select_models
from moetool.report.models import (
    RENDERERS,
    render_csv,
    render_json,
    render_table_text,
    say_what_is_missing,
)
from moetool.report.renderer import ReportFormat, View

PLAIN = PublishedModel(
    name="plain-8x7b",
    title="Plain 8x7B",
    hub_id="org/Plain-8x7B",
    kind=PublishedKind.OPEN,
    counted_as=None,
    extra_parameters=(),
    vendor=VendorFigures("46.7", "12.9", "model card", None, None),
    not_counted_because=None,
)
STAND_IN = replace(
    PLAIN,
    name="stand-in",
    counted_as="another class, with one norm more.",
    extra_parameters=(ExtraParameters("norm", 64, "It has a third norm."),),
    vendor=VendorFigures("314", None, "paper", "A note on active.", "A note."),
)
UNCOUNTED = replace(
    PLAIN,
    name="uncounted",
    vendor=VendorFigures(None, None, None, None, None),
    not_counted_because="transformers has no class for it.",
)
DENSE = replace(PLAIN, name="dense-70b", kind=PublishedKind.DENSE)
MODELS = (PLAIN, STAND_IN, UNCOUNTED, DENSE)
REPORTED = ReportedSystem(
    name="closed-1",
    title="Closed-1",
    maker="Maker",
    total="1.6–1.8T",
    active=None,
    experts="16, top-2",
    source="press reports of 2023",
    notes="Unconfirmed.",
)

TERMINAL = View(width=80)
CATALOGUE = Selection(models=MODELS, systems=(REPORTED,))
EVERYTHING = select_models(read_published_models().values(), read_reported_systems().values())
NOTHING = Selection(models=(), systems=())


def line_of(name: str) -> str:
    text = render_table_text(CATALOGUE, TERMINAL)
    (line,) = (line for line in text.splitlines() if line.split()[:1] == [name])
    return line


# The table


def test_the_table_fits_eighty_columns() -> None:
    lines = render_table_text(EVERYTHING, TERMINAL).splitlines()
    assert [line for line in lines if len(line) > 80 or line != line.rstrip()] == []


def test_the_table_has_a_line_for_every_model_with_its_figures() -> None:
    assert line_of("plain-8x7b").split() == ["plain-8x7b", "46.7B", "12.9B", "org/Plain-8x7B"]
    assert line_of("dense-70b").split()[1:3] == ["46.7B", "dense"]


def test_models_counted_with_another_class_or_not_at_all_are_marked_and_explained() -> None:
    assert line_of("stand-in").split()[:4] == ["stand-in", "*", "314B", "–"]
    assert line_of("uncounted").split()[:4] == ["uncounted", "†", "–", "–"]
    text = " ".join(render_table_text(CATALOGUE, TERMINAL).split())
    assert "* stand-in: another class, with one norm more." in text
    assert "† uncounted can't be counted: transformers has no class for it." in text


def test_reported_systems_stand_below_labelled_as_reported() -> None:
    text = render_table_text(CATALOGUE, TERMINAL)
    published, _, reported = text.partition("\nreported ")
    assert "closed-1" not in published
    assert line_of("closed-1").split()[:4] == ["closed-1", "Maker", "1.6–1.8T", "–"]
    assert "closed-1: Unconfirmed." in reported
    assert "never computed" in reported


def test_only_the_listed_models_are_explained() -> None:
    text = " ".join(render_table_text(Selection(models=(PLAIN, DENSE), systems=())).split())
    assert text.endswith("Models are counted with their own transformers class.")
    assert "reported" not in text


def test_only_reported_systems_are_a_table_of_their_own() -> None:
    text = render_table_text(Selection(models=(), systems=(REPORTED,)))
    assert text.startswith("reported ")
    assert "Hub id" not in text


def test_nothing_is_an_empty_table_with_its_header() -> None:
    assert render_table_text(NOTHING).split() == ["name", "total", "active", "Hub", "id", "─" * 30]


def test_a_selection_says_what_it_left_out() -> None:
    assert say_what_is_missing(CATALOGUE) is None
    assert say_what_is_missing(NOTHING) == "No model matches."
    left_out = replace(CATALOGUE, num_unknown=1)
    sentence = "1 model was left out because the vendor doesn't publish the figure that is limited."
    assert say_what_is_missing(left_out) == sentence
    assert say_what_is_missing(replace(NOTHING, num_unknown=1)) == f"No model matches. {sentence}"
    assert json.loads(render_json(left_out))["notes"][1] == sentence
    assert json.loads(render_json(NOTHING))["models"] == []


# JSON


def test_json_carries_every_field_of_every_model_and_system() -> None:
    value = json.loads(render_json(CATALOGUE))
    assert value["schema"] == "moetool.models/1"
    assert value["moetool"] == moetool.__version__
    assert [entry["kind"] for entry in value["models"]] == ["open"] * 3 + ["dense", "reported"]
    for model, entry in zip(MODELS, value["models"], strict=False):
        assert entry["can_be_counted"] is model.can_be_counted
        assert entry | json.loads(json.dumps(asdict(model))) == entry
    assert value["models"][-1] == {"kind": "reported", **asdict(REPORTED)}
    assert "not given" in value["notes"][0]


# CSV


def test_csv_has_one_row_for_every_model_and_system() -> None:
    rows = list(csv.DictReader(io.StringIO(render_csv(CATALOGUE), newline="")))
    assert [row["name"] for row in rows] == [*(model.name for model in MODELS), "closed-1"]
    assert [row["kind"] for row in rows] == ["open", "open", "open", "dense", "reported"]
    assert [row["total"] for row in rows] == ["46.7B", "314B", "", "46.7B", "1.6–1.8T"]
    stand_in, reported = rows[1], rows[-1]
    assert stand_in["counted_as"] == STAND_IN.counted_as
    assert (stand_in["active_note"], stand_in["notes"]) == ("A note on active.", "A note.")
    assert rows[2]["not_counted_because"] == UNCOUNTED.not_counted_because
    assert (reported["maker"], reported["experts"]) == ("Maker", "16, top-2")
    assert (reported["hub_id"], reported["active"]) == ("", "")


@pytest.mark.parametrize("form", ReportFormat)
def test_every_format_names_the_whole_catalogue(form: ReportFormat) -> None:
    text = RENDERERS[form](EVERYTHING)
    assert text.endswith("\n")
    assert all(model.name in text for model in EVERYTHING.models)
    assert all(system.name in text for system in EVERYTHING.systems)
