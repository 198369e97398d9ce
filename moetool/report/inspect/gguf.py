"""Show the types that a GGUF model's tensors are stored in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from moetool.report.text.tables import make_table
from moetool.wording import format_bytes, format_count

if TYPE_CHECKING:
    from moetool.inspection.gguf.facts import GgufFacts


def make_types(facts: GgufFacts) -> Table:
    """Return the types of tensors, with what is stored in each."""
    rows = [
        (
            each.type,
            f"{each.num_tensors:,}",
            format_count(each.num_elements),
            format_bytes(each.num_bytes),
            f"{each.bits_per_weight:.4g}",
        )
        for each in facts.types
    ]
    headers = ("type", "tensors", "numbers", "bytes", "bits per weight")
    return make_table(headers, rows, right=(1, 2, 3, 4))
