"""Import SGLang's recorder in the mode `per_token`: physical experts of each token of each pass."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.errors import InputError
from moetool.interchange.imports.engines.sglang_dumps import Dump, open_dumps, refuse_rebalanced
from moetool.interchange.imports.reading.text import damaged, take_array, take_integer
from moetool.interchange.imports.reading.torch_files import take_tensor
from moetool.interchange.imports.runs import (
    DECODER,
    Facts,
    ImportFiles,
    LayerChoices,
    TokenRun,
    TraceImport,
)
from moetool.interchange.imports.shapes import GivenShapes
from moetool.trace.decisions import NO_EXPERT
from moetool.wording import number_of

FORMAT = "sglang-per-token"
IDS = "topk_ids_of_layer"
_EXTEND, _DECODE, _MIXED, _IDLE = 1, 2, 3, 4
_PREFILL_PHASE, _DECODE_PHASE = 0, 1


def open_sglang_per_token(files: ImportFiles, shapes: GivenShapes) -> TraceImport:
    """Return the decisions in the dumps of all ranks of one recording.

    Raises:
        InputError: A file is of another kind, or the placement changed in between.
    """
    del shapes
    dumps = open_dumps(files.paths)
    facts = Facts(FORMAT, num_experts=dumps[0].num_experts)
    facts.note(
        "Requests are not in SGLang's dumps: each prompt is a sequence of one forward pass, and "
        "what was written is not joined to its prompt."
    )
    facts.has_weight_order = False
    facts.note(
        "Weights are not in SGLang's dumps; ranks are in the order of its kernel, "
        "which need not be that of weights: first choices are unknown."
    )
    identity = np.arange(dumps[0].logical_of.shape[1]) % dumps[0].num_experts
    if (dumps[0].logical_of != identity).any():
        facts.note(
            "Experts lay elsewhere than in order: the placement dumped last is taken to be that of "
            "all passes."
        )
    columns = frozenset[Any](("rank", "phase", "token_id"))
    return TraceImport(_iter_runs(dumps, facts), columns, facts)


def _iter_runs(dumps: list[Dump], facts: Facts) -> Iterator[TokenRun]:
    seen: dict[tuple[int, int], str] = {}
    digests: dict[int, dict[bytes, int]] = {}
    num_copies = 0
    for dump in dumps:
        for source, forward_pass, rank, record in dump.iter_records():
            if (forward_pass, rank) in seen:
                raise InputError(
                    f"{source} is pass {forward_pass} of rank {rank}, which "
                    f"{seen[forward_pass, rank]} is too.",
                    hint="Import the dumps of each recording on their own.",
                )
            seen[forward_pass, rank] = source
            ids = _take_ids(record, dump, source=source)
            tokens = take_array(
                record.get("input_ids"), num_dimensions=1, name="input_ids", source=source
            )
            position = take_array(
                record.get("positions"), num_dimensions=1, name="positions", source=source
            )
            # Ranks of tensor parallelism see the same tokens, those of data parallelism others.
            digest = hashlib.sha256(tokens.tobytes() + np.ascontiguousarray(ids).tobytes()).digest()
            known = digests.setdefault(forward_pass, {})
            if known.setdefault(digest, rank) != rank:
                num_copies += 1
                continue
            yield from _split(source, forward_pass, rank, record, tokens, position, ids, dump)
    if num_copies:
        facts.note(
            f"{number_of(num_copies, 'record')} with the tokens and experts of another rank were "
            "left out."
        )


def _take_ids(record: dict[str, Any], dump: Dump, *, source: str) -> NDArray[np.int64]:
    """Return the physical experts of a record. # (num_layers, num_tokens, 8)."""
    ids = take_tensor(record.get(IDS), num_dimensions=3, name=IDS, source=source)
    num_layers, num_physical = dump.logical_of.shape
    if ids.shape[0] != num_layers:
        raise damaged(source, f"has {ids.shape[0]} layers in {IDS!r}, and {num_layers} in its map")
    if ids.size and (ids.min() < NO_EXPERT or ids.max() >= num_physical):
        seen = ids.min() if ids.min() < NO_EXPERT else ids.max()
        raise InputError(
            f"{source} has physical expert {seen}, but the placement has {num_physical}.",
            hint="Dumps of SGLang before 0.5.23 may count fused shared experts: record again.",
        )
    return ids.astype(np.int64)


def _split(
    source: str,
    forward_pass: int,
    rank: int,
    record: dict[str, Any],
    tokens: NDArray[np.int64],
    position: NDArray[np.int64],
    ids: NDArray[np.int64],
    dump: Dump,
) -> Iterator[TokenRun]:
    """Yield the sequences of a pass."""
    num_tokens = ids.shape[1]
    if len(tokens) != num_tokens or len(position) != num_tokens:
        raise damaged(
            source,
            f"has {num_tokens} tokens in {IDS!r}, {len(tokens)} in 'input_ids' and "
            f"{len(position)} in 'positions'",
        )
    mode = take_integer(record.get("forward_mode"), name="forward_mode", source=source)
    lengths = _find_lengths(record, mode, num_tokens, source=source)
    # Logical experts of the layers that ran, whatever their tokens: a dense layer has only -1.
    ran = [layer for layer in range(len(ids)) if (ids[layer] >= 0).any()]
    logical = {layer: _map(ids[layer], dump.logical_of[layer], layer, source) for layer in ran}
    if (ids[:, sum(lengths) :] >= 0).any():
        raise damaged(source, "has experts for tokens of none of its sequences")
    start = 0
    for number, length in enumerate(lengths):
        chosen = slice(start, start + length)
        start += length
        # Padding has no experts in any layer.
        is_real = np.any([(logical[layer][chosen] >= 0).any(axis=1) for layer in ran], axis=0)
        if not ran or not is_real.any():
            continue
        phase = _DECODE_PHASE if mode == _DECODE else _PREFILL_PHASE
        if mode == _MIXED and length == 1:
            phase = _DECODE_PHASE
        yield TokenRun(
            source=source,
            prompt_id=f"rank{rank}/pass{forward_pass}/seq{number}",
            position=position[chosen][is_real],
            layers=[
                LayerChoices(DECODER, layer, logical[layer][chosen][is_real], is_padded=True)
                for layer in ran
            ],
            phase=np.full(int(is_real.sum()), phase),
            token_id=tokens[chosen][is_real],
        )


def _find_lengths(record: dict[str, Any], mode: int, num_tokens: int, *, source: str) -> list[int]:
    """Return the number of tokens of each sequence of a pass; padding may follow the last one."""
    if mode not in (_EXTEND, _DECODE, _MIXED, _IDLE):
        raise InputError(
            f"{source} is of a pass with forward mode {mode}: it drafts or verifies tokens, which "
            "may not be kept.",
            hint="Record without speculative decoding.",
        )
    if mode == _IDLE:
        return []
    stated = record.get("extend_seq_lens")
    if stated is None:
        return [1] * num_tokens if mode == _DECODE else [num_tokens]
    lengths = take_array(stated, num_dimensions=1, name="extend_seq_lens", source=source)
    if (lengths < 0).any() or lengths.sum() > num_tokens:
        raise damaged(source, f"has sequences of more than its {num_tokens} tokens")
    return [int(length) for length in lengths]


def _map(
    physical: NDArray[np.int64], logical_of: NDArray[np.int64], layer: int, source: str
) -> NDArray[np.int64]:
    experts = np.where(physical >= 0, logical_of[np.maximum(physical, 0)], NO_EXPERT)
    ordered = np.sort(experts, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise refuse_rebalanced(source, layer)
    return experts
