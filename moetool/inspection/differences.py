"""Differences between a checkpoint's files and the model that transformers builds from it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from moetool.anatomy.components import TOWERS, Component, Place
from moetool.anatomy.headers.other_tensors import Reason
from moetool.anatomy.headers.table import HeaderTable
from moetool.anatomy.parameters import ParameterRow, ParameterTable
from moetool.inspection.figures import Difference

# Longer lists of layers are cut.
_FEW_LAYERS = 5

Layer = tuple[str, int | None]


def explain_differences(model: ParameterTable, files: HeaderTable) -> tuple[Difference, ...]:
    """Return every difference between two derivations of one checkpoint's parameters.

    They are complete: in each component, the `components` of the differences add up to the number of
    parameters in the files minus that in the model.

    Args:
        model: The skeleton's table.
        files: The headers' table.
    """
    others = tuple(
        Difference(
            what=group.reason.value,
            num_tensors=group.num_tensors,
            file_params=group.num_params,
            params=0,
            file_bytes=group.num_bytes,
            example=group.example,
            components={name.value: number for name, number in group.components.items()}
            if group.are_parameters
            else {},
        )
        for group in files.other_tensors
    )
    return (*others, *_compare(model, files))


@dataclass(frozen=True)
class _Cell:
    """The parameters of one component of one layer, in the model and in the files."""

    layer: Layer
    component: Component
    in_model: int | None
    in_files: int | None

    @property
    def surplus(self) -> int:
        return (self.in_files or 0) - (self.in_model or 0)


def _compare(model: ParameterTable, files: HeaderTable) -> Iterator[Difference]:
    """Yield the cells that differ, grouped; each cell is in one group."""
    cells = _find_different(model, files)
    known = {(row.stack, row.layer) for row in model.rows}
    has_stacks = len({row.stack for row in model.rows if row.layer is not None}) > 1
    held = {(row.stack, row.layer) for row in files.table.rows}
    missing = {cell.layer for cell in cells if cell.layer[1] is not None} & (known - held)
    extra = {cell.layer for cell in cells if cell.layer[1] is not None} & (held - known)
    if missing:
        what = f"whole layers missing from the files{_list_layers(missing, has_stacks)}: shards may be missing"
        yield _sum_up(what, [cell for cell in cells if cell.layer in missing])
    if extra:
        what = f"whole layers that the model does not build{_list_layers(extra, has_stacks)}"
        yield _sum_up(what, [cell for cell in cells if cell.layer in extra])
    for component in Component:
        rest = [
            cell
            for cell in cells
            if cell.component is component and cell.layer not in missing | extra
        ]
        groups: dict[str, list[_Cell]] = {}
        for cell in rest:
            groups.setdefault(_explain(cell, rest, model, files), []).append(cell)
        for what, group in groups.items():
            layers = {cell.layer for cell in group if cell.layer[1] is not None}
            yield _sum_up(what + _list_layers(layers, has_stacks), group)


def _find_different(model: ParameterTable, files: HeaderTable) -> list[_Cell]:
    """Return the cells that differ.

    The derivations may have different names for stacks that share parameters, and may place what
    belongs to no known component in a layer or outside layers. If it has the same size in both, that
    is not a difference.
    """
    in_model, in_files = _sum_places(model.rows), _sum_places(files.table.rows)
    surplus: dict[tuple[int | None, Component], int] = {}
    for (_, layer, component), number in in_files.items():
        key = _compared_with(layer, component)
        surplus[key] = surplus.get(key, 0) + number
    for (_, layer, component), number in in_model.items():
        key = _compared_with(layer, component)
        surplus[key] = surplus.get(key, 0) - number
    uncounted = {(_stack_of(place), place.layer, place.component) for place in files.uncounted}
    return [
        _Cell((stack, layer), component, in_model.get(place), in_files.get(place))
        for place in {**in_model, **in_files}
        for stack, layer, component in [place]
        if (
            surplus[_compared_with(layer, component)]
            and in_model.get(place, 0) != in_files.get(place, 0)
        )
        or place in uncounted
    ]


def _compared_with(layer: int | None, component: Component) -> tuple[int | None, Component]:
    return (None if component is Component.OTHER else layer, component)


def _stack_of(place: Place | ParameterRow) -> str:
    # Outside layers, the derivations don't name stacks alike.
    return place.stack if place.layer is not None else ""


def _sum_places(rows: Iterable[ParameterRow]) -> dict[tuple[str, int | None, Component], int]:
    sums: dict[tuple[str, int | None, Component], int] = {}
    for row in rows:
        place = (_stack_of(row), row.layer, row.component)
        sums[place] = sums.get(place, 0) + row.num_params
    return sums


def _explain(
    cell: _Cell, cells: Collection[_Cell], model: ParameterTable, files: HeaderTable
) -> str:
    """Return in words why a component of a layer has another size in the files.

    Args:
        cell: That component of that layer.
        cells: All cells of the component that differ.
        model: The skeleton's table.
        files: The headers' table.
    """
    component = cell.component
    name = component.value.replace("_", " ")
    if any(_is_at(place, cell) for place in files.uncounted):
        return f"{name} packed in an unknown way, not counted in the files"
    if component in TOWERS and not cell.in_model:
        return f"a {name} tower, which this class of transformers does not build"
    if component is Component.LM_HEAD and model.is_tied and not cell.in_model:
        return Reason.TIED_HEAD.value
    buffers = sum(
        group.components.get(component, 0)
        for group in files.other_tensors
        if group.reason is Reason.BUFFERS
    )
    if component is Component.ROUTER and -sum(each.surplus for each in cells) == buffers > 0:
        return "biases that select experts: their names are those of buffers, but this model trains them"
    if not cell.in_files:
        return f"{name} missing from the files"
    if not cell.in_model:
        return f"{name} that the model does not build"
    if component is Component.EMBEDDING and cell.in_files % cell.in_model == 0:
        return "copies of the embedding"
    return f"{name} of another size in the files"


def _is_at(place: Place, cell: _Cell) -> bool:
    return (_stack_of(place), place.layer) == cell.layer and place.component is cell.component


def _sum_up(what: str, cells: Collection[_Cell]) -> Difference:
    components: dict[str, int] = {}
    for cell in cells:
        name = cell.component.value
        components[name] = components.get(name, 0) + cell.surplus
    return Difference(
        what=what,
        num_tensors=None,
        file_params=sum(cell.in_files or 0 for cell in cells),
        params=sum(cell.in_model or 0 for cell in cells),
        file_bytes=None,
        example=None,
        components=components,
    )


def _list_layers(layers: Collection[Layer], has_stacks: bool) -> str:
    """Return layers in words, those of an encoder and of a decoder separately."""
    words = []
    for stack in sorted({stack for stack, _ in layers}):
        numbers = sorted(number for name, number in layers if name == stack and number is not None)
        of_stack = f" of the {stack}" if has_stacks else ""
        words.append(f", {_list_numbers(numbers)}{of_stack}")
    return "".join(words)


def _list_numbers(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return f"layer {numbers[0]}"
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"layers {numbers[0]} to {numbers[-1]}"
    shown = ", ".join(map(str, numbers[:_FEW_LAYERS]))
    return f"layers {shown}{', …' if numbers[_FEW_LAYERS:] else ''}"
