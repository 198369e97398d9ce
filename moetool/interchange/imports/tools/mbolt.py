"""Import mbolt's binary route traces: int32 records of layers and forward passes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
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
from moetool.interchange.imports.shapes import GivenShapes, contradiction
from moetool.trace.metadata_fields import LARGEST_ID

FORMAT = "mbolt"
START = b"MBLT"
_VERSION = 1
_HEADER = 3
_FIELDS = 3


def open_mbolt(files: ImportFiles, shapes: GivenShapes) -> TraceImport:
    """Return the decisions in some files, each of one run.

    Raises:
        InputError: A file holds something else.
    """
    del shapes
    facts = Facts(FORMAT)
    for path in files.paths:
        num_experts = int(_read_words(path, 0, _HEADER)[2])
        if facts.num_experts not in (None, num_experts):
            raise contradiction("experts", num_experts, facts.num_experts or 0)
        facts.num_experts = num_experts
    facts.note(
        "Requests are not in files of mbolt: each prompt is one forward pass, a pass of one token "
        "is taken to be decode, and positions count its tokens."
    )
    facts.note("Weights and token ids are not in files of mbolt.")
    columns = frozenset[Column](("phase", "rank"))
    return TraceImport(_iter_runs(files.paths, facts), columns, facts)


def _iter_runs(paths: tuple[Path, ...], facts: Facts) -> Iterator[TokenRun]:
    for path, prefix in make_prefixes(paths).items():
        for number, records in enumerate(_iter_passes(path, facts)):
            num_tokens = max(len(experts) for _, experts in records)
            for layer, experts in records:
                # In the last layer llama.cpp routes only the tokens at the end that it continues.
                position = np.arange(num_tokens - len(experts), num_tokens)
                yield TokenRun(
                    source=f"{quote(path)}, pass {number}",
                    prompt_id=f"{prefix}pass{number}",
                    position=position,
                    layers=[LayerChoices(DECODER, layer, experts)],
                    phase=np.full(len(experts), int(num_tokens == 1)),
                )


def _iter_passes(path: Path, facts: Facts) -> Iterator[list[tuple[int, NDArray[np.int64]]]]:
    """Yield the layers of each forward pass, which ends where the layer does not increase."""
    records: list[tuple[int, NDArray[np.int64]]] = []
    for layer, experts in _iter_records(path, facts):
        if records and layer <= records[-1][0]:
            yield records
            records = []
        records.append((layer, experts))
    if records:
        yield records


def _iter_records(path: Path, facts: Facts) -> Iterator[tuple[int, NDArray[np.int64]]]:
    size = path.stat().st_size
    # Mapped, so that only what is looked at is read.
    words = np.memmap(path, dtype="<i4", mode="r", shape=(size // 4,))
    assert facts.num_experts is not None
    at = _HEADER
    while at < len(words) or size % 4:
        if at + _FIELDS <= len(words):
            layer, top_k, num_tokens = (int(word) for word in words[at : at + _FIELDS])
            if (
                not 0 <= layer <= LARGEST_ID
                or not 1 <= top_k <= facts.num_experts
                or num_tokens < 1
            ):
                raise InputError(
                    f"{quote(path)} has layer {layer}, top-{top_k} and {num_tokens} tokens at byte "
                    f"{4 * at:,}, where a record should begin.",
                    hint="Record again: the file is damaged.",
                )
            end = at + _FIELDS + top_k * num_tokens
            if end <= len(words):
                ids = np.array(words[at + _FIELDS : end], dtype=np.int64)
                yield layer, ids.reshape(num_tokens, top_k)
                at = end
                if at == len(words) and size % 4 == 0:
                    return
                continue
        facts.is_complete = False
        facts.note(f"{quote(path)} breaks off in its last record, which was left out.")
        return


def _read_words(path: Path, start: int, number: int) -> NDArray[np.int32]:
    with open_input(path) as file:
        data = file.read(4 * (start + number))
    if len(data) < 4 * (start + number) or data[:4] != START:
        raise damaged(quote(path), "is not a route trace of mbolt")
    words = np.frombuffer(data, dtype="<i4")
    if words[1] != _VERSION or words[2] < 1 or words[2] > LARGEST_ID + 1:
        raise damaged(quote(path), f"is of version {words[1]} with {words[2]} experts")
    return words[start:]
