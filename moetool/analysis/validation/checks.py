"""The checks of a trace, each from what a scan of its rows found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.validation.result import Check
from moetool.analysis.validation.row_checks import (
    KNOWN_EXPERTS,
    KNOWN_LAYERS,
    PAD_WEIGHTS,
    RowChecks,
)
from moetool.trace.metadata import RoutedLayer
from moetool.trace.reading.decision_scan import DecisionScan
from moetool.trace.reading.layer_shapes import Place, name_layer, name_layers
from moetool.trace.reading.reader import TraceSource
from moetool.trace.scanning.fault_log import (
    DOMAINS,
    EXPERTS,
    FIRST_CHOICE,
    RANKS,
    VALUES,
    WEIGHTS,
    FaultLog,
)
from moetool.trace.scanning.places import shorten
from moetool.wording import number_of

# Checks of rows and decisions, each with the columns that it needs.
_LOGGED: tuple[tuple[str, tuple[str, ...]], ...] = (
    (VALUES, ()),
    (KNOWN_LAYERS, ()),
    (KNOWN_EXPERTS, ()),
    (EXPERTS, ()),
    (RANKS, ("rank",)),
    (FIRST_CHOICE, ("rank", "weight")),
    (WEIGHTS, ("weight",)),
    (PAD_WEIGHTS, ("weight",)),
    (DOMAINS, ("domain",)),
)
_OF_METADATA = (KNOWN_LAYERS, KNOWN_EXPERTS)
_NO_METADATA = "the trace has no metadata"


@dataclass(frozen=True)
class _Found:
    source: TraceSource
    scan: DecisionScan
    rows: RowChecks

    @property
    def described(self) -> dict[Place, RoutedLayer]:
        metadata = self.source.metadata
        return {(item.stack, item.layer): item for item in metadata.layers} if metadata else {}

    def find_top_k(self, place: Place) -> int:
        known = self.described.get(place)
        return known.top_k if known else self.scan.layers[place].most_rows


def list_checks(
    source: TraceSource, scan: DecisionScan, *, rows: RowChecks, log: FaultLog
) -> list[Check]:
    """Return all checks of a trace that was read to its end."""
    found = _Found(source, scan, rows)
    logged = [_take_logged(name, needed, found, log) for name, needed in _LOGGED]
    return [*logged, *(check(found) for check in _WHOLE)]


def _take_logged(name: str, needed: Iterable[str], found: _Found, log: FaultLog) -> Check:
    absent = [column for column in needed if column not in found.source.columns]
    if absent:
        return Check(name, "skipped", None, f"there is no column {absent[0]!r}")
    if name in _OF_METADATA and not found.described:
        return Check(name, "skipped", None, _NO_METADATA)
    if name not in log.first:
        return Check(name, "passed")
    first = log.first[name]
    return Check(
        name,
        "failed",
        log.number[name],
        f"'{first.file}' {first.words}",
        file=first.file,
        prompt_id=first.prompt_id,
        stack=first.stack,
        layer=first.layer,
        position=first.position,
    )


def _check_sizes(found: _Found) -> Check:
    """Check that no decision has more rows than top-k, and that each layer reaches it."""
    name = "rows per decision"
    num_more, message, at = 0, None, None
    for place, seen in sorted(found.scan.layers.items()):
        top_k, most = found.find_top_k(place), seen.most_rows
        if most == top_k:
            continue
        num_more += sum(
            number for size, number in seen.num_decisions.items() if size > top_k or most < top_k
        )
        amount = "up to" if most > top_k else "at most"
        message = message or (
            f"{name_layer(place)} has {amount} {number_of(most, 'row')} per decision, but its "
            f"metadata says top-{top_k}; first at {seen.largest}"
        )
        at = at or place
    if at is not None:
        return Check(name, "failed", num_more, message, stack=at[0], layer=at[1])
    return Check(name, "passed")


def _check_total(found: _Found) -> Check:
    """Check that the assignments of each layer are its tokens times top-k."""
    name = "assignments are tokens x top-k"
    num_short, message, at = 0, None, None
    for place, seen in sorted(found.scan.layers.items()):
        top_k = found.find_top_k(place)
        short = sum(number for size, number in seen.num_decisions.items() if size < top_k)
        num_short += short
        if short and at is None:
            at = place
            message = (
                f"{number_of(short, 'decision')} of {name_layer(place)} have fewer than {top_k} "
                f"rows, first at {seen.smallest}: rows are missing, or tokens choose different "
                "numbers of experts"
            )
    if at is None:
        return Check(name, "passed")
    return Check(name, "noted", num_short, message, stack=at[0], layer=at[1])


def _check_idle(found: _Found) -> Check:
    """Check that an expert ran in each layer."""
    idle = [place for place, seen in sorted(found.scan.layers.items()) if not seen.num_ids]
    missing = [place for place in sorted(found.described) if place not in found.scan.layers]
    name = "layers in use"
    if idle:
        words = f"no expert ran for any token in {name_layers(idle)}"
        return Check(name, "failed", len(idle), words, stack=idle[0][0], layer=idle[0][1])
    if missing:
        words = f"the metadata lists {name_layers(missing)}, for which there are no rows"
        at = missing[0]
        return Check(name, "noted", len(missing), words, stack=at[0], layer=at[1])
    return Check(name, "passed")


def _check_tokens(found: _Found) -> Check:
    """Check that all layers of a stack decide for the same number of each prompt's tokens."""
    name = "tokens of each layer"
    first: dict[str, tuple[int, NDArray[np.int64]]] = {}
    prompts: set[int] = set()
    message, at = None, None
    for (stack, layer), number in sorted(found.scan.num_decisions.items()):
        padded = np.pad(number, (0, len(found.scan.prompts) - len(number)))
        known, expected = first.setdefault(stack, (layer, padded))
        (differing,) = np.nonzero(padded != expected)
        prompts.update(differing.tolist())
        if len(differing) and message is None:
            prompt = int(differing[0])
            at = (found.scan.prompts[prompt], stack, layer)
            message = (
                f"prompt '{shorten(at[0])}' has {int(expected[prompt]):,} tokens in "
                f"{name_layer((stack, known))}, but {int(padded[prompt]):,} in "
                f"{name_layer((stack, layer))}"
            )
    if at is None:
        return Check(name, "passed")
    return Check(name, "noted", len(prompts), message, prompt_id=at[0], stack=at[1], layer=at[2])


def _check_positions(found: _Found) -> Check:
    """Check that the positions of each prompt are 0, 1, 2, …; tokens left out leave gaps."""
    name = "positions without gaps"
    most: dict[tuple[str, int], int] = {}
    for (stack, _), number in found.scan.num_decisions.items():
        for prompt in np.flatnonzero(number).tolist():
            key = (stack, prompt)
            most[key] = max(most.get(key, 0), int(number[prompt]))
    gaps = []
    for (stack, prompt), num_tokens in most.items():
        word = found.scan.prompts[prompt]
        last = found.rows.last_position.get((stack, word), -1)
        if last + 1 > num_tokens:
            gaps.append((prompt, stack, word, num_tokens, last))
    if not gaps:
        return Check(name, "passed")
    _, stack, word, num_tokens, last = min(gaps)
    tokens = number_of(num_tokens, "token")
    message = f"prompt '{shorten(word)}' has {tokens}, but position {last:,}"
    return Check(name, "noted", len(gaps), message, prompt_id=word, stack=stack, position=last)


def _check_counts(found: _Found) -> Check:
    """Check the numbers of prompts and decisions that a complete trace's metadata state."""
    name, metadata = "counts of the metadata", found.source.metadata
    if metadata is None:
        return Check(name, "skipped", None, _NO_METADATA)
    if not metadata.complete:
        return Check(name, "skipped", None, "the trace is unfinished")
    num_decisions = sum(layer.num_decisions.total() for layer in found.scan.layers.values())
    wrong = [
        f"the metadata counts {stated:,} {what}, but the rows hold {seen:,}"
        for what, stated, seen in (
            ("prompts", metadata.num_prompts, len(found.scan.prompts)),
            ("decisions", metadata.num_decisions, num_decisions),
        )
        if stated not in (0, seen)
    ]
    return Check(name, "failed", len(wrong), wrong[0]) if wrong else Check(name, "passed")


def _check_run(found: _Found) -> Check:
    """Check that the run has ended and that its decisions are exact."""
    name, metadata = "complete and exact", found.source.metadata
    if metadata is None:
        return Check(name, "skipped", None, _NO_METADATA)
    faults = [
        words
        for words, is_fine in (
            ("its run has not ended", metadata.complete),
            ("its decisions are not exactly those that ran", metadata.exact),
        )
        if not is_fine
    ]
    return Check(name, "noted", len(faults), "; ".join(faults)) if faults else Check(name, "passed")


_WHOLE: tuple[Callable[[_Found], Check], ...] = (
    _check_sizes,
    _check_total,
    _check_idle,
    _check_tokens,
    _check_positions,
    _check_counts,
    _check_run,
)
