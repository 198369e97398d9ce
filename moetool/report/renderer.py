"""Define what a renderer is: a function from a finished result and a view to text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar


class ReportFormat(StrEnum):
    """Formats that every report can be rendered in."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


@dataclass(frozen=True)
class Failure:
    """One of several models that could not be shown.

    Attributes:
        model: The name it was asked for by.
        error: What was wrong, in one sentence.
        hint: What to do about it.
    """

    model: str
    error: str
    hint: str


@dataclass(frozen=True)
class View:
    """The part of a result that the reader asked to see. A view changes no number.

    Attributes:
        per_layer: Show every layer, not only totals.
        lists_all: List what is summed up in a line otherwise.
        source: Name of the file or folder that the result was computed from, as the user gave it.
        width: Columns of the terminal. None for a file or pipe, where no cell of a table is broken.
        has_color: Whether words may be coloured and emphasized.
        failures: The models without a result; None unless several were asked for.
    """

    per_layer: bool = False
    source: str | None = None
    width: int | None = None
    has_color: bool = False
    lists_all: bool = False
    failures: tuple[Failure, ...] | None = None

    def list_failures(self) -> dict[str, object]:
        """Return the failures as JSON reports hold them; empty unless several were asked for."""
        return {} if self.failures is None else {"failures": self.failures}


DEFAULT_VIEW = View()

Result_contra = TypeVar("Result_contra", contravariant=True)


class Renderer(Protocol[Result_contra]):
    """Turns a result into text that ends in a newline.

    A renderer chooses words, units and columns. It computes nothing, prints nothing and looks at
    neither files nor the terminal.
    """

    def __call__(self, result: Result_contra, view: View = DEFAULT_VIEW, /) -> str:
        """Return the text."""
        ...


Renderers = Mapping[ReportFormat, Renderer[Result_contra]]
