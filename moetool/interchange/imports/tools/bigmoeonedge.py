"""Import BigMoeOnEdge's `--route-trace`: CSV with a row for each assignment."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from moetool.errors import InputError
from moetool.interchange.imports.reading.text import (
    damaged,
    iter_lines,
    make_prefixes,
    open_input,
    quote,
)
from moetool.interchange.imports.runs import (
    DECODER,
    Column,
    Facts,
    ImportFiles,
    LayerChoices,
    TokenRun,
    TraceImport,
)
from moetool.interchange.imports.shapes import GivenShapes, contradiction
from moetool.trace.decisions import NO_EXPERT, PHASES
from moetool.trace.metadata import NOT_EXACT
from moetool.wording import number_of

FORMAT = "bigmoeonedge"
START = b"# route_trace v"
_VERSION = b"# route_trace v1"
_MODEL = re.compile(r"# model=(.*?) arch=(\S+) n_layer=(\d+) n_expert=(\d+) n_expert_used=(\d+)")
_KEY = ("turn", "phase", "step", "layer")
_NEEDED = (*_KEY, "slot", "expert", "weight")
_OPTIONAL = ("dropped",)


def open_bigmoeonedge(files: ImportFiles, shapes: GivenShapes) -> TraceImport:
    """Return the decisions in some files, each of one run.

    Raises:
        InputError: A file holds something else.
    """
    del shapes
    facts = Facts(FORMAT)
    heads = {path: _read_head(path, facts) for path in files.paths}
    num_unknown = num_dropped = 0
    num_tokens: Counter[int] = Counter()  # By layer.
    for path, (num_lines, columns) in heads.items():
        for batch in _iter_batches(path, num_lines, columns):
            num_unknown += int(np.isnan(batch["weight"]).sum())
            num_dropped += int((batch.get("dropped", np.zeros(0)) != 0).sum())
            num_tokens.update(batch["layer"][batch["slot"] == 0].tolist())
    columns_given: set[Column] = {"phase", "rank", "weight"}
    if num_unknown:
        columns_given.discard("weight")
        facts.note(f"The weights of {number_of(num_unknown, 'row')} are nan, so none are imported.")
    if num_dropped:
        facts.is_exact = False
        facts.note(
            f"{NOT_EXACT} {number_of(num_dropped, 'assignment')} of the router were skipped by the "
            "engine; they are part of the trace."
        )
    last = max(num_tokens, default=0)
    others = [number for layer, number in num_tokens.items() if layer != last]
    if others and num_tokens[last] < max(others):
        facts.note(
            f"Layer {last}, the last one, has {number_of(num_tokens[last], 'token')} of "
            f"{max(others):,}: of a prompt, llama.cpp routes only the last token there."
        )
    runs = _iter_runs(heads, has_weights=not num_unknown)
    return TraceImport(runs, frozenset(columns_given), facts)


def _read_head(path: Path, facts: Facts) -> tuple[int, list[str]]:
    """Return the number of lines before the table, and its columns."""
    for line in iter_lines(path):
        text = line.text.decode(errors="replace")
        if line.number == 1 and line.text != _VERSION:
            raise damaged(quote(path), "does not begin with '# route_trace v1'")
        found = _MODEL.match(text)
        if found is not None:
            numbers = {"num_experts": int(found[4]), "top_k": int(found[5])}
            for name, number in numbers.items():
                known = getattr(facts, name)
                if known is not None and known != number:
                    raise contradiction("top-k" if name == "top_k" else "experts", number, known)
                setattr(facts, name, number)
            facts.model = facts.model or found[1]
        if not text.startswith("#"):
            columns = text.split(",")
            missing = [name for name in _NEEDED if name not in columns]
            if missing or len(set(columns)) < len(columns):
                what = f"no column {missing[0]!r}" if missing else "a column twice"
                raise damaged(line.source, f"has {what}")
            return line.number, columns
    raise damaged(quote(path), "breaks off before its table")


def _iter_batches(
    path: Path, num_lines: int, columns: list[str]
) -> Iterator[dict[str, NDArray[Any]]]:
    wanted = [name for name in (*_NEEDED, *_OPTIONAL) if name in columns]
    types = {name: pa.float64() if name == "weight" else pa.int64() for name in wanted}
    try:
        with (
            open_input(path) as file,
            pa.csv.open_csv(
                file,
                read_options=pa.csv.ReadOptions(skip_rows=num_lines, column_names=columns),
                convert_options=pa.csv.ConvertOptions(
                    column_types=types,
                    include_columns=wanted,
                    null_values=[""],
                    strings_can_be_null=False,
                ),
            ) as reader,
        ):
            for batch in reader:
                for name in wanted:
                    if batch.column(name).null_count:
                        raise damaged(quote(path), f"has a row without {name!r}")
                yield {name: batch.column(name).to_numpy() for name in wanted}
    except (pa.ArrowException, ValueError, OSError) as error:
        # A file that ends after its header has no rows.
        if "Empty CSV" in str(error):
            return
        raise damaged(quote(path), "has a row that can't be read", seen=error) from error


def _iter_runs(
    heads: dict[Path, tuple[int, list[str]]], *, has_weights: bool
) -> Iterator[TokenRun]:
    for path, prefix in make_prefixes(list(heads)).items():
        num_lines, columns = heads[path]
        kept: dict[str, NDArray[Any]] | None = None
        for batch in _iter_batches(path, num_lines, columns):
            rows = batch if kept is None else _join(kept, batch)
            # The last decision may go on in the next batch.
            start = _find_starts(rows)[-1]
            kept = {name: column[start:] for name, column in rows.items()}
            done = {name: column[:start] for name, column in rows.items()}
            yield from _group(done, path, prefix, has_weights=has_weights)
        if kept is not None:
            yield from _group(kept, path, prefix, has_weights=has_weights)


def _join(
    first: dict[str, NDArray[Any]], second: dict[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    return {name: np.concatenate([first[name], second[name]]) for name in first}


def _find_starts(rows: dict[str, NDArray[Any]]) -> NDArray[np.int64]:
    """Return the first row of each decision."""
    is_new = np.zeros(len(rows["layer"]), dtype=bool)
    is_new[:1] = True
    for name in _KEY:
        is_new[1:] |= rows[name][1:] != rows[name][:-1]
    return np.flatnonzero(is_new)


def _group(
    rows: dict[str, NDArray[Any]], path: Path, prefix: str, *, has_weights: bool
) -> Iterator[TokenRun]:
    """Yield the decisions of each turn and layer."""
    starts = _find_starts(rows)
    if not len(starts):
        return
    width = np.diff(starts, append=len(rows["layer"]))
    _check(rows, starts, width, path)
    decision = np.repeat(np.arange(len(starts)), width)
    column = np.arange(len(decision)) - np.repeat(starts, width)
    experts = np.full((len(starts), int(width.max())), NO_EXPERT, dtype=np.int64)
    experts[decision, column] = rows["expert"]
    weights = np.zeros(experts.shape, dtype=np.float32)
    # Weights beyond the range of float32 become infinite, and are refused later.
    with np.errstate(over="ignore"):
        weights[decision, column] = rows["weight"]
    turn, layer = rows["turn"][starts], rows["layer"][starts]
    order = np.lexsort((np.arange(len(starts)), layer, turn))
    changes = (np.diff(turn[order], prepend=-1) != 0) | (np.diff(layer[order], prepend=-1) != 0)
    for own in np.split(order, np.flatnonzero(changes)[1:]):
        yield TokenRun(
            source=quote(path),
            prompt_id=f"{prefix}turn{turn[own[0]]}",
            position=rows["step"][starts][own],
            layers=[
                LayerChoices(
                    DECODER,
                    int(layer[own[0]]),
                    experts[own],
                    weights[own] if has_weights else None,
                    is_padded=True,
                )
            ],
            phase=rows["phase"][starts][own],
        )


def _check(
    rows: dict[str, NDArray[Any]], starts: NDArray[np.int64], width: NDArray[np.int64], path: Path
) -> None:
    """Refuse rows that no recording has.

    Raises:
        InputError: There is one.
    """
    for name in ("turn", "expert", "layer", "step"):
        if (rows[name] < 0).any():
            raise damaged(quote(path), f"has {rows[name].min()} as {name!r}")
    slot = np.arange(len(rows["slot"])) - np.repeat(starts, width)
    wrong = np.flatnonzero(rows["slot"] != slot)
    if len(wrong):
        where = ", ".join(f"{name} {rows[name][wrong[0]]}" for name in _KEY)
        raise InputError(
            f"{quote(path)} has slot {rows['slot'][wrong[0]]} where {slot[wrong[0]]} follows: "
            f"{where}.",
            hint="Record again: rows are missing, or in another order.",
        )
    if not np.isin(rows["phase"], range(len(PHASES))).all():
        raise damaged(quote(path), "has a phase other than 0 and 1")
