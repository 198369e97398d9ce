"""Notes on a module that is counted by its structure: where its numbers come from, and what is unknown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from moetool.anatomy.parameters import ActiveDefinition, ParameterTable
from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.routing.top_k import read_top_k
from moetool.anatomy.structure.chosen import Choice, count_chosen
from moetool.anatomy.structure.module_structure import ExpertSet, ModuleStructure
from moetool.inspection.notes import note_unread
from moetool.printable import printable
from moetool.wording import number_of

# Layers of a kind that are named one by one.
_MOST_NAMED = 2


def note_structure(
    structure: ModuleStructure,
    choices: Mapping[MoeLayer, Choice],
    table: ParameterTable,
    *,
    is_recorded: bool,
    is_given: bool,
) -> Iterator[str]:
    """Yield the notes on a module.

    Args:
        structure: The module.
        choices: What its layers choose, where it is known.
        table: Its parameter table.
        is_recorded: Whether the choices are those of a recording.
        is_given: Whether some choices are those that the caller gave.
    """
    yield "Counted by the modules in memory; no file was read."
    if structure.experts.is_dense:
        yield "Dense: nothing in its modules and their code looks like routed experts."
    yield from note_unread(structure.experts)
    yield from _note_unknown(structure, choices)
    if structure.layers:
        yield from _note_choices(
            structure, choices, table, is_recorded=is_recorded, is_given=is_given
        )
    reasons = {layer.rule.inexact_because for layer in structure.layers} - {None}
    for reason in reasons:
        yield f"Active counts what the router chooses; {reason}."
    yield "FLOPs unknown: nothing shows what the module is called with."


def _note_unknown(structure: ModuleStructure, choices: Mapping[MoeLayer, Choice]) -> Iterator[str]:
    missing = [layer for layer in structure.run_layers if layer not in choices]
    if missing:
        stated = {read_top_k(structure.module, layer) for layer in missing} - {None}
        yield (
            "Active parameters unknown: nothing shows how many experts a token chooses in "
            f"{_name(missing)}. Give top_k or a recording"
            f"{f'; the code states {_list_numbers(stated)}' if stated else ''}."
        )
    if structure.num_hidden_params:
        yield (
            f"Not counted: {structure.num_hidden_params:,} parameters that modules keep where torch "
            "does not look for them."
        )
    if structure.unclear:
        layers = [each for each in structure.run_layers if each in structure.unclear]
        yield (
            "Active parameters unknown: nothing shows which parameters belong to which expert, in "
            f"{_name(layers)}."
        )
    if structure.entangled:
        yield (
            "Active parameters unknown: some experts share a part of their parameters with others, in "
            f"{_name(sorted(structure.entangled, key=lambda each: each.experts_path))}."
        )
    for experts in structure.expert_sets:
        is_known = all(layer in choices for layer in experts.layers)
        if is_known and not experts.inner and count_chosen(experts, choices) is None:
            yield (
                "Active parameters unknown: experts run several times in a call, and the recording "
                f"does not show for which token, in {_name(experts.layers)}."
            )


def _note_choices(
    structure: ModuleStructure,
    choices: Mapping[MoeLayer, Choice],
    table: ParameterTable,
    *,
    is_recorded: bool,
    is_given: bool,
) -> Iterator[str]:
    if is_given:
        yield (
            "top_k is as given. Active counts one run of each routed block, and all parameters outside "
            "experts."
        )
    for experts in structure.expert_sets:
        if experts.num_places > 1 and not is_recorded:
            yield (
                f"{experts.num_places} places hold the same experts, {_quote(experts.layers[0].experts_path)}: "
                "they may choose the same ones or different ones."
            )
    if not is_recorded:
        return
    yield (
        "Experts per token are those of the recording. Active counts, for each recorded token, the "
        "experts that it ran once or more, and all parameters outside experts."
    )
    varying = [layer for layer in choices if choices[layer].exact is None]
    for layer in varying[:_MOST_NAMED]:
        choice = choices[layer]
        yield (
            f"A recorded token chose {choice.fewest} to {choice.most} experts of "
            f"{_quote(layer.experts_path)}, {choice.mean:.2f} on average."
        )
    if len(varying) > _MOST_NAMED:
        more = number_of(len(varying) - _MOST_NAMED, "other layer")
        yield f"Numbers differ between tokens in {more} too."
    yield from _note_mean(structure.expert_sets, choices, table)


def _note_mean(
    sets: Sequence[ExpertSet], choices: Mapping[MoeLayer, Choice], table: ParameterTable
) -> Iterator[str]:
    """Yield the mean of active parameters, where they differ between tokens."""
    active = table.count_active(ActiveDefinition.ALL)
    if active is None or active.exact is not None:
        return
    chosen = [count_chosen(experts, choices) for experts in sets]
    mean = float(active.most)
    for each in chosen:
        if each is None or each.mean is None:
            return
        mean += each.mean - each.active.most
    yield f"On average, a recorded token runs {mean:,.0f} parameters."


def _name(layers: Sequence[MoeLayer]) -> str:
    names = [_quote(layer.experts_path) for layer in layers[:_MOST_NAMED]]
    more = len(layers) - len(names)
    return " and ".join(names) if not more else f"{', '.join(names)} and {number_of(more, 'other')}"


def _quote(path: str) -> str:
    return f"'{printable(path)}'" if path else "the module itself"


def _list_numbers(numbers: set[int | None]) -> str:
    return " and ".join(str(number) for number in sorted(n for n in numbers if n is not None))
