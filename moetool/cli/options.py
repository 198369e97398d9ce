"""What command-line values mean, where Typer's own types don't say it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from moetool.errors import UsageError

# Far beyond any model's; keeps a slip of the finger from filling the memory.
_LARGEST_LAYER = 100_000
# Far beyond any size's, and far below what Python refuses to read.
_MOST_DIGITS = 20


class ReportFormat(StrEnum):
    """How a result is shown."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


def parse_layers(text: str | None) -> frozenset[int] | None:
    """Return the layer numbers in a text like `0,2-5`; None for None.

    Raises:
        UsageError: The text is no such list.
    """
    if text is None:
        return None
    layers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(
                f"--layers: '{part.strip()}' is not a layer number or range.",
                hint="Write layers as in 0,2-5.",
            )
        start, end = int(first), int(last or first)
        if end < start or end > _LARGEST_LAYER:
            raise UsageError(
                f"--layers: '{part.strip()}' is not a range of layers.",
                hint="Write the smaller number first, as in 0,2-5.",
            )
        layers.update(range(start, end + 1))
    return frozenset(layers)


def parse_numbers(text: str, *, option: str) -> tuple[int, ...]:
    """Return the whole numbers in a text like `1,8,32`.

    Raises:
        UsageError: The text is no such list.
    """
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not part.removeprefix("-").isdecimal() or len(part) > _MOST_DIGITS:
            raise UsageError(
                f"{option}: '{part}' is not a usable number.",
                hint="Write whole numbers as in 1,8,32.",
            )
    return tuple(map(int, parts))


def choose_report_format(asked: ReportFormat | None, output: Path | None) -> ReportFormat:
    """Return the format asked for, else the one the output's suffix means, else a table.

    Raises:
        UsageError: The suffix means no format.
    """
    if asked is not None or output is None or str(output) == "-":
        return asked or ReportFormat.TABLE
    by_suffix = {
        ".json": ReportFormat.JSON,
        ".csv": ReportFormat.CSV,
        ".txt": ReportFormat.TABLE,
    }
    if output.suffix not in by_suffix:
        raise UsageError(
            f"Can't tell the format of '{output}'.",
            hint="End the name in .json, .csv or .txt, or give --format.",
        )
    return by_suffix[output.suffix]
