"""Properties that every report for machines has."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

import pytest
import torch
import transformers

import moetool
from moetool.report.envelope import MODEL_LIBRARIES, iter_csv, render_csv, render_json


class Kind(StrEnum):
    ONE = "one"


@dataclass(frozen=True)
class Inner:
    number: float | None
    kind: Kind = Kind.ONE


def read(payload: dict[str, object]) -> dict[str, object]:
    value = json.loads(render_json("moetool.test/1", payload), parse_constant=pytest.fail)
    assert isinstance(value, dict)
    return value


def test_an_object_names_its_schema_and_version_first() -> None:
    value = read({"rows": []})
    assert list(value) == ["schema", "moetool", "rows"]
    assert (value["schema"], value["moetool"]) == ("moetool.test/1", moetool.__version__)


def test_the_versions_of_libraries_that_a_figure_depends_on_can_be_cited() -> None:
    text = render_json("moetool.test/1", {"rows": []}, libraries=MODEL_LIBRARIES)
    value = json.loads(text)
    assert list(value) == ["schema", "moetool", "versions", "rows"]
    assert value["versions"] == {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def test_dataclasses_mappings_tuples_and_enums_become_plain() -> None:
    value = read({"rows": (Inner(1.5),), "named": MappingProxyType({Kind.ONE: Inner(None)})})
    assert value["rows"] == [{"number": 1.5, "kind": "one"}]
    assert value["named"] == {"one": {"number": None, "kind": "one"}}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_null_however_deep_it_lies(number: float) -> None:
    value = read({"rows": [{"inner": Inner(number)}], "number": number})
    assert value["rows"] == [{"inner": {"number": None, "kind": "one"}}]
    assert value["number"] is None


def test_json_is_text_that_steers_no_terminal_and_reads_the_same() -> None:
    name = "\x9b31m\u202e\udce9 größe"
    text = render_json("moetool.test/1", {"name": name})
    assert {letter for letter in text if not letter.isprintable()} == {"\n"}
    assert "größe" in text
    assert json.loads(text.encode())["name"] == name


def test_a_row_may_lack_columns_but_have_no_others() -> None:
    text = render_csv([{"a": 1}, {"a": None, "b": "x, y"}], ("a", "b"))
    assert text == 'a,b\n1,\n,"x, y"\n'
    assert list(csv.DictReader(io.StringIO(text)))[1] == {"a": "", "b": "x, y"}
    with pytest.raises(ValueError, match="c"):
        render_csv([{"c": 1}], ("a", "b"))


def test_bytes_of_a_path_that_are_not_text_can_be_written() -> None:
    assert render_csv([{"a": "caf\udce9"}], ("a",)).encode() == b"a\ncaf?\n"


@pytest.mark.parametrize("num_rows", [0, 1, 4_095, 4_096, 4_097, 10_000])
def test_parts_of_a_table_are_those_of_the_whole(num_rows: int) -> None:
    parts = list(iter_csv(({"a": row} for row in range(num_rows)), ("a",)))
    assert "".join(parts).split() == ["a", *map(str, range(num_rows))]
    assert max(part.count("\n") for part in parts) <= 4_097


def test_a_part_is_made_when_it_is_asked_for() -> None:
    taken: list[int] = []
    rows = ({"a": taken.append(row) or row} for row in range(100_000))  # type: ignore[func-returns-value]
    assert next(iter_csv(rows, ("a",))).startswith("a\n0\n1\n")
    assert len(taken) < 10_000
