"""The worth of experts kept on the GPU, from a trace wherever its rows are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING

from moetool.analysis.caching import measure as caching
from moetool.analysis.caching.budgets import parse_budgets
from moetool.analysis.caching.result import Caching
from moetool.choices import take_count, take_text
from moetool.errors import InputError, UsageError
from moetool.library.opening import open_reader
from moetool.library.sizes.expert_sizes import (
    ExpertSize,
    find_expert_sizes,
    read_expert_sizes,
)
from moetool.printable import printable
from moetool.trace.metadata import RoutedLayer
from moetool.trace.reading.layer_shapes import Place
from moetool.trace.windows.reader import DecisionReader

if TYPE_CHECKING:
    from moetool.library.opening import GivenTrace

_DOMAIN = "domain"
DEFAULT_BUDGETS = "12.5%,25%,50%"
# A TiB, beyond any expert.
_MOST_BYTES = 1 << 40
_MOST_TOKENS = 10_000_000


def simulate_caches(
    trace: GivenTrace,
    *,
    budget: str = DEFAULT_BUDGETS,
    tokens_per_batch: int | None = None,
    by: str | None = None,
    model: str | PathLike[str] | None = None,
    expert_bytes: int | None = None,
    layers: Collection[int] | None = None,
    num_experts: int | None = None,
    top_k: int | None = None,
    validate: bool = True,
) -> Caching:
    """Return what keeping some experts of each layer on the GPU is worth, as `moetool cache` does.

    Args:
        trace: A DataFrame, a `Trace`, or the path of a trace.
        budget: Budgets, separated by commas: experts per layer as `16`, a share of them as `25%`,
            or memory for all layers as `12GiB`.
        tokens_per_batch: Consecutive tokens of a prompt that pass through the model together; None
            for whole prompts.
        by: Column that groups the steps, such as `domain`, to give hit rates by group too.
        model: A model whose configuration gives the size of an expert; by default the one that the
            trace names, if it is known offline.
        expert_bytes: The size of an expert, instead of a model's.
        layers: Layer numbers to read; None for all.
        num_experts: Experts per layer, for rows without metadata.
        top_k: Experts per decision, for rows without metadata.
        validate: Refuse rows that no trace has.

    Raises:
        InputError: There is no trace, it fails a check, or the model is another one.
        UsageError: An argument is out of range, a budget can't be met, or there is no such column.
    """
    budgets = parse_budgets(take_text(budget, name="budget"))
    size = take_count(
        expert_bytes, name="size of an expert", smallest=1, largest=_MOST_BYTES, is_optional=True
    )
    batch = take_count(
        tokens_per_batch,
        name="number of tokens of a batch",
        smallest=1,
        largest=_MOST_TOKENS,
        is_optional=True,
    )
    if model is not None and size is not None:
        raise UsageError(
            "The size of an expert is given twice, by a number and by a model.",
            hint="Leave out one of the two.",
        )
    reader = open_reader(
        trace,
        by=by if by is not None else _DOMAIN,
        layers=layers,
        num_experts=num_experts,
        top_k=top_k,
        validate=validate,
        columns=caching.COLUMNS,
    )
    sizes, notes = _find_sizes(reader, model=model, expert_bytes=size)
    return caching.simulate_caches(
        reader, budgets=budgets, expert_bytes=sizes, tokens_per_batch=batch, by=by, notes=notes
    )


def _find_sizes(
    reader: DecisionReader, *, model: str | PathLike[str] | None, expert_bytes: int | None
) -> tuple[Mapping[Place, int] | None, list[str]]:
    """Return the bytes of an expert of each layer, or None and the reason."""
    places = [(layer.stack, layer.layer) for layer in reader.layers]
    if expert_bytes is not None:
        return dict.fromkeys(places, expert_bytes), []
    if model is not None:
        sizes = read_expert_sizes(model)
        fault = _find_fault(reader.layers, sizes)
        if fault is not None:
            raise InputError(
                f"'{printable(reader.path)}' is not a trace of '{printable(model)}': {fault}.",
                hint="Name the model of the trace, or give --expert-bytes.",
            )
        return {place: sizes[place].num_bytes for place in places}, []
    named = None if reader.metadata is None else reader.metadata.model
    found = find_expert_sizes(named)
    if found is None or _find_fault(reader.layers, found) is not None:
        reason = (
            "the trace names no model"
            if named is None
            else f"the model '{printable(named)}' of the trace is not known offline"
        )
        return None, [
            f"Bytes are unknown: {reason}. Name one with --model, or give --expert-bytes."
        ]
    return {place: found[place].num_bytes for place in places}, []


def _find_fault(layers: Sequence[RoutedLayer], sizes: Mapping[Place, ExpertSize]) -> str | None:
    """Return what of a trace's layers a model doesn't have; None if it has all."""
    for layer in layers:
        place = f"layer {layer.layer} ({printable(layer.stack, max_length=40)})"
        size = sizes.get((layer.stack, layer.layer))
        if size is None:
            return f"the model has no routed {place}"
        if size.num_experts != layer.num_experts:
            return (
                f"{place} has {size.num_experts} experts in the model, {layer.num_experts} in the "
                "trace"
            )
    return None
