"""Import TensorRT-LLM's expert statistic: counts by iteration, or the experts of each token."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from moetool.errors import InputError
from moetool.interchange.imports.reading.text import (
    damaged,
    load_json,
    open_input,
    quote,
    read_whole,
    take_integer,
    take_object,
)
from moetool.interchange.imports.runs import (
    DECODER,
    Column,
    Facts,
    ImportFiles,
    LayerChoices,
    LoadBlock,
    LoadImport,
    TokenRun,
    TraceImport,
)
from moetool.interchange.imports.shapes import GivenShapes
from moetool.wording import number_of

COUNTS, RAW = "tensorrt-llm-counts", "tensorrt-llm-raw"
META = "meta_info.json"
_KEY = re.compile(r"(\d{1,18})_(\d{1,6})")
_FILE = re.compile(r"rank(\d+)(_raw)?\.safetensors")


@dataclass(frozen=True)
class _RankFile:
    path: Path
    rank: str
    layers_of: dict[int, list[int]]

    def read(self, iteration: int, layer: int, *, num_dimensions: int) -> NDArray[np.int64]:
        """Return one tensor.

        Raises:
            InputError: It is of another type, or can't be read.
        """
        source = f"{quote(self.path)}, {iteration}_{layer}"
        try:
            with safe_open(self.path, framework="numpy") as file:
                array: NDArray[Any] = file.get_tensor(f"{iteration}_{layer}")
        # Types that numpy doesn't have fail in many ways.
        except Exception as error:
            raise damaged(source, "can't be read", seen=error) from error
        if array.ndim != num_dimensions or array.dtype.kind not in "iu":
            raise damaged(
                source, f"is not an array of whole numbers of {num_dimensions} dimensions"
            )
        return array.astype(np.int64)


def open_tensorrt_llm_counts(files: ImportFiles, shapes: GivenShapes) -> LoadImport:
    """Return the counts of all ranks together, by iteration.

    Raises:
        InputError: A file holds something else.
    """
    del shapes
    ranks = _open_ranks(files.paths, is_raw=False)
    facts = _read_meta(ranks[0].path, COUNTS)
    return LoadImport(_iter_counts(ranks), has_steps=True, facts=facts)


def open_tensorrt_llm_raw(files: ImportFiles, shapes: GivenShapes) -> TraceImport:
    """Return the decisions in the `_raw` files of some ranks.

    Raises:
        InputError: A file holds something else.
    """
    del shapes
    ranks = _open_ranks(files.paths, is_raw=True)
    facts = _read_meta(ranks[0].path, RAW)
    facts.note(
        "Requests are not in TensorRT-LLM's files: each prompt is the batch of one iteration, and "
        "positions count its tokens."
    )
    facts.note("Weights are not in TensorRT-LLM's files; ranks are in the order of its top-k.")
    for path in files.paths:
        if path.is_dir() and list_rank_files(path, is_raw=False):
            facts.note(
                f"The counts in {quote(path)} were left out; `moetool import {COUNTS}` makes a "
                "load table of them."
            )
    columns = frozenset[Column](("rank",))
    return TraceImport(_iter_runs(ranks, facts), columns, facts)


def find_kind(path: Path) -> str | None:
    """Return which of the two formats a safetensors file is; None if it is neither.

    Raises:
        InputError: It can't be read.
    """
    with open_input(path):
        pass
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            if not names or not all(_KEY.fullmatch(name) for name in names):
                return None
            num_dimensions = len(file.get_slice(names[0]).get_shape())
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(quote(path), "is not a safetensors file", seen=error) from error
    return {1: COUNTS, 2: RAW}.get(num_dimensions)


def list_rank_files(path: Path, *, is_raw: bool) -> list[Path]:
    """Return a file itself, or the files of ranks in a folder."""
    if not path.is_dir():
        return [path]
    found = [each for each in sorted(path.iterdir()) if _FILE.fullmatch(each.name)]
    return [each for each in found if ("_raw" in each.name) == is_raw]


def _open_ranks(paths: tuple[Path, ...], *, is_raw: bool) -> list[_RankFile]:
    ranks = []
    for path in paths:
        found = list_rank_files(path, is_raw=is_raw)
        if not found:
            name = "rank*_raw.safetensors" if is_raw else "rank*.safetensors"
            raise damaged(quote(path), f"holds no {name}")
        for each in found:
            if find_kind(each) != (RAW if is_raw else COUNTS):
                kind = "experts of tokens" if is_raw else "counts of experts"
                raise damaged(quote(each), f"holds no {kind} of TensorRT-LLM")
            named = _FILE.fullmatch(each.name)
            with safe_open(each, framework="numpy") as file:
                keys = [_KEY.fullmatch(name) for name in file.keys()]  # noqa: SIM118
            layers_of: dict[int, list[int]] = {}
            for key in keys:
                assert key is not None
                layers_of.setdefault(int(key[1]), []).append(int(key[2]))
            ranks.append(_RankFile(each, f"rank{named[1]}" if named else each.stem, layers_of))
    repeated = [rank.rank for rank in ranks if sum(o.rank == rank.rank for o in ranks) > 1]
    if repeated:
        raise InputError(
            f"Two of the files are of {repeated[0]}.",
            hint="Import the files of each recording on their own.",
        )
    return ranks


def _read_meta(path: Path, name: str) -> Facts:
    """Return what the file next to those of the ranks states; without it, nothing is known."""
    facts = Facts(name)
    meta = path.with_name(META)
    if not meta.is_file():
        facts.note(f"There is no {META} next to the files: the number of experts isn't known.")
        return facts
    source = quote(meta)
    content = take_object(load_json(read_whole(meta), source=source), source=source)
    facts.num_experts, facts.top_k = (
        take_integer(content.get(key), name=key, source=source, least=1)
        for key in ("num_experts", "num_experts_per_token")
    )
    return facts


def _iter_counts(ranks: list[_RankFile]) -> Iterator[LoadBlock]:
    for iteration in sorted({each for rank in ranks for each in rank.layers_of}):
        layers = sorted({layer for rank in ranks for layer in rank.layers_of.get(iteration, ())})
        for layer in layers:
            total: NDArray[np.int64] | None = None
            for rank in ranks:
                if layer not in rank.layers_of.get(iteration, ()):
                    continue
                counts = rank.read(iteration, layer, num_dimensions=1)
                source = f"{quote(rank.path)}, {iteration}_{layer}"
                if counts.size and counts.min() < 0:
                    raise damaged(source, "holds a count below 0")
                if total is not None and counts.shape != total.shape:
                    raise damaged(source, "has another number of experts than another rank")
                total = counts if total is None else total + counts
            if total is not None:
                yield LoadBlock(layer, total, step=iteration)


def _iter_runs(ranks: list[_RankFile], facts: Facts) -> Iterator[TokenRun]:
    digests: set[tuple[int, bytes]] = set()
    num_copies = 0
    for rank in ranks:
        for iteration, layers in sorted(rank.layers_of.items()):
            arrays = {
                layer: rank.read(iteration, layer, num_dimensions=2) for layer in sorted(layers)
            }
            # Ranks of tensor parallelism see the same tokens.
            joined = b"".join(array.tobytes() for array in arrays.values())
            digest = (iteration, hashlib.sha256(joined).digest())
            if digest in digests:
                num_copies += 1
                continue
            digests.add(digest)
            for layer, array in arrays.items():
                yield TokenRun(
                    source=f"{quote(rank.path)}, {iteration}_{layer}",
                    prompt_id=f"{rank.rank}/iteration{iteration}",
                    position=np.arange(len(array)),
                    layers=[LayerChoices(DECODER, layer, array)],
                )
    if num_copies:
        facts.note(
            f"{number_of(num_copies, 'iteration')} with the experts of another rank were left out."
        )
