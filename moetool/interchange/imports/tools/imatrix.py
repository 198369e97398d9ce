"""Import llama.cpp's importance matrix (GGUF), which counts the assignments of every expert."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moetool.errors import InputError
from moetool.interchange.imports.reading.gguf import GgufFile, read_gguf
from moetool.interchange.imports.reading.text import damaged, quote
from moetool.interchange.imports.runs import Facts, ImportFiles, LoadBlock, LoadImport
from moetool.interchange.imports.shapes import GivenShapes
from moetool.wording import number_of

FORMAT = "imatrix"
KIND = "imatrix"
_EXPERTS = re.compile(r"blk\.(\d{1,6})\.ffn_(?:gate|up|gate_up|down)_exps\.weight\.counts")
# Weights that every token of a layer is multiplied with.
_EVERY_TOKEN = re.compile(
    r"blk\.(\d{1,6})\.(?:ffn_gate_inp|attn_(?:q|k|v|qkv|output|q_a|kv_a_mqa))\.weight\.counts"
)
# Where a float32 stops counting.
_FULL = 2**24


def open_imatrix(files: ImportFiles, shapes: GivenShapes) -> LoadImport:
    """Return the counts of one imatrix.

    Raises:
        InputError: The file holds something else, or no experts, or there are several files.
    """
    del shapes
    if len(files.paths) > 1:
        raise InputError(
            "Several importance matrices were given.",
            hint="Import one at a time, or combine them with llama-imatrix --in-file.",
        )
    gguf = read_gguf(files.paths[0])
    if gguf.metadata.get("general.type") != KIND:
        raise damaged(quote(gguf.path), "is a GGUF file, but not an importance matrix")
    counts = _read_counts(gguf)
    if not counts:
        raise damaged(
            quote(gguf.path),
            "counts no experts: it is of a dense model",
            hint="Name the imatrix of a Mixture-of-Experts model.",
        )
    facts = Facts(FORMAT, num_experts=_find_size(gguf.path, counts))
    data, num_chunks = (gguf.metadata.get(f"imatrix.{key}") for key in ("datasets", "chunk_count"))
    if data:
        shown = ", ".join(map(str, data[:4])) if isinstance(data, list) else data
        facts.note(f"The counts were collected on {shown}.")
    if isinstance(num_chunks, int) and num_chunks:
        facts.note(f"The counts are of {number_of(num_chunks, 'chunk')} of text.")
    totals: dict[int, NDArray[np.int64]] = {}
    for layer, each in sorted(counts.items()):
        whole = np.max(each, axis=0)
        if any((one != whole).any() for one in each):
            facts.precision = "lower bound"
            facts.note(f"The tensors of layer {layer} count differently: the largest was taken.")
        totals[layer] = whole
    if any(total.max(initial=0) >= _FULL for total in totals.values()):
        facts.precision = "lower bound"
        facts.note(f"Counts from {_FULL:,} on are lower bounds: float32 doesn't count further.")
    facts.top_k = _infer_top_k(gguf, totals, facts)
    return LoadImport(_iter_blocks(totals), has_steps=False, facts=facts)


def _iter_blocks(totals: dict[int, NDArray[np.int64]]) -> Iterator[LoadBlock]:
    for layer, total in totals.items():
        yield LoadBlock(layer, total)


def _read_counts(gguf: GgufFile) -> dict[int, list[NDArray[np.int64]]]:
    counts: dict[int, list[NDArray[np.int64]]] = {}
    for name in gguf.tensors:
        found = _EXPERTS.fullmatch(name)
        if found is not None:
            counts.setdefault(int(found[1]), []).append(_read_whole(gguf, name))
    for layer, each in counts.items():
        if len({len(one) for one in each}) > 1:
            raise damaged(quote(gguf.path), f"has tensors of layer {layer} of different sizes")
    return counts


def _read_whole(gguf: GgufFile, name: str) -> NDArray[np.int64]:
    numbers = gguf.read(name).ravel()
    is_small = np.isfinite(numbers).all() and bool((np.abs(numbers) < 2**62).all())
    if not is_small or (numbers < 0).any() or (numbers != np.round(numbers)).any():
        raise damaged(quote(gguf.path), f"holds {name!r} with something other than counts")
    return numbers.astype(np.int64)


def _find_size(path: Path, counts: dict[int, list[NDArray[np.int64]]]) -> int:
    sizes = {len(one) for each in counts.values() for one in each}
    if len(sizes) > 1 or 0 in sizes:
        raise damaged(quote(path), f"has layers of {sorted(sizes)} experts")
    return sizes.pop()


def _infer_top_k(gguf: GgufFile, totals: dict[int, NDArray[np.int64]], facts: Facts) -> int | None:
    """Return assignments over tokens, where other weights of the layer count the tokens."""
    if facts.precision != "exact":
        return None
    found: Counter[int] = Counter()
    for name in gguf.tensors:
        weight = _EVERY_TOKEN.fullmatch(name)
        if weight is None or int(weight[1]) not in totals:
            continue
        tokens = _read_whole(gguf, name)
        total = int(totals[int(weight[1])].sum())
        if tokens.size != 1 or tokens[0] == 0 or total % int(tokens[0]):
            return None
        found[total // int(tokens[0])] += 1
    if len(found) != 1:
        return None
    (top_k,) = found
    facts.note(
        f"Top-{top_k} is inferred: a layer has {number_of(top_k, 'assignment')} for each token "
        "that its other tensors counted."
    )
    return top_k
