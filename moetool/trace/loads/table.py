"""Load tables: how often each expert was chosen, without the tokens that chose it.

A load table has the columns `layer, expert, count` and optionally `stack` and `step`. Formats that
only count experts are imported as one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moetool.errors import InputError
from moetool.plain import show_fields
from moetool.printable import printable
from moetool.trace.decisions import NO_DOMAIN
from moetool.trace.facts import TraceFacts
from moetool.trace.loads.metadata import LoadMetadata, has_load_columns, parse_load_metadata
from moetool.trace.loads.rows import (
    LOAD_SCHEMA,
    READ_ERRORS,
    Place,
    check_num_cells,
    iter_load_tables,
    read_load_header,
    sum_loads,
    unreadable_loads,
)
from moetool.trace.reading.counts import ExpertCounts, LayerCounts
from moetool.trace.reading.files import find_files
from moetool.wording import number_of

if TYPE_CHECKING:
    import pandas as pd

_PRECISION_NOTES = {
    "lower bound": ("Counts are lower bounds: a counter of their source ran full.",),
    "approximate": ("Counts are approximate, as their source says.",),
}


@dataclass(frozen=True)
class LoadTable:
    """A load table that was found and opened, but not yet read.

    Attributes:
        path: File, as the user named it.
        columns: Those of `LOAD_SCHEMA` that it has.
        metadata: None if it has none.
    """

    path: Path
    columns: tuple[str, ...]
    metadata: LoadMetadata | None = None

    __repr__ = show_fields

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that a reader of the counts should know."""
        if self.metadata is None:
            return ()
        return (*_PRECISION_NOTES.get(self.metadata.precision, ()), *self.metadata.notes)

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a DataFrame.

        Raises:
            InputError: A value is missing, below 0 or doesn't fit its column.
        """
        schema = pa.schema([LOAD_SCHEMA.field(name) for name in self.columns])
        tables = [schema.empty_table(), *iter_load_tables(self.path, self.columns)]
        frame: pd.DataFrame = pa.concat_tables(tables).unify_dictionaries().to_pandas()
        return frame

    def to_counts(
        self,
        *,
        num_experts: int | None = None,
        top_k: int | None = None,
        needs_top_k: bool = True,
    ) -> ExpertCounts:
        """Return the counts of all steps together, in one group.

        Decisions are not stored: a layer's are its assignments divided by its top-k.

        Args:
            num_experts: As the user states it; None to take it from the metadata, or else the
                largest id plus one.
            top_k: As the user states it; None to take it from the metadata.
            needs_top_k: Refuse a table whose top-k is unknown. Otherwise it is taken to be 1, so
                that decisions are assignments, `knows_top_k` is false, and a note says so.

        Raises:
            InputError: The table can't be read, holds a row twice or no row, contradicts its
                metadata or the arguments, or its top-k is unknown.
        """
        sums = sum_loads(self.path, self.columns)
        if not sums:
            raise InputError(f"'{printable(self.path)}' holds no rows.", hint="Import it again.")
        notes = list(self.notes)
        shapes = self._find_shapes(sums, num_experts=num_experts, top_k=top_k, notes=notes)
        if any(k is None for _, k in shapes.values()):
            if needs_top_k:
                raise InputError(
                    f"The load table '{printable(self.path)}' doesn't state how many experts a "
                    "decision chooses.",
                    hint="Give --top-k, the number of experts per token.",
                )
            notes.append(
                "The table doesn't state how many experts a decision chooses, so the number of tokens "
                "is unknown, and what follows from it: --top-k states it."
            )
        layers = [
            _count_layer(place, sums[place], size=size, top_k=k)
            for place, (size, k) in sorted(shapes.items())
        ]
        num_uneven = sum(bool(each.assignments.sum() % each.top_k) for each in layers)
        if num_uneven:
            notes.append(
                f"The assignments of {number_of(num_uneven, 'layer')} are not a multiple of top-k: "
                "decisions are rounded down."
            )
        return ExpertCounts(
            groups=(NO_DOMAIN,), domains=(NO_DOMAIN,), layers=tuple(layers), notes=tuple(notes)
        )

    def describe(self, layers: Sequence[LayerCounts]) -> TraceFacts:
        """Return the facts about the table.

        Args:
            layers: Those that a result is about, at least one.
        """
        metadata = self.metadata
        knows_top_k = all(layer.knows_top_k for layer in layers)
        return TraceFacts(
            trace=str(self.path),
            model=None if metadata is None else metadata.model,
            revision=None,
            model_type=None,
            complete=None,
            exact=None if metadata is None else metadata.precision == "exact",
            num_prompts=None,
            num_tokens=max(int(layer.decisions.sum()) for layer in layers) if knows_top_k else None,
            num_assignments=sum(int(layer.assignments.sum()) for layer in layers),
        )

    def _find_shapes(
        self,
        sums: Mapping[Place, NDArray[np.int64]],
        *,
        num_experts: int | None,
        top_k: int | None,
        notes: list[str],
    ) -> dict[Place, tuple[int, int | None]]:
        """Return every layer's number of experts and top-k, and note what had to be inferred."""
        described = {} if self.metadata is None else self.metadata.layers
        known = {(each.stack, each.layer): each for each in described}
        most_ids = max(len(total) for total in sums.values())
        shapes: dict[Place, tuple[int, int | None]] = {}
        is_assumed = False
        for place, total in sums.items():
            size = known[place].num_experts if place in known else None
            k = known[place].top_k if place in known else None
            self._compare(place, "--num-experts", asked=num_experts, stated=size)
            self._compare(place, "--top-k", asked=top_k, stated=k)
            is_assumed |= size is None and num_experts is None
            size, k = size or num_experts or most_ids, k or top_k
            if len(total) > size or (k or 0) > size:
                seen = f"expert {len(total) - 1}" if len(total) > size else f"top-{k}"
                raise InputError(
                    f"'{printable(self.path)}' has {seen} in layer {place[1]}, which has "
                    f"{number_of(size, 'expert')}.",
                    hint="Ids count from 0; correct --num-experts or --top-k, or import again.",
                )
            shapes[place] = (size, k)
        if is_assumed:
            notes.append(
                f"{most_ids} experts are assumed, the largest id seen plus one; give --num-experts "
                "if there are more."
            )
        check_num_cells(self.path, len(shapes), max(size for size, _ in shapes.values()))
        return shapes

    def _compare(self, place: Place, option: str, *, asked: int | None, stated: int | None) -> None:
        if asked is not None and stated is not None and asked != stated:
            raise InputError(
                f"{option} says {asked}, but the metadata of '{printable(self.path)}' says "
                f"{stated} in layer {place[1]}.",
                hint="Leave out the option: it is for tables without metadata.",
            )


def is_load_table(path: Path) -> bool:
    """Return whether a Parquet or CSV file counts experts instead of listing tokens' choices.

    A file that can't be read is not a load table.
    """
    try:
        return path.is_file() and has_load_columns(read_load_header(find_files(path)[0])[0])
    except (InputError, *READ_ERRORS):
        return False


def open_loads(path: Path) -> LoadTable:
    """Return the load table at a path: a Parquet or CSV file.

    Raises:
        InputError: There is no load table at the path.
    """
    file, *others = find_files(path)
    try:
        names, text = read_load_header(file)
    except READ_ERRORS as error:
        raise unreadable_loads(file, error) from error
    if others or not has_load_columns(names):
        raise InputError(
            f"'{printable(path)}' is not a load table: it is not one file with the columns layer, "
            "expert and count.",
            hint="Import one with moetool import, or give a trace where one is taken.",
            facts=[f"seen: {printable(', '.join(names[:12]))}"],
        )
    repeated = [name for name in LOAD_SCHEMA.names if names.count(name) > 1]
    if repeated:
        raise InputError(
            f"'{printable(file)}' has the column {repeated[0]!r} more than once.",
            hint="Name each column once.",
        )
    return LoadTable(
        path=file,
        columns=tuple(name for name in LOAD_SCHEMA.names if name in names),
        metadata=None if text is None else parse_load_metadata(text, source=str(file)),
    )


def _count_layer(
    place: Place, total: NDArray[np.int64], *, size: int, top_k: int | None
) -> LayerCounts:
    assignments = np.pad(total, (0, size - len(total)))[None]  # (1, num_experts)
    return LayerCounts(
        stack=place[0],
        layer=place[1],
        top_k=top_k or 1,
        assignments=assignments,
        decisions=assignments.sum(axis=1) // (top_k or 1),
        knows_top_k=top_k is not None,
    )
