"""Responses of inference servers: read from JSON files, named, and freed of dense layers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.errors import InputError, UsageError
from moetool.interchange.imports.reading.text import (
    damaged,
    iter_lines,
    load_json,
    quote,
    read_whole,
    take_object,
)
from moetool.interchange.imports.runs import DECODER, Facts, LayerChoices
from moetool.interchange.imports.shapes import MODEL_HINT, GivenShapes
from moetool.printable import printable


def iter_responses(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each JSON object of a file, with its place: one, a list of them, or one on each line.

    Raises:
        InputError: The file is not JSON, or holds something else.
    """
    lines = iter_lines(path)
    first = next(lines, None)
    if first is None:
        raise damaged(quote(path), "is empty")
    try:
        is_by_line = isinstance(json.loads(first.text), dict)
    except (ValueError, RecursionError):
        is_by_line = False
    if is_by_line:
        for line in (first, *lines):
            yield (
                line.source,
                take_object(load_json(line.text, source=line.source), source=line.source),
            )
        return
    whole = load_json(read_whole(path), source=quote(path))
    items = whole if isinstance(whole, list) else [whole]
    for number, item in enumerate(items):
        source = quote(path) if item is whole else f"{quote(path)}, response {number}"
        yield source, take_object(item, source=source)


@dataclass
class Names:
    """Gives each response a prompt id that no other has."""

    _taken: set[str] = field(default_factory=set)

    def take(self, name: str) -> str:
        """Return the name, with a number if it is taken."""
        number, unique = 1, name
        while unique in self._taken:
            number += 1
            unique = f"{name}#{number}"
        self._taken.add(unique)
        return unique


@dataclass
class LayerRows:
    """Chooses the rows of an array that are routed layers, the same for all arrays of an import.

    Args:
        shapes: What the user says about the model.
        facts: Receives a note if dense layers were recognized by their content.
    """

    shapes: GivenShapes
    facts: Facts
    _dense: frozenset[int] | None = None

    def choose(
        self, array: NDArray[Any], *, source: str, only_routed: bool = False
    ) -> list[LayerChoices]:
        """Return the choices of the routed layers.

        Args:
            array: Expert ids by token, layer and rank.
            source: The place of the array, for error messages.
            only_routed: The array is known to have no dense layers.

        Raises:
            InputError: The array doesn't fit the given layers, or contradicts an earlier one.
            UsageError: It isn't known which layers route.
        """
        num_layers = array.shape[1]
        numbers = self._find_numbers(num_layers, source=source, only_routed=only_routed)
        if numbers is None:
            numbers = self._find_by_content(array, source=source)
        return [LayerChoices(DECODER, layer, array[:, row]) for row, layer in numbers]

    def _find_numbers(
        self, num_layers: int, *, source: str, only_routed: bool
    ) -> list[tuple[int, int]] | None:
        """Return the row and the number of each routed layer, if the user says which route."""
        routed = self.shapes.layers
        if routed is None:
            if only_routed:
                raise UsageError(
                    f"{source} numbers routed layers only, without saying where they are.",
                    hint=MODEL_HINT.format(options="--layers"),
                )
            return None
        is_whole = (
            self.shapes.num_layers == num_layers
            if self.shapes.num_layers
            else (max(routed, default=0) < num_layers)
        )
        if is_whole and not only_routed:
            return [(layer, layer) for layer in routed]
        if num_layers == len(routed):
            return list(enumerate(routed))
        known = self.shapes.num_layers or "an unknown number of"
        raise InputError(
            f"{source} has {num_layers} layers, but {len(routed)} routed ones of {known} layers "
            "were given.",
            hint="Name the model that was recorded, or correct --layers.",
        )

    def _find_by_content(self, array: NDArray[Any], *, source: str) -> list[tuple[int, int]]:
        """Return the rows that aren't all zeros: no decision chooses expert 0 more than once."""
        num_tokens, num_layers, top_k = array.shape
        if top_k < 2:
            raise UsageError(
                f"{source} has one expert per token, so dense layers can't be recognized.",
                hint=MODEL_HINT.format(options="--layers"),
            )
        if not num_tokens:
            return []
        dense = frozenset(np.flatnonzero(~array.any(axis=(0, 2))).tolist())
        if self._dense is None:
            self._dense = dense
            if dense:
                shown = ", ".join(map(str, sorted(dense)[:8])) + (", …" if len(dense) > 8 else "")
                self.facts.note(
                    f"Layers of zeros only were left out as dense ones: {shown}. Name the model "
                    "with --model to be certain."
                )
        if dense != self._dense:
            layer = min(dense ^ self._dense)
            raise InputError(
                f"{source} {'has only zeros' if layer in dense else 'has decisions'} in layer "
                f"{layer}, unlike the responses before it.",
                hint=MODEL_HINT.format(options="--layers"),
            )
        return [(layer, layer) for layer in range(num_layers) if layer not in dense]


def note_model(facts: Facts, model: object, *, source: str) -> None:
    """Take the model's name from a response.

    Raises:
        InputError: An earlier response names another model.
    """
    if not isinstance(model, str):
        return
    if facts.model is not None and facts.model != model:
        raise InputError(
            f"{source} is of the model '{printable(model, max_length=60)}', but a response before "
            f"it is of '{printable(facts.model, max_length=60)}'.",
            hint="Import the responses of each model on their own.",
        )
    facts.model = model


def count_phase(position: NDArray[np.int64], num_prompt_tokens: int) -> NDArray[np.int64]:
    """Return the phase of each position: decode from the end of the prompt on."""
    return (position >= num_prompt_tokens).astype(np.int64)
