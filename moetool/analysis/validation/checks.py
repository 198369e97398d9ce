"""The checks of a trace, each from what a scan of its rows found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

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

# Checks of rows and decisions: name, meaning, and the columns that each needs.
_LOGGED: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (VALUES, "numbers are 0 or more, and experts -1 or more", ()),
    (KNOWN_LAYERS, "the metadata lists the layer of each row", ()),
    (KNOWN_EXPERTS, "the metadata lists the expert of each row", ()),
    (EXPERTS, "no expert or row occurs twice in a decision", ()),
    (RANKS, "the ranks of a decision are 0, 1, 2, …", ("rank",)),
    (FIRST_CHOICE, "rank 0 has the largest weight of its decision", ("rank", "weight")),
    (WEIGHTS, "weights are finite and not negative", ("weight",)),
    (PAD_WEIGHTS, "rows in which no expert ran have weight 0", ("weight",)),
    (DOMAINS, "each prompt has one domain", ("domain",)),
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

    def find_fewest_rows(self, place: Place) -> int:
        known = self.described.get(place)
        return known.fewest_rows if known else self.scan.layers[place].most_rows


def list_checks(
    source: TraceSource, scan: DecisionScan, *, rows: RowChecks, log: FaultLog
) -> list[Check]:
    """Return all checks of a trace that was read to its end."""
    found = _Found(source, scan, rows)
    logged = [
        _take_logged(Check(name, meaning, "passed"), needed, found, log)
        for name, meaning, needed in _LOGGED
    ]
    return [*logged, *(check(found) for check in _WHOLE)]


def count_tokens(num_decisions: Mapping[Place, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
    """Return the tokens of each prompt, by stack.

    Args:
        num_decisions: Of each prompt, by stack and layer. # (num_prompts,)
    """
    most: dict[str, NDArray[np.int64]] = {}
    for (stack, _), number in num_decisions.items():
        known = most.get(stack, np.zeros(0, dtype=np.int64))
        size = max(len(known), len(number))
        most[stack] = np.maximum(
            np.pad(known, (0, size - len(known))), np.pad(number, (0, size - len(number)))
        )
    return most


def _take_logged(check: Check, needed: Iterable[str], found: _Found, log: FaultLog) -> Check:
    absent = [column for column in needed if column not in found.source.columns]
    if absent:
        return _skip(check, f"there is no column {absent[0]!r}")
    if check.check in _OF_METADATA and not found.described:
        return _skip(check, _NO_METADATA)
    if check.check not in log.first:
        return check
    first = log.first[check.check]
    return replace(
        check,
        result="failed",
        num_faults=log.number[check.check],
        message=f"'{first.file}' {first.words}",
        file=first.file,
        prompt_id=first.prompt_id,
        stack=first.stack,
        layer=first.layer,
        position=first.position,
    )


def _skip(check: Check, reason: str) -> Check:
    return replace(check, result="skipped", num_faults=None, message=reason)


def _check_sizes(found: _Found) -> Check:
    """Check that no decision has more rows than top-k, and that each layer reaches it."""
    passed = Check(
        "rows per decision",
        "each layer's largest decisions have top-k rows",
        "passed",
    )
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
        return replace(
            passed, result="failed", num_faults=num_more, message=message, stack=at[0], layer=at[1]
        )
    return passed


def _check_total(found: _Found) -> Check:
    """Check that the assignments of each layer are its tokens times top-k."""
    passed = Check(
        "assignments are tokens x top-k", "no decision has fewer rows than top-k", "passed"
    )
    num_short, message, at = 0, None, None
    for place, seen in sorted(found.scan.layers.items()):
        fewest = found.find_fewest_rows(place)
        short = sum(number for size, number in seen.num_decisions.items() if size < fewest)
        num_short += short
        if short and at is None:
            at = place
            message = (
                f"{number_of(short, 'decision')} of {name_layer(place)} "
                f"{'has' if short == 1 else 'have'} fewer than {number_of(fewest, 'row')}, first at "
                f"{seen.smallest}: rows are missing"
            )
    if at is None:
        return passed
    return replace(
        passed, result="failed", num_faults=num_short, message=message, stack=at[0], layer=at[1]
    )


def _check_idle(found: _Found) -> Check:
    """Check that an expert ran in each layer."""
    idle = [place for place, seen in sorted(found.scan.layers.items()) if not seen.num_ids]
    missing = [place for place in sorted(found.described) if place not in found.scan.layers]
    passed = Check(
        "layers in use",
        "each layer has rows in which an expert ran",
        "passed",
    )
    if idle:
        words = f"no expert ran for any token in {name_layers(idle)}"
        return replace(
            passed,
            result="failed",
            num_faults=len(idle),
            message=words,
            stack=idle[0][0],
            layer=idle[0][1],
        )
    if missing:
        words = f"the metadata lists {name_layers(missing)}, for which there are no rows"
        at = missing[0]
        return replace(
            passed, result="noted", num_faults=len(missing), message=words, stack=at[0], layer=at[1]
        )
    return passed


def _check_tokens(found: _Found) -> Check:
    """Check that all layers of a stack decide for the same number of each prompt's tokens."""
    passed = Check(
        "tokens of each layer",
        "a stack's layers have equal numbers of tokens",
        "passed",
    )
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
        return passed
    return replace(
        passed,
        result="noted",
        num_faults=len(prompts),
        message=message,
        prompt_id=at[0],
        stack=at[1],
        layer=at[2],
    )


def _check_positions(found: _Found) -> Check:
    """Check that the positions of each prompt are 0, 1, 2, …; tokens left out leave gaps."""
    passed = Check(
        "positions without gaps",
        "the positions of a prompt are 0, 1, 2, …",
        "passed",
    )
    gaps = []
    for stack, number in count_tokens(found.scan.num_decisions).items():
        for prompt in np.flatnonzero(number).tolist():
            word, num_tokens = found.scan.prompts[prompt], int(number[prompt])
            last = found.rows.last_position.get((stack, word), -1)
            if last + 1 > num_tokens:
                gaps.append((prompt, stack, word, num_tokens, last))
    if not gaps:
        return passed
    _, stack, word, num_tokens, last = min(gaps)
    tokens = number_of(num_tokens, "token")
    message = f"prompt '{shorten(word)}' has {tokens}, but position {last:,}"
    return replace(
        passed,
        result="noted",
        num_faults=len(gaps),
        message=message,
        prompt_id=word,
        stack=stack,
        position=last,
    )


def _check_counts(found: _Found) -> Check:
    """Check the numbers of prompts and decisions that a complete trace's metadata state."""
    passed, metadata = (
        Check(
            "counts of the metadata",
            "the rows hold as much as the metadata says",
            "passed",
        ),
        found.source.metadata,
    )
    if metadata is None:
        return _skip(passed, _NO_METADATA)
    if not metadata.complete:
        return _skip(passed, "the trace is unfinished")
    num_decisions = sum(layer.num_decisions.total() for layer in found.scan.layers.values())
    wrong = [
        f"the metadata counts {stated:,} {what}, but the rows hold {seen:,}"
        for what, stated, seen in (
            ("prompts", metadata.num_prompts, len(found.scan.prompts)),
            ("decisions", metadata.num_decisions, num_decisions),
        )
        if stated not in (0, seen)
    ]
    return (
        replace(passed, result="failed", num_faults=len(wrong), message=wrong[0])
        if wrong
        else passed
    )


def _check_run(found: _Found) -> Check:
    """Check that the run has ended and that its decisions are exact."""
    passed, metadata = (
        Check(
            "complete and exact",
            "the run has ended, and its decisions are exact",
            "passed",
        ),
        found.source.metadata,
    )
    if metadata is None:
        return _skip(passed, _NO_METADATA)
    faults = [
        words
        for words, is_fine in (
            ("its run has not ended", metadata.complete),
            ("its decisions are not exactly those that ran", metadata.exact),
        )
        if not is_fine
    ]
    return (
        replace(passed, result="noted", num_faults=len(faults), message="; ".join(faults))
        if faults
        else passed
    )


_WHOLE: tuple[Callable[[_Found], Check], ...] = (
    _check_sizes,
    _check_total,
    _check_idle,
    _check_tokens,
    _check_positions,
    _check_counts,
    _check_run,
)
