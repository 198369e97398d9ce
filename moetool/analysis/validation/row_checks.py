"""Checks of single rows against the metadata and each other, table by table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from moetool.trace.metadata import RoutedLayer
from moetool.trace.scanning.columns import find_changes, take_numbers, take_words
from moetool.trace.scanning.fault_log import FaultLog
from moetool.trace.scanning.values import describe_logged

KNOWN_LAYERS, KNOWN_EXPERTS = "known layers", "known experts"
PAD_WEIGHTS = "weights without an expert"


class RowChecks:
    """Checks that experts and layers are those of the metadata, and what pads hold.

    Attributes:
        last_position: The largest position of each stack and prompt.
        phases: Those that occur; empty without the column.

    Args:
        layers: The layers that the metadata describes; None if there is no metadata.
        log: Where faults are noted.
    """

    def __init__(self, layers: Iterable[RoutedLayer] | None, log: FaultLog) -> None:
        self.last_position: dict[tuple[str, str], int] = {}
        self.phases: set[str] = set()
        self._num_ids: Mapping[tuple[str, int], int] | None = None
        if layers is not None:
            self._num_ids = {
                (layer.stack, layer.layer): layer.num_experts + layer.num_identity_experts
                for layer in layers
            }
        self._log = log

    def add(self, path: Path, table: pa.Table) -> None:
        """Check a table with at least one row, whose numbers are in range."""
        prompt, stack = take_words(table, "prompt_id"), take_words(table, "stack")
        layer, expert, position = (
            table.column(name).to_numpy() for name in ("layer", "expert", "position")
        )
        starts = np.flatnonzero(find_changes(prompt.codes, stack.codes, layer))
        prompts, of_prompt = prompt.find(starts)
        stacks, of_stack = stack.find(starts)
        largest = np.full((len(stacks), len(prompts)), -1, dtype=np.int64)
        np.maximum.at(largest, (of_stack, of_prompt), np.maximum.reduceat(position, starts))
        for one, other in np.argwhere(largest >= 0):
            key = (stacks[one], prompts[other])
            self.last_position[key] = max(self.last_position.get(key, -1), int(largest[one, other]))
        if "phase" in table.column_names:
            self.phases.update(table.column("phase").unique().drop_null().to_pylist())
        weight = take_numbers(table, "weight")
        if weight is not None and expert.min() < 0:
            is_wrong = (expert < 0) & (weight != 0)
            if is_wrong.any():
                fault = describe_logged(path, table, is_wrong, "has weight {weight:g} of no expert")
                self._log.add(PAD_WEIGHTS, fault, number=int(is_wrong.sum()))
        if self._num_ids is None:
            return
        places, of_place = np.unique(
            np.stack([of_stack, layer[starts].astype(np.intp)]), axis=1, return_inverse=True
        )
        known = [self._num_ids.get((stacks[one], int(number)), -1) for one, number in places.T]
        num_ids = np.array(known)[of_place]  # (num_runs,)
        if (num_ids >= 0).all() and (np.maximum.reduceat(expert, starts) < num_ids).all():
            return
        of_row = np.repeat(num_ids, np.diff(starts, append=len(layer)))
        for kind, is_wrong, words in (
            (
                KNOWN_LAYERS,
                of_row < 0,
                "has rows of layer {layer}, which its metadata doesn't list",
            ),
            (
                KNOWN_EXPERTS,
                (of_row >= 0) & (expert >= of_row),
                "has expert {expert} in layer {layer}, beyond those that its metadata lists",
            ),
        ):
            if is_wrong.any():
                fault = describe_logged(path, table, is_wrong, words)
                self._log.add(kind, fault, number=int(is_wrong.sum()))
