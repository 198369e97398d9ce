"""Files of SGLang's expert distribution recorder, and the map from physical to logical experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.errors import InputError
from moetool.interchange.imports.reading.text import damaged, quote, take_integer
from moetool.interchange.imports.reading.torch_files import load_torch, take_tensor

MAP = "last_physical_to_logical_map"
_REBALANCED_HINT = (
    "Record without --enable-eplb, or between two rebalancings: only the last placement is dumped."
)


@dataclass(frozen=True)
class Dump:
    """One file of the recorder.

    Attributes:
        records: One for each forward pass.
        logical_of: Logical expert by layer and physical expert. # (num_layers, num_physical)
    """

    path: Path
    records: tuple[dict[str, Any], ...]
    logical_of: NDArray[np.int64]

    @property
    def num_experts(self) -> int:
        """Logical experts: each of them lies somewhere."""
        return int(self.logical_of.max()) + 1

    def iter_records(self) -> Iterator[tuple[str, int, int, dict[str, Any]]]:
        """Yield each record with its place, forward pass and rank."""
        for number, record in enumerate(self.records):
            source = f"{quote(self.path)}, record {number}"
            forward_pass, rank = (
                take_integer(record.get(name), name=name, source=source)
                for name in ("forward_pass_id", "rank")
            )
            yield source, forward_pass, rank, record


def open_dumps(paths: tuple[Path, ...]) -> list[Dump]:
    """Return the files of one recording, whose tensors stay on disk until they are used.

    Raises:
        InputError: A file is of another kind, or the files hold different placements.
    """
    dumps = [_open_dump(path) for path in paths]
    first = dumps[0]
    for dump in dumps[1:]:
        if not np.array_equal(dump.logical_of, first.logical_of):
            raise InputError(
                f"{quote(first.path)} and {quote(dump.path)} hold different placements of "
                "experts: SGLang rebalanced them, or they are of different runs.",
                hint=_REBALANCED_HINT,
            )
    return dumps


def refuse_rebalanced(source: str, layer: int) -> InputError:
    """Return the error for a decision that the last placement contradicts."""
    return InputError(
        f"{source} chooses one expert twice in layer {layer} under the placement that was dumped "
        "last, so SGLang has rebalanced experts in between.",
        hint=_REBALANCED_HINT,
    )


def _open_dump(path: Path) -> Dump:
    content = load_torch(path)
    source = quote(path)
    if not isinstance(content, dict) or not isinstance(content.get("records"), list):
        raise damaged(source, "is not a dump of SGLang's recorder by pass or by token")
    records = content["records"]
    if not all(isinstance(record, dict) for record in records):
        raise damaged(source, "holds a record that is not a dictionary")
    logical_of = take_tensor(content.get(MAP), num_dimensions=2, name=MAP, source=source).astype(
        np.int64
    )
    num_physical = logical_of.shape[1]
    if not logical_of.size or not 0 <= logical_of.min() <= logical_of.max() < num_physical:
        raise damaged(source, f"holds impossible numbers of experts in {MAP!r}")
    for layer, row in enumerate(logical_of):
        if len(np.unique(row)) != logical_of.max() + 1:
            raise damaged(source, f"places no copy of some expert of layer {layer} in {MAP!r}")
    return Dump(path, tuple(records), logical_of)
