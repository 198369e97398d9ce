"""Number of experts and top-k of each layer, from the metadata, the user or the rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.errors import InputError, UsageError
from moetool.printable import printable
from moetool.trace.decisions import NO_EXPERT
from moetool.trace.faults.rows import find_expert
from moetool.trace.metadata import RoutedLayer, TraceMetadata
from moetool.trace.scanning.layer_rows import LayerRows
from moetool.trace.scanning.values import REPAIR_HINT
from moetool.wording import number_of

if TYPE_CHECKING:
    from moetool.trace.reading.reader import TraceSource

Place = tuple[str, int]

_ATTRS_HINT = "Clear frame.attrs to have top-k inferred from the rows that are left."
_FEW_ROWS_HINT = (
    "Give a choice that ran no expert a row with expert -1; --no-validate (validate=False in "
    "Python) reads the rows as they are."
)
_PLACES_SHOWN = 4
_LAYERS_NAMED = 12


@dataclass(frozen=True)
class LayerShapes:
    """The shapes of the layers that have rows.

    Attributes:
        layers: In the order of stack and layer.
        notes: What had to be inferred, and contradictions, as sentences.
    """

    layers: tuple[RoutedLayer, ...]
    notes: tuple[str, ...]


def find_shapes(
    source: TraceSource,
    rows: Mapping[Place, LayerRows],
    *,
    num_experts: int | None,
    top_k: int | None,
    is_checked: bool = True,
) -> LayerShapes:
    """Return every layer's number of experts and top-k.

    Args:
        source: The trace.
        rows: Summary of the rows of each layer.
        num_experts: As the user states it; None to take it from the metadata or infer it.
        top_k: As the user states it; None to take it from the metadata or infer it.
        is_checked: Refuse metadata that the rows contradict.

    Raises:
        InputError: The rows, the metadata and the user contradict each other.
    """
    # The parts of an unfinished trace may not know their layers yet.
    if source.metadata is not None and source.metadata.layers:
        layers = _take_described(source, source.metadata, rows)
        _compare_with_options(source, layers, num_experts=num_experts, top_k=top_k)
        notes: list[str] = []
        if is_checked:
            _check_sizes(source, layers, rows)
            notes += _describe_missing(source.metadata, rows)
    else:
        layers, notes = _infer(source, rows, num_experts=num_experts, top_k=top_k)
    if is_checked:
        _check_equal_sizes(source, layers, rows)
        notes += _describe_sizes(layers, rows)
        notes += _describe_idle(rows)
    return LayerShapes(tuple(layers), tuple(notes))


def check_layers(path: str | Path, known: Iterable[int], asked: Collection[int] | None) -> None:
    """Check that there are the layers that a user asks for.

    Args:
        path: The trace or load table.
        known: Numbers of its routed layers.
        asked: None for all.

    Raises:
        UsageError: There is no such layer.
    """
    numbers = sorted(set(known))
    missing = sorted(set(asked or ()) - set(numbers))
    if missing:
        shown = ", ".join(map(str, numbers[:_LAYERS_NAMED]))
        num_more = len(numbers) - _LAYERS_NAMED
        more = f" and {num_more} more" if num_more > 0 else ""
        raise UsageError(
            f"'{printable(path)}' has no routed layer {missing[0]}.",
            hint=f"Its routed layers are {shown}{more}.",
        )


def check_described(source: TraceSource, rows: Mapping[Place, LayerRows]) -> None:
    """Check the rows of a trace against its metadata, if it has any.

    Raises:
        InputError: The rows contradict the metadata.
    """
    if source.metadata is not None and source.metadata.layers:
        _check_sizes(source, _take_described(source, source.metadata, rows), rows)


def _take_described(
    source: TraceSource, metadata: TraceMetadata, rows: Mapping[Place, LayerRows]
) -> list[RoutedLayer]:
    described = {(layer.stack, layer.layer): layer for layer in metadata.layers}
    for place, layer in sorted(rows.items()):
        known = described.get(place)
        num_known = None if known is None else known.num_experts + known.num_identity_experts
        if num_known is None or layer.num_ids > num_known:
            raise _refuse_undescribed(source, place, num_known)
    return [described[place] for place in sorted(rows)]


def _refuse_undescribed(source: TraceSource, place: Place, num_known: int | None) -> InputError:
    """Return the error for the first row of a layer or expert that the metadata doesn't list.

    Args:
        source: The trace.
        place: The layer.
        num_known: Experts that the metadata lists; None if it doesn't list the layer.
    """
    found = find_expert(source, place, least=NO_EXPERT if num_known is None else num_known)
    layer = name_layer(place)
    if num_known is None:
        words = f"has rows of {layer}, which its metadata doesn't list, from {found.name} on"
    else:
        words = (
            f"has expert {found.expert} in {found.name}, but its metadata lists "
            f"{number_of(num_known, 'expert')} in {layer}"
        )
    return InputError(
        f"'{printable(found.file)}' {words}.",
        hint="Trace again, or remove the metadata to read the table alone.",
        facts=[f"seen: {found.place}"],
    )


def _compare_with_options(
    source: TraceSource,
    layers: Iterable[RoutedLayer],
    *,
    num_experts: int | None,
    top_k: int | None,
) -> None:
    for layer in layers:
        for option, asked, known in (
            ("--num-experts", num_experts, layer.num_experts),
            ("--top-k", top_k, layer.top_k),
        ):
            if asked is not None and asked != known:
                raise InputError(
                    f"{option} says {asked}, but the metadata of '{printable(source.path)}' says "
                    f"{known} in {name_layer((layer.stack, layer.layer))}.",
                    hint="Leave out the option: it is for traces without metadata.",
                )


def _check_sizes(
    source: TraceSource, layers: Iterable[RoutedLayer], rows: Mapping[Place, LayerRows]
) -> None:
    for layer in layers:
        place = (layer.stack, layer.layer)
        largest = rows[place].most_rows
        if largest != layer.top_k:
            amount = "up to " if largest > layer.top_k else "at most "
            raise InputError(
                f"'{printable(source.path)}' has {amount}{number_of(largest, 'row')} for a decision in "
                f"{name_layer(place)}, but its metadata says top-{layer.top_k}.",
                hint=REPAIR_HINT if source.table is None else _ATTRS_HINT,
                facts=[f"seen: {rows[place].largest}"],
            )


def _infer(
    source: TraceSource,
    rows: Mapping[Place, LayerRows],
    *,
    num_experts: int | None,
    top_k: int | None,
) -> tuple[list[RoutedLayer], list[str]]:
    largest = {place: layer.most_rows for place, layer in rows.items()}
    most_ids, most_rows = max(1, *(layer.num_ids for layer in rows.values())), max(largest.values())
    notes = []
    if num_experts is None:
        # The experts of a decision are distinct, so there are at least top-k.
        num_experts = max(most_ids, top_k or most_rows)
        source_of_number = (
            "the largest id seen plus one" if num_experts == most_ids else "as many as top-k"
        )
        notes.append(
            f"{num_experts} experts are assumed, {source_of_number}; give --num-experts if there "
            "are more."
        )
    elif most_ids > num_experts:
        found = find_expert(source, None, least=num_experts)
        raise InputError(
            f"'{printable(source.path)}' has expert ids up to {most_ids - 1}, but --num-experts "
            f"says {num_experts}.",
            hint="Ids count from 0; leave out the option to have the number inferred.",
            facts=[
                f"first: expert {found.expert} in {found.name} of '{printable(found.file.name)}'"
            ],
        )
    if top_k is None:
        seen = " or ".join(f"Top-{k}" for k in sorted(set(largest.values())))
        notes.append(
            f"{seen} is assumed, the largest number of rows of one decision; give --top-k if it is "
            "different."
        )
    elif most_rows > top_k:
        raise InputError(
            f"'{printable(source.path)}' has decisions of {most_rows} rows, but --top-k says "
            f"{top_k}.",
            hint="Leave out the option to have the number inferred.",
        )
    if (top_k or most_rows) > num_experts:
        raise InputError(
            f"A decision can't choose {top_k or most_rows} of {num_experts} experts, which "
            f"'{printable(source.path)}' would have by --num-experts.",
            hint="Leave out the option to have the number inferred.",
        )
    layers = [
        RoutedLayer(
            stack=stack,
            layer=layer,
            module="",
            router=None,
            num_experts=num_experts,
            num_identity_experts=0,
            top_k=top_k or largest[stack, layer],
        )
        for stack, layer in sorted(rows)
    ]
    return layers, notes


def _describe_sizes(layers: Iterable[RoutedLayer], rows: Mapping[Place, LayerRows]) -> list[str]:
    """Return notes on layers with different numbers of decisions."""
    notes = []
    per_stack: dict[str, dict[int, int]] = {}
    for layer in layers:
        seen = rows[layer.stack, layer.layer]
        per_stack.setdefault(layer.stack, {})[layer.layer] = seen.num_decisions.total()
    for stack, totals in per_stack.items():
        if len(set(totals.values())) > 1:
            fewest, most = min(totals, key=totals.__getitem__), max(totals, key=totals.__getitem__)
            notes.append(
                f"Layers of one stack hold different numbers of tokens: {name_layer((stack, fewest))} "
                f"{totals[fewest]:,}, {name_layer((stack, most))} {totals[most]:,}."
            )
    return notes


def _check_equal_sizes(
    source: TraceSource, layers: Iterable[RoutedLayer], rows: Mapping[Place, LayerRows]
) -> None:
    """Check that every decision of a layer has top-k rows, or as many as the metadata allows."""
    for layer in layers:
        place = (layer.stack, layer.layer)
        seen = rows[place]
        fewest = layer.fewest_rows
        short = sum(number for size, number in seen.num_decisions.items() if size < fewest)
        if short:
            raise InputError(
                f"'{printable(source.path)}' has {short:,} of {seen.num_decisions.total():,} "
                f"decisions with fewer than {fewest} rows in {name_layer(place)}.",
                hint=_FEW_ROWS_HINT,
                facts=[f"first: {seen.smallest}"],
            )


def _describe_idle(rows: Mapping[Place, LayerRows]) -> list[str]:
    idle = [place for place, layer in sorted(rows.items()) if not layer.num_ids]
    if not idle:
        return []
    number = sum(rows[place].num_decisions.total() for place in idle)
    return [f"No expert ran for any of {number:,} decisions in {name_layers(idle)}."]


def _describe_missing(metadata: TraceMetadata, rows: Mapping[Place, LayerRows]) -> list[str]:
    notes = []
    missing = [
        (layer.stack, layer.layer)
        for layer in metadata.layers
        if (layer.stack, layer.layer) not in rows
    ]
    if missing:
        notes.append(f"The metadata lists {name_layers(missing)}, for which there are no rows.")
    number = sum(layer.num_decisions.total() for layer in rows.values())
    if metadata.complete and metadata.num_decisions not in (0, number):
        notes.append(
            f"The metadata counts {metadata.num_decisions:,} decisions, but the rows hold "
            f"{number:,}: rows were removed or added afterwards."
        )
    return notes


def name_layer(place: Place) -> str:
    """Return a layer in words, with its stack unless that is the decoder."""
    stack, layer = place
    return f"layer {layer}" + (
        "" if stack == "decoder" else f" of {printable(stack, max_length=40)}"
    )


def name_layers(places: list[Place]) -> str:
    """Return layers in words: the first of them, and how many more there are."""
    shown = ", ".join(name_layer(place) for place in places[:_PLACES_SHOWN])
    more = len(places) - _PLACES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
