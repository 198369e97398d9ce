"""Import moe-policylang's `trace.parquet`: a row for each decision, with lists of experts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moetool.errors import InputError
from moetool.interchange.imports.reading.text import damaged, make_prefixes, open_input, quote
from moetool.interchange.imports.runs import (
    DECODER,
    Column,
    Facts,
    ImportFiles,
    LayerChoices,
    TokenRun,
    TraceImport,
)
from moetool.interchange.imports.shapes import GivenShapes
from moetool.trace.decisions import NO_DOMAIN, NO_EXPERT, PHASES
from moetool.trace.metadata import NOT_EXACT

FORMAT = "moe-policylang"
_EXPERTS, _SCORES = "selected_experts", "router_scores"
REQUIRED = ("prompt_id", "token_idx", "layer_idx", _EXPERTS)
_DOMAINS = ("domain_tag", "language_tag")
_ALL = ("router_softmax", "router_logits")
_ROWS_PER_BATCH = 65_536
_ERRORS = (pa.ArrowException, ValueError, KeyError, OSError)


def open_policylang(files: ImportFiles, shapes: GivenShapes) -> TraceImport:
    """Return the decisions in some files.

    Raises:
        InputError: A file holds something else.
    """
    del shapes
    facts = Facts(FORMAT, is_exact=False)
    facts.note(
        f"{NOT_EXACT} moe-policylang computes the routing again from the router's scores; the "
        "experts that ran may differ."
    )
    names = [_read_names(path) for path in files.paths]
    common = set.intersection(*map(set, names))
    columns: set[Column] = {"rank"}
    domain = next((name for name in _DOMAINS if name in common), None)
    if domain is not None:
        columns.add("domain")
    if _SCORES in common:
        columns.add("weight")
        facts.note("Weights are moe-policylang's router_scores.")
    optional: tuple[Column, ...] = ("phase", "token_id")
    for name in optional:
        if name in common and not any(_has_nulls(path, name) for path in files.paths):
            columns.add(name)
    if any(name in common for name in _ALL):
        facts.num_experts = _count_experts(files.paths[0], next(n for n in _ALL if n in common))
    return TraceImport(
        _iter_runs(files.paths, frozenset(columns), domain=domain), frozenset(columns), facts
    )


def _read_names(path: Path) -> list[str]:
    try:
        with open_input(path) as file, pq.ParquetFile(file) as parquet:
            names = list(parquet.schema_arrow.names)
    except _ERRORS as error:
        raise damaged(quote(path), "is not a Parquet file, or a damaged one") from error
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise damaged(quote(path), f"has no column {missing[0]!r} of moe-policylang")
    return names


def _has_nulls(path: Path, name: str) -> bool:
    return any(table.column(name).null_count for table in _iter_tables(path, [name]))


def _count_experts(path: Path, name: str) -> int | None:
    for table in _iter_tables(path, [name]):
        sizes = pc.unique(pc.list_value_length(table.column(name))).to_pylist()
        return sizes[0] if len(sizes) == 1 and sizes[0] else None
    return None


def _iter_tables(path: Path, columns: list[str]) -> Iterator[pa.Table]:
    try:
        with open_input(path) as file, pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(batch_size=_ROWS_PER_BATCH, columns=columns):
                # Parquet holds texts as bytes, which have not been checked so far.
                batch.validate(full=True)
                yield pa.Table.from_batches([batch])
    except _ERRORS as error:
        raise damaged(quote(path), "can't be read", seen=error) from error


def _iter_runs(
    paths: tuple[Path, ...], columns: frozenset[Column], *, domain: str | None
) -> Iterator[TokenRun]:
    wanted = list(REQUIRED)
    wanted += [_SCORES] if "weight" in columns else []
    wanted += [name for name in ("phase", "token_id") if name in columns]
    wanted += [domain] if domain is not None else []
    domains: dict[str, str] = {}
    for path, prefix in make_prefixes(paths).items():
        for table in _iter_tables(path, wanted):
            yield from _group(table, path, prefix, domains, domain=domain)


def _group(
    table: pa.Table, path: Path, prefix: str, domains: dict[str, str], *, domain: str | None
) -> Iterator[TokenRun]:
    """Yield the decisions of each prompt and layer."""
    source = quote(path)
    position, layer = (
        _take_integers(table, name, source=source) for name in ("token_idx", "layer_idx")
    )
    experts, width = _take_lists(table, _EXPERTS, source=source)
    if not width.all() or (experts >= 0).sum() < width.sum():
        raise damaged(source, "has a decision of no experts, or an expert below 0")
    weights = None
    if _SCORES in table.column_names:
        weights, num_scores = _take_lists(table, _SCORES, source=source)
        if (num_scores != width).any():
            raise damaged(source, f"has other numbers of {_SCORES!r} than of {_EXPERTS!r}")
    token = _take_integers(table, "token_id", source=source) if _has(table, "token_id") else None
    phase = _take_phases(table, source=source) if _has(table, "phase") else None
    prompts = table.column("prompt_id").cast(pa.string()).combine_chunks().dictionary_encode()
    if prompts.null_count:
        raise damaged(source, "has a row without 'prompt_id'")
    code = prompts.indices.to_numpy()
    names = prompts.dictionary.to_pylist()
    tags = None if domain is None else table.column(domain).cast(pa.string()).to_pylist()
    order = np.lexsort((np.arange(len(layer)), layer, code))
    changes = (np.diff(code[order], prepend=-1) != 0) | (
        np.diff(layer[order], prepend=layer[order[:1]] - 1) != 0
    )
    for own in np.split(order, np.flatnonzero(changes)[1:]):
        prompt = f"{prefix}{names[code[own[0]]]}"
        tag = None
        if tags is not None:
            seen = {tags[row] or NO_DOMAIN for row in own}
            tag = domains.setdefault(prompt, min(seen))
            if seen != {tag}:
                raise InputError(
                    f"{source} has the prompt {prompt} under several domains: "
                    f"{', '.join(sorted({*seen, tag})[:3])}.",
                    hint="Give each prompt one domain_tag.",
                )
        yield TokenRun(
            source=source,
            prompt_id=prompt,
            position=position[own],
            layers=[
                LayerChoices(
                    DECODER,
                    int(layer[own[0]]),
                    experts[own].astype(np.int64),
                    None if weights is None else _narrow(weights[own]),
                    is_padded=True,
                )
            ],
            domain=tag,
            phase=None if phase is None else phase[own],
            token_id=None if token is None else token[own],
        )


def _narrow(weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return weights as float32; those beyond its range become infinite, and are refused later."""
    with np.errstate(over="ignore"):
        return weights.astype(np.float32)


def _has(table: pa.Table, name: str) -> bool:
    return name in table.column_names


def _take_integers(table: pa.Table, name: str, *, source: str) -> NDArray[np.int64]:
    column = table.column(name)
    if column.null_count or not pa.types.is_integer(column.type):
        raise damaged(source, f"has values other than whole numbers in {name!r}")
    return np.asarray(column.to_numpy()).astype(np.int64)


def _take_phases(table: pa.Table, *, source: str) -> NDArray[np.int64]:
    words = table.column("phase").cast(pa.string()).to_pylist()
    if any(word not in PHASES for word in words):
        raise damaged(source, "has a phase other than prefill and decode")
    return np.array([PHASES.index(word) for word in words], dtype=np.int64)


def _take_lists(
    table: pa.Table, name: str, *, source: str
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the lists of a column as a padded matrix, and their lengths."""
    column = table.column(name).combine_chunks()
    is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    kind = column.type.value_type if is_list else None
    is_number = kind is not None and (
        pa.types.is_integer(kind) or (name == _SCORES and pa.types.is_floating(kind))
    )
    if not is_number or column.null_count:
        raise damaged(source, f"has something other than lists of numbers in {name!r}")
    flat = column.flatten()
    if flat.null_count:
        raise damaged(source, f"has a list with nothing in {name!r}")
    width = pc.list_value_length(column).to_numpy().astype(np.int64)
    decision = np.repeat(np.arange(len(width)), width)
    starts = np.cumsum(width) - width
    rank = np.arange(len(decision)) - np.repeat(starts, width)
    most = int(width.max(initial=0))
    if most > 2**12 or len(width) * most > 2**26:
        raise damaged(source, f"has lists of {most:,} numbers in {name!r}")
    # Wide enough for the padding, whatever the column's type.
    values = flat.to_numpy().astype(np.float64 if name == _SCORES else np.int64)
    matrix = np.full((len(width), most), NO_EXPERT, dtype=values.dtype)
    matrix[decision, rank] = values
    return matrix, width
