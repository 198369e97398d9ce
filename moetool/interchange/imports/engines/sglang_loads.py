"""Import SGLang's recorder in the modes `stat` and `per_pass`, which count experts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.errors import InputError
from moetool.interchange.imports.engines.sglang_dumps import Dump, open_dumps
from moetool.interchange.imports.reading.text import damaged, quote
from moetool.interchange.imports.reading.torch_files import load_torch, take_tensor
from moetool.interchange.imports.runs import Facts, ImportFiles, LoadBlock, LoadImport
from moetool.interchange.imports.shapes import GivenShapes

STAT, PER_PASS = "sglang-stat", "sglang-per-pass"
LOGICAL, PHYSICAL = "logical_count", "global_physical_count"


def open_sglang_stat(files: ImportFiles, shapes: GivenShapes) -> LoadImport:
    """Return the counts in a dump of the mode `stat`, or in KTransformers' `activation_stats.pt`.

    Raises:
        InputError: The file holds something else, or there are several.
    """
    del shapes
    if len(files.paths) > 1:
        raise InputError(
            "Each dump of the mode stat already sums all ranks.", hint="Import one at a time."
        )
    (path,) = files.paths
    content = load_torch(path)
    source = quote(path)
    counts = content.get(LOGICAL) if isinstance(content, dict) else content
    array = take_tensor(counts, num_dimensions=3, name=LOGICAL, source=source)
    _check(array, source=source, name=LOGICAL)
    facts = Facts(STAT, num_experts=array.shape[2])
    facts.note(
        "A dump of the mode stat_approx, whose counts are approximate, looks like one of stat."
    )
    return LoadImport(_iter_stat(array), has_steps=True, facts=facts)


def open_sglang_per_pass(files: ImportFiles, shapes: GivenShapes) -> LoadImport:
    """Return the counts in the dumps of all ranks, summed over ranks, by forward pass.

    Raises:
        InputError: A file holds something else, or the placement changed in between.
    """
    del shapes
    dumps = open_dumps(files.paths)
    facts = Facts(PER_PASS, num_experts=dumps[0].num_experts)
    return LoadImport(_iter_passes(dumps), has_steps=True, facts=facts)


def _iter_stat(array: NDArray[Any]) -> Iterator[LoadBlock]:
    # Dense layers have no counts in any step, and steps that the ring never held in no layer.
    routed = np.flatnonzero(array.any(axis=(0, 2)))
    for step, counts in enumerate(array):
        if not counts.any():
            continue
        for layer in routed:
            yield LoadBlock(int(layer), counts[layer].astype(np.int64), step=step)


def _iter_passes(dumps: list[Dump]) -> Iterator[LoadBlock]:
    logical_of = dumps[0].logical_of
    tensors: dict[int, dict[int, tuple[str, Any]]] = {}
    for dump in dumps:
        for source, forward_pass, rank, record in dump.iter_records():
            of_pass = tensors.setdefault(forward_pass, {})
            if rank in of_pass:
                raise InputError(
                    f"{source} is pass {forward_pass} of rank {rank}, which {of_pass[rank][0]} is "
                    "too.",
                    hint="Import the dumps of each recording on their own.",
                )
            of_pass[rank] = (source, record.get(PHYSICAL))
    routed: set[int] = set()
    for of_pass in tensors.values():
        for source, tensor in of_pass.values():
            array = take_tensor(tensor, num_dimensions=2, name=PHYSICAL, source=source)
            if array.shape != logical_of.shape:
                raise damaged(source, f"has {PHYSICAL!r} of another shape than its map")
            _check(array, source=source, name=PHYSICAL)
            routed.update(np.flatnonzero(array.any(axis=1)).tolist())
    num_experts = int(logical_of.max()) + 1
    for forward_pass in sorted(tensors):
        physical = np.zeros(logical_of.shape, dtype=np.int64)
        for source, tensor in tensors[forward_pass].values():
            physical += take_tensor(tensor, num_dimensions=2, name=PHYSICAL, source=source)
        for layer in sorted(routed):
            counts = np.zeros(num_experts, dtype=np.int64)
            np.add.at(counts, logical_of[layer], physical[layer])
            yield LoadBlock(layer, counts, step=forward_pass)


def _check(array: NDArray[Any], *, source: str, name: str) -> None:
    if not array.size:
        raise damaged(source, f"holds no counts in {name!r}")
    if array.min() < 0:
        raise damaged(source, f"holds counts below 0 in {name!r}")


def is_bare_tensor(content: object) -> bool:
    """Return whether what a file of torch holds is the bare tensor that KTransformers takes."""
    return hasattr(content, "dim") and content.dim() == 3


def name_dump(path: Path) -> str | None:
    """Return which of SGLang's formats a file of torch is; None if it is none of them.

    Raises:
        InputError: It can't be read.
    """
    content = load_torch(path)
    if is_bare_tensor(content) or (isinstance(content, dict) and LOGICAL in content):
        return STAT
    records = content.get("records") if isinstance(content, dict) else None
    if not isinstance(records, list):
        return None
    has_tokens = any(isinstance(each, dict) and "topk_ids_of_layer" in each for each in records)
    return "sglang-per-token" if has_tokens else PER_PASS
