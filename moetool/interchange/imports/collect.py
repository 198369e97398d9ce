"""Collect decisions into rows of a trace, check them, and count what they hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moetool.errors import InputError
from moetool.interchange.imports.runs import (
    DECODER,
    LayerChoices,
    Place,
    TokenRun,
    TraceImport,
)
from moetool.interchange.imports.shapes import GivenShapes
from moetool.trace.decisions import NO_DOMAIN, NO_EXPERT, PHASES
from moetool.trace.metadata import RoutedLayer
from moetool.trace.metadata_fields import LARGEST_ID
from moetool.trace.schema import TRACE_SCHEMA

_ROWS_PER_TABLE = 250_000
_LARGEST_POSITION = 2**31 - 1
_DAMAGED_HINT = "Record again: the file is damaged, or of another version."


class RowCollector:
    """Turns the runs of an import into tables with columns of `TRACE_SCHEMA`.

    Attributes:
        num_tokens: Distinct prompts and positions so far.
        num_decisions: Decisions of at least one expert so far.
        num_rows: Rows so far.

    Args:
        imported: The runs, their columns, and facts.
        shapes: What the user says about the model.
    """

    def __init__(self, imported: TraceImport, shapes: GivenShapes) -> None:
        self.num_tokens = self.num_decisions = self.num_rows = 0
        self._imported, self._shapes = imported, shapes
        names = ("prompt_id", "position", "stack", "layer", "expert", *imported.columns)
        self.schema = pa.schema([field for field in TRACE_SCHEMA if field.name in names])
        self._tokens: dict[str, range | NDArray[np.int64]] = {}
        self._widths: dict[Place, int] = {}
        self._sizes: dict[Place, int | None] = {}

    @property
    def num_prompts(self) -> int:
        """Prompts so far."""
        return len(self._tokens)

    @property
    def num_layers(self) -> int:
        """Layers with rows so far."""
        return len(self._widths)

    @property
    def widths(self) -> tuple[int, ...]:
        """Most experts of one decision, by layer."""
        return tuple(self._widths.values())

    def iter_tables(self) -> Iterator[pa.Table]:
        """Yield all rows, about 250,000 at a time.

        Raises:
            InputError: A file can't be read, or holds decisions that no model makes.
        """
        waiting: list[tuple[TokenRun, LayerChoices]] = []
        num_waiting = 0
        for run in self._imported.runs:
            if not len(run.position):
                continue
            self._check_tokens(run)
            self._count_tokens(run)
            # Layer by layer: those of a long prompt make many tables.
            for choices in run.layers:
                experts = choices.experts.astype(np.int64, copy=False)
                waiting.append((run, replace(choices, experts=experts)))
                self._check_choices(*waiting[-1])
                num_waiting += experts.size
                if num_waiting >= _ROWS_PER_TABLE:
                    yield self._make_table(waiting)
                    waiting, num_waiting = [], 0
        if waiting:
            yield self._make_table(waiting)

    def describe_layers(self) -> tuple[RoutedLayer, ...]:
        """Return the layers that had rows; none if the number of experts of one is unknown.

        Raises:
            InputError: The decisions contradict the stated top-k.
        """
        facts, shapes = self._imported.facts, self._shapes
        for (stack, layer), width in sorted(self._widths.items()):
            stated = shapes.state_top_k(facts, layer) if stack == DECODER else facts.top_k
            if stated is not None and width != stated:
                raise InputError(
                    f"Decisions in layer {layer} have at most {width} experts, but the stated "
                    f"top-k is {stated}.",
                    hint="Name the model that was recorded, or correct --top-k.",
                )
        if any(size is None for size in self._sizes.values()):
            return ()
        return tuple(
            RoutedLayer(
                stack=stack,
                layer=layer,
                module="",
                router=None,
                num_experts=self._sizes[stack, layer] or 1,
                num_identity_experts=0,
                top_k=width,
            )
            for (stack, layer), width in sorted(self._widths.items())
        )

    def _check_tokens(self, run: TokenRun) -> None:
        position = run.position
        if not 0 <= position.min() <= position.max() <= _LARGEST_POSITION:
            raise InputError(f"{run.source} holds a position out of range.", hint=_DAMAGED_HINT)
        if run.token_id is not None:
            ids = run.token_id
            if not 0 <= ids.min() <= ids.max() <= _LARGEST_POSITION:
                raise InputError(f"{run.source} holds a token id out of range.", hint=_DAMAGED_HINT)

    def _check_choices(self, run: TokenRun, choices: LayerChoices) -> None:
        place = (choices.stack, choices.layer)
        if not 0 <= choices.layer <= LARGEST_ID:
            raise InputError(f"{run.source} numbers a layer {choices.layer}.", hint=_DAMAGED_HINT)
        if place not in self._sizes:
            if choices.stack == DECODER:
                self._shapes.check_routed(choices.layer)
                size = self._shapes.find_num_experts(self._imported.facts, choices.layer)
            else:
                size = self._imported.facts.num_experts or self._shapes.any_num_experts
            self._sizes[place] = size
        experts = choices.experts
        if not experts.size:
            return
        most = self._sizes[place] or LARGEST_ID + 1
        wrong = (experts < (NO_EXPERT if choices.is_padded else 0)) | (experts >= most)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise InputError(
                f"{run.source} has expert {experts[row, column]} in layer {choices.layer}, "
                f"position {run.position[row]}: ids are from 0 to {most - 1}.",
                hint="Name the model that was recorded, or record again.",
            )
        ordered = np.sort(experts, axis=1)
        repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
        if repeated.any():
            row, column = np.argwhere(repeated)[0]
            raise InputError(
                f"{run.source} has expert {ordered[row, column]} twice in one decision: layer "
                f"{choices.layer}, position {run.position[row]}.",
                hint="Check --top-k, and that this layer routes: dense layers are left out with "
                "--model or --layers.",
            )
        weights = choices.weights
        if weights is not None:
            bad = (experts >= 0) & ~(np.isfinite(weights) & (weights >= 0))
            if bad.any():
                row, column = np.argwhere(bad)[0]
                raise InputError(
                    f"{run.source} has the weight {weights[row, column]:.4g} in layer "
                    f"{choices.layer}, position {run.position[row]}.",
                    hint=_DAMAGED_HINT,
                )

    def _make_table(self, waiting: Sequence[tuple[TokenRun, LayerChoices]]) -> pa.Table:
        """Return the rows of some layers of runs, and count them."""
        words: dict[str, dict[str, int]] = {
            name: {} for name in ("prompt_id", "domain", "stack", "token")
        }
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in self.schema.names}
        for run, choices in waiting:
            token, expert, rank, weight = _flatten(choices)
            if not len(token):
                continue
            place = (choices.stack, choices.layer)
            self._widths[place] = max(self._widths.get(place, 0), int(rank.max()) + 1)
            self.num_decisions += int((rank == 0).sum())
            self.num_rows += len(token)
            columns = {
                "prompt_id": _code(words["prompt_id"], run.prompt_id, len(token)),
                "domain": _code(words["domain"], run.domain or NO_DOMAIN, len(token)),
                "stack": _code(words["stack"], choices.stack, len(token)),
                "phase": None if run.phase is None else run.phase[token],
                "position": run.position[token],
                "token_id": None if run.token_id is None else run.token_id[token],
                "token": None if run.token is None else _code_all(words["token"], run.token)[token],
                "layer": np.full(len(token), choices.layer),
                "rank": rank,
                "expert": expert,
                "weight": weight,
            }
            for name, part in parts.items():
                column = columns[name]
                assert column is not None, f"{run.source} has no {name}"
                part.append(column)
        arrays: dict[str, Any] = {}
        for field in self.schema:
            values = np.concatenate(parts[field.name]) if parts[field.name] else np.zeros(0)
            if pa.types.is_dictionary(field.type):
                known = PHASES if field.name == "phase" else list(words[field.name])
                arrays[field.name] = pa.DictionaryArray.from_arrays(
                    values.astype(np.int32), pa.array(known, type=pa.string())
                )
            else:
                arrays[field.name] = values.astype(field.type.to_pandas_dtype())
        return pa.table(arrays, schema=self.schema)

    def _count_tokens(self, run: TokenRun) -> None:
        """Count the tokens that no earlier run had: layers of one token may come in several runs."""
        seen = self._tokens.get(run.prompt_id, range(0))
        position = np.unique(run.position)
        if isinstance(seen, range):
            known = (position >= seen.start) & (position < seen.stop)
            new = position[~known]
            start = seen.stop if len(seen) else int(position[0])
            if not len(new):
                return
            if new[0] == start and new[-1] == start + len(new) - 1:
                self._tokens[run.prompt_id] = range(
                    seen.start if len(seen) else start, start + len(new)
                )
                self.num_tokens += len(new)
                return
            seen = np.arange(seen.start, seen.stop)
        union = np.union1d(seen, position)
        self.num_tokens += len(union) - len(seen)
        self._tokens[run.prompt_id] = union


def _flatten(
    choices: LayerChoices,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    """Return the token's index, expert, rank and weight of each assignment, padding left out.

    Where there are weights, the largest comes first; equal ones keep the order of the format.
    """
    experts, weights = choices.experts, choices.weights
    if weights is not None:
        key = np.where(experts >= 0, -weights, np.inf)
        order = np.argsort(key, axis=1, kind="stable")
        experts = np.take_along_axis(experts, order, axis=1)
        weights = np.take_along_axis(weights, order, axis=1)
    is_real = experts >= 0
    token, _ = np.nonzero(is_real)
    rank = (np.cumsum(is_real, axis=1) - 1)[is_real]
    return token, experts[is_real], rank, None if weights is None else weights[is_real]


def _code_all(codes: dict[str, int], words: Sequence[str]) -> NDArray[np.int32]:
    return np.array([codes.setdefault(word, len(codes)) for word in words], dtype=np.int32)


def _code(codes: dict[str, int], word: str, number: int) -> NDArray[np.int32]:
    return np.full(number, codes.setdefault(word, len(codes)), dtype=np.int32)
