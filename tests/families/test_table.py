"""The table of families in the documentation is what the suite sees."""

from __future__ import annotations

import pytest
import transformers

from tests.families.tiny.models import available, broken
from tests.families.tiny.table import DOCUMENT, table_row

# The table is of the newest transformers. What the document says of older ones is not in it.
OTHERWISE = {
    "5.17": {"aria", "aria_text", "jamba", "llama4", "longcat_flash", "switch_transformers"},
    "5.23": {"llama4"},
}
VERSION = ".".join(transformers.__version__.split(".")[:2])


@pytest.fixture(scope="module")
def shown() -> dict[str, str]:
    """The table's row of each family."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ") and line.count(" | ") >= 6]
    return {row.split(" | ")[0].removeprefix("| "): row for row in rows}


@pytest.mark.parametrize("family", [*available(), *broken()])
def test_the_row_shown_is_the_row_seen(family: str, shown: dict[str, str]) -> None:
    """If it is stale: python -m tests.families.tiny.table --write."""
    is_otherwise = family in OTHERWISE.get(VERSION, ())
    assert (table_row(family) == shown[family]) != is_otherwise


def test_no_row_is_of_a_family_that_does_not_exist(shown: dict[str, str]) -> None:
    if VERSION not in OTHERWISE:
        assert set(shown) - {"family"} == {*available(), *broken()}
