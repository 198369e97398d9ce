"""Import Megatron-LM's router traces: one JSON line for each step, layer and micro-batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.errors import InputError, UsageError
from moetool.interchange.imports.engines.megatron_logits import (
    RankLogits,
    order_by_logits,
)
from moetool.interchange.imports.reading.text import (
    Line,
    damaged,
    iter_lines,
    load_json,
    quote,
    take_array,
    take_integer,
    take_object,
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
from moetool.interchange.imports.shapes import GivenShapes
from moetool.wording import number_of

FORMAT = "megatron"
IDS = "top_indices"
_MTP = "mtp"


@dataclass(frozen=True)
class _RankFile:
    """One rank's file.

    Attributes:
        offset: What to add to the numbers of its decoder layers.
        replica: Number of the file among those with the same offset, which hold other tokens.
    """

    path: Path
    offset: int
    replica: int


@dataclass(frozen=True)
class _Entry:
    """One line: the choices of one layer for a micro-batch."""

    source: str
    step: int
    block: str
    mtp: int | None
    layer: int
    experts: NDArray[np.int64]
    content: dict[str, Any]

    @property
    def stack(self) -> str:
        return self.block if not self.mtp else f"{self.block}.{self.mtp}"


def open_megatron(files: ImportFiles, shapes: GivenShapes) -> TraceImport:
    """Return the decisions in the files of some ranks.

    Raises:
        InputError: A file holds something else.
        UsageError: It isn't known which layers of the model the ranks hold.
    """
    paths = [each for path in files.paths for each in _list_files(path)]
    facts = Facts(FORMAT)
    ranks = _assign(paths, files.layer_offsets, facts)
    logits = {rank.path: RankLogits.find(rank.path) for rank in ranks}
    why_lost = _survey(ranks, logits, facts)
    columns: set[Column] = set()
    if why_lost is None:
        columns = {"rank", "weight"}
        facts.note(
            "Ranks and weights were computed from the recorded bfloat16 logits. The weights of a "
            "decision sum to 1: a scaling factor, or a softmax over all experts, isn't recorded."
        )
    else:
        facts.note(f"The order of ranks is lost, and weights are unknown: {why_lost}.")
    if files.micro_batch_size is None:
        facts.note(
            "Each prompt is a micro-batch, and positions count its tokens: --micro-batch-size "
            "takes its sequences apart."
        )
    runs = _iter_runs(ranks, logits, facts, shapes, files, has_ranks=why_lost is None)
    return TraceImport(runs, frozenset(columns), facts)


def _list_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("router_trace_rank*.jsonl"))
    if not found:
        raise damaged(quote(path), "holds no router_trace_rank*.jsonl")
    return found


def _assign(paths: list[Path], offsets: tuple[int, ...], facts: Facts) -> list[_RankFile]:
    if len(paths) > 1 and len(offsets) != len(paths):
        raise UsageError(
            f"{len(paths)} files of ranks number their layers from 0 in each pipeline stage, and "
            f"{number_of(len(offsets), 'layer offset')} {'was' if len(offsets) == 1 else 'were'} "
            "given.",
            hint="Give --layer-offset the first layer of each file's stage, such as 0,0,16,16; the "
            "same one for ranks of one stage.",
        )
    if not offsets:
        facts.note(
            "Layers are numbered as in the pipeline stage; --layer-offset adds the number of its "
            "first layer."
        )
        offsets = (0,)
    elif len(offsets) > len(paths):
        raise UsageError(
            f"{len(offsets)} layer offsets were given for one file.",
            hint="Give --layer-offset one number for each file.",
        )
    ranks: list[_RankFile] = []
    for path, offset in zip(paths, offsets, strict=True):
        replica = sum(rank.offset == offset for rank in ranks)
        ranks.append(_RankFile(path, offset, replica))
    return ranks


def _survey(
    ranks: list[_RankFile], logits: dict[Path, RankLogits | None], facts: Facts
) -> str | None:
    """Return why ranks can't be computed from logits; None if they can.

    All lines have to be read for that, because a table has a column for all rows or none.
    """
    for rank in ranks:
        found = logits[rank.path]
        if found is None:
            return f"{quote(rank.path)} has no router state and logits next to it"
        for entry in _iter_entries(rank.path, facts):
            why = found.say_what_lacks(
                entry.block, entry.mtp, entry.layer, entry.content, top_k=entry.experts.shape[1]
            )
            if why is not None:
                return f"{entry.source} {why}"
    return None


def _iter_runs(
    ranks: list[_RankFile],
    logits: dict[Path, RankLogits | None],
    facts: Facts,
    shapes: GivenShapes,
    files: ImportFiles,
    *,
    has_ranks: bool,
) -> Iterator[TokenRun]:
    del shapes
    num_tokens_of: dict[str, int] = {}
    num_tied = num_other = 0
    for rank in ranks:
        num_seen: dict[tuple[int, str, int], int] = {}
        places: set[tuple[str, int]] = set()
        for entry in _iter_entries(rank.path, facts):
            layer = entry.layer + (rank.offset if entry.block == DECODER else 0)
            key = (entry.step, entry.stack, layer)
            micro = num_seen.get(key, 0)
            num_seen[key] = micro + 1
            places.add((entry.stack, layer))
            name = f"rank{rank.replica}/step{entry.step}/batch{micro}"
            num_tokens = len(entry.experts)
            if num_tokens_of.setdefault(name, num_tokens) != num_tokens:
                raise InputError(
                    f"{entry.source} has {num_tokens} tokens, but other layers of step "
                    f"{entry.step}, micro-batch {micro} have {num_tokens_of[name]}.",
                    hint="Import the ranks of pipeline stages in the same order for each stage.",
                )
            experts, weights = entry.experts, None
            found = logits[rank.path]
            if has_ranks and found is not None:
                scores = found.read(entry.content, num_tokens=num_tokens, source=entry.source)
                state = found.find_state(entry.block, entry.mtp, entry.layer)
                assert state is not None
                experts, weights, tied, other = order_by_logits(
                    experts, scores, state, source=entry.source
                )
                num_tied, num_other = num_tied + tied, num_other + other
            choices = LayerChoices(entry.stack, layer, experts, weights)
            yield from _split(entry, name, choices, files.micro_batch_size)
    if num_tied:
        facts.note(f"The logits of {number_of(num_tied, 'decision')} tie: their order is by id.")
    if num_other:
        facts.note(
            f"The logits of {number_of(num_other, 'decision')} would choose other experts: routing "
            "was limited to groups, or bfloat16 is too coarse. The recorded experts were kept."
        )


def _split(
    entry: _Entry, name: str, choices: LayerChoices, micro_batch_size: int | None
) -> Iterator[TokenRun]:
    """Yield the sequences of a micro-batch, whose tokens are laid out as [sequence, batch]."""
    num_tokens = len(choices.experts)
    if micro_batch_size is None:
        yield TokenRun(entry.source, name, np.arange(num_tokens), [choices])
        return
    if num_tokens % micro_batch_size:
        raise InputError(
            f"{entry.source} has {num_tokens} tokens, which are not {micro_batch_size} sequences "
            "of one length.",
            hint="Correct --micro-batch-size, or leave it out.",
        )
    for number in range(micro_batch_size):
        own = slice(number, None, micro_batch_size)
        weights = None if choices.weights is None else choices.weights[own]
        yield TokenRun(
            entry.source,
            f"{name}/seq{number}",
            np.arange(num_tokens // micro_batch_size),
            [LayerChoices(choices.stack, choices.layer, choices.experts[own], weights)],
        )


def _iter_entries(path: Path, facts: Facts) -> Iterator[_Entry]:
    for line in iter_lines(path):
        try:
            yield _read_entry(line)
        except InputError:
            # The process that wrote it was stopped.
            if not line.is_cut:
                raise
            facts.is_complete = False
            facts.note(f"{quote(path)} breaks off in its last line, which was left out.")


def _read_entry(line: Line) -> _Entry:
    source = line.source
    content = take_object(load_json(line.text, source=source), source=source)
    block = content.get("block")
    if block not in (DECODER, _MTP):
        raise damaged(source, "is not a line of Megatron-LM's router trace: 'block' is missing")
    experts = take_array(content.get(IDS), num_dimensions=2, name=IDS, source=source)
    num_tokens, top_k = (
        take_integer(content.get(name), name=name, source=source) for name in ("num_tokens", "topk")
    )
    if experts.size == 0 and num_tokens == 0:
        experts = np.zeros((0, top_k), dtype=np.int64)
    if experts.shape != (num_tokens, top_k):
        raise damaged(source, f"has {experts.shape} experts in {IDS!r}, not {(num_tokens, top_k)}")
    mtp = content.get("mtp_idx")
    return _Entry(
        source=source,
        step=take_integer(content.get("step"), name="step", source=source),
        block=block,
        mtp=None if mtp is None else take_integer(mtp, name="mtp_idx", source=source),
        layer=take_integer(content.get("layer"), name="layer", source=source),
        experts=experts,
        content=content,
    )
