"""The layers that two traces have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moetool.errors import InputError
from moetool.printable import printable
from moetool.trace.metadata import RoutedLayer
from moetool.trace.reading.layer_shapes import Place
from moetool.trace.windows.reader import DecisionReader
from moetool.wording import join_words

_LAYERS_NAMED = 6


@dataclass(frozen=True)
class LayerPair:
    """A layer whose experts have the same ids in two traces.

    Attributes:
        place: Stack and layer.
        num_experts: Routed experts, including identity experts, of both.
        top_k: Assignments per decision in the first trace, at most.
        other_top_k: In the second.
    """

    place: Place
    num_experts: int
    top_k: int
    other_top_k: int


@dataclass(frozen=True)
class LayerPairs:
    """The layers to compare.

    Attributes:
        pairs: In the order of stack and layer.
        notes: The layers that can't be compared, as sentences.
    """

    pairs: tuple[LayerPair, ...]
    notes: tuple[str, ...]

    def keep(self, count: Callable[[Place], int]) -> LayerPairs:
        """Return the layers without those in which nothing was compared, which become a note.

        Args:
            count: Returns the number of decisions that were compared in a layer.

        Raises:
            InputError: None is left.
        """
        empty = [pair.place for pair in self.pairs if not count(pair.place)]
        if len(empty) == len(self.pairs):
            raise InputError(
                "The traces have no decision in common: no token has experts in the same layer of "
                "both.",
                hint="Compare traces of the same tokens and layers.",
            )
        if not empty:
            return self
        note = f"{_name(empty)}: not compared, because no token has experts in both traces."
        kept = tuple(pair for pair in self.pairs if pair.place not in empty)
        return LayerPairs(kept, (*self.notes, note))


def pair_layers(first: DecisionReader, second: DecisionReader) -> LayerPairs:
    """Return the layers that both traces have, with equal numbers of experts.

    Ids of experts mean nothing across different numbers of experts. Layers may differ in top-k.

    Raises:
        InputError: There is none.
    """
    one, other = _by_place(first), _by_place(second)
    common = [place for place in one if place in other]
    equal = [place for place in common if _count_ids(one[place]) == _count_ids(other[place])]
    unequal = [place for place in common if place not in equal]
    paths = f"'{printable(first.path)}' and '{printable(second.path)}'"
    if not equal and unequal:
        stack, layer = unequal[0]
        raise InputError(
            f"Ids of experts can't be compared: layer {layer} ({printable(stack, max_length=40)}) "
            f"has {_count_ids(one[unequal[0]])} experts in '{printable(first.path)}' and "
            f"{_count_ids(other[unequal[0]])} in '{printable(second.path)}'.",
            hint="Compare traces of models with the same number of experts; if a trace has no "
            "metadata, state it with --num-experts.",
        )
    if not equal:
        raise InputError(
            f"{paths} have no layer in common.",
            hint="Compare traces of the same layers.",
            facts=[f"seen: {_name(list(one))} and {_name(list(other))}"],
        )
    notes = []
    if unequal:
        notes.append(
            f"{_name(unequal)}: not compared, because the numbers of experts differ and ids mean "
            "nothing across them."
        )
    for reader, own, others in ((first, one, other), (second, other, one)):
        single = [place for place in own if place not in others]
        if single:
            notes.append(f"{_name(single)}: only in '{printable(reader.path)}', not compared.")
    pairs = [
        LayerPair(place, _count_ids(one[place]), one[place].top_k, other[place].top_k)
        for place in equal
    ]
    # Where experts choose tokens, sets have any size.
    different = [
        pair.place
        for pair in pairs
        if pair.top_k != pair.other_top_k
        and not one[pair.place].is_chosen_by_experts
        and not other[pair.place].is_chosen_by_experts
    ]
    if different:
        notes.append(
            f"{_name(different)}: the traces choose different numbers of experts, so that the sets "
            "always differ; the overlap is the share of the larger set."
        )
    return LayerPairs(tuple(pairs), tuple(notes))


def _by_place(reader: DecisionReader) -> dict[Place, RoutedLayer]:
    return {(layer.stack, layer.layer): layer for layer in reader.layers}


def _count_ids(layer: RoutedLayer) -> int:
    return layer.num_experts + layer.num_identity_experts


def _name(places: Sequence[Place]) -> str:
    """Return places in words: `layers 3, 4 and 2 more`."""
    shown = [
        str(layer) if stack == "decoder" else f"{layer} ({printable(stack, max_length=40)})"
        for stack, layer in places[:_LAYERS_NAMED]
    ]
    if len(places) > _LAYERS_NAMED:
        shown.append(f"{len(places) - _LAYERS_NAMED} more")
    return f"layer{'s' if len(places) > 1 else ''} {join_words(shown, last='and')}"
