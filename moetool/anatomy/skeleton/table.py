"""The parameter table of a model on the meta device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from transformers import PreTrainedModel

from moetool.anatomy.components import TOWERS, Component, Place
from moetool.anatomy.parameters import ActiveRange, ParameterRow, ParameterTable
from moetool.anatomy.routing.walk import walk_parameters
from moetool.anatomy.skeleton.active_experts import (
    count_active_experts,
    is_run_by_text,
)
from moetool.anatomy.skeleton.build import find_embedding
from moetool.anatomy.skeleton.dtype_plan import read_dtype_plan
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from moetool.catalogue.published import ExtraParameters


@dataclass
class _Cell:
    """The sums for one row."""

    num_params: int = 0
    active: ActiveRange | None = field(default_factory=lambda: ActiveRange(0, 0))
    num_bytes: int = 0
    dtypes: dict[str, None] = field(default_factory=dict)


def count_skeleton(skeleton: RoutedSkeleton, *, dtype: torch.dtype | None) -> ParameterTable:
    """Return the parameter table of a model.

    Each parameter is counted once, however many modules share it; buffers are not counted. Active
    parameters are those that one text token runs, in an encoder-decoder one token of each stack.

    Args:
        skeleton: The model.
        dtype: The dtype that the model was built in, and to which transformers converts the weights
            when it loads them; None if unknown.
    """
    model, placement = skeleton.model, skeleton.placement
    unread = [layer.block_path for layer in skeleton.layers if not is_run_by_text(layer)]
    plan = read_dtype_plan(model, dtype)
    cells: dict[Place, _Cell] = {}
    place_of: dict[int, Place] = {}
    for path, parameter in walk_parameters(model):
        place = placement.place(path)
        place_of[id(parameter)] = place
        cell = cells.setdefault(place, _Cell())
        cell.num_params += parameter.numel()
        if dtype is not None:
            loaded = next((kept for words, kept in plan if words.search(path)), parameter.dtype)
            cell.num_bytes += parameter.numel() * loaded.itemsize
            cell.dtypes[str(loaded).removeprefix("torch.")] = None
        if place.component is Component.ROUTED_EXPERTS:
            continue
        is_read = place.component not in TOWERS and not any(
            path.startswith(f"{block}.") for block in unread
        )
        cell.active = _add(cell.active, parameter.numel() if is_read else 0)
    _add_active_experts(skeleton, cells=cells, place_of=place_of)
    doubtful = {*skeleton.experts.unreadable, *(sign.path for sign in skeleton.experts.signs)}
    _forget_active(model, doubtful, cells=cells, place_of=place_of)
    return ParameterTable(
        rows=tuple(
            ParameterRow(
                stack=place.stack,
                layer=place.layer,
                component=place.component,
                num_params=cell.num_params,
                active=cell.active,
                dtype=" + ".join(cell.dtypes) or None,
                num_bytes=cell.num_bytes if cell.dtypes else None,
            )
            for place, cell in cells.items()
        ),
        is_tied=_is_tied(model),
    )


def _add_active_experts(
    skeleton: RoutedSkeleton, *, cells: dict[Place, _Cell], place_of: Mapping[int, Place]
) -> None:
    """Add the active parameters of routed experts to their rows.

    Layers that share their experts (DiffusionGemma's two stacks) may choose the same ones or
    others. Then one token of each runs at least what the layer that runs most does, and at most what
    all of them do together.
    """
    sizes: dict[int, int] = {}
    ranges: dict[tuple[int, ...], list[ActiveRange | None]] = {}
    for layer in skeleton.layers:
        parameters = skeleton.expert_parameters[layer].values()
        sizes |= {id(parameter): parameter.numel() for parameter in parameters}
        number = skeleton.top_k[layer]
        active = None if number is None else count_active_experts(parameters, layer, top_k=number)
        ranges.setdefault(tuple(map(id, parameters)), []).append(active)
    for identities, alternatives in ranges.items():
        cell = cells[place_of[identities[0]]]
        known = [active for active in alternatives if active is not None]
        if len(known) < len(alternatives) or cell.active is None:
            cell.active = None
            continue
        num_params = sum(sizes[identity] for identity in identities)
        fewest = max(active.fewest for active in known)
        most = min(sum(active.most for active in known), num_params)
        cell.active = ActiveRange(cell.active.fewest + fewest, cell.active.most + most)


def _forget_active(
    model: PreTrainedModel,
    paths: Iterable[str],
    *,
    cells: dict[Place, _Cell],
    place_of: Mapping[int, Place],
) -> None:
    """Make the active parameters of some modules unknown; of all, if one has no parameters itself."""
    for path in paths:
        held = list(model.get_submodule(path).parameters()) or list(model.parameters())
        for parameter in held:
            cells[place_of[id(parameter)]].active = None


def _is_tied(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    embedding = find_embedding(model)
    weights = [getattr(module, "weight", None) for module in (head, embedding)]
    return weights[0] is not None and weights[0] is weights[1]


def _add(active: ActiveRange | None, num_params: int) -> ActiveRange | None:
    if active is None:
        return None
    return ActiveRange(active.fewest + num_params, active.most + num_params)


def add_extra(table: ParameterTable, extra: Sequence[ExtraParameters]) -> ParameterTable:
    """Return the table with parameters that are missing from the class the model is counted by."""
    rows = list(table.rows)
    for parameters in extra:
        component = Component(parameters.component)
        for index, row in enumerate(rows):
            if row.component is component and row.layer is not None:
                rows[index] = _grow(row, parameters.params_per_layer)
    return replace(table, rows=tuple(rows))


def _grow(row: ParameterRow, num_params: int) -> ParameterRow:
    per_param = row.num_bytes // row.num_params if row.num_bytes is not None else None
    active = row.active
    return replace(
        row,
        num_params=row.num_params + num_params,
        active=ActiveRange(active.fewest + num_params, active.most + num_params)
        if active
        else None,
        num_bytes=None if row.num_bytes is None else row.num_bytes + num_params * (per_param or 0),
    )
