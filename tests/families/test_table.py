"""The table of families in the documentation is what the suite sees."""

from __future__ import annotations

import pytest
import transformers

from tests.families.models import available
from tests.families.table import DOCUMENT, table_row

# What section "On transformers 5.17" says of them is not in the table.
OTHERWISE_ON_5_17 = {"aria", "aria_text", "jamba", "longcat_flash", "switch_transformers"}


@pytest.fixture(scope="module")
def shown() -> dict[str, str]:
    """The table's row of each family."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ") and line.count(" | ") >= 6]
    return {row.split(" | ")[0].removeprefix("| "): row for row in rows}


@pytest.mark.parametrize("family", available())
def test_the_row_shown_is_the_row_seen(family: str, shown: dict[str, str]) -> None:
    """If it is stale: python -m tests.families.table --write."""
    is_otherwise = transformers.__version__.startswith("5.17") and family in OTHERWISE_ON_5_17
    assert (table_row(family) == shown[family]) != is_otherwise


def test_no_row_is_of_a_family_that_does_not_exist(shown: dict[str, str]) -> None:
    if not transformers.__version__.startswith("5.17"):
        assert set(shown) - {"family"} == set(available())
