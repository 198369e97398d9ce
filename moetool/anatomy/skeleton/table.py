"""The parameter table of a model on the meta device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedModel

from moetool.anatomy.components import TOWERS, Component
from moetool.anatomy.parameters import ActiveRange, ParameterRow, ParameterTable
from moetool.anatomy.skeleton.active_experts import (
    count_active_experts,
    is_run_by_text,
    list_expert_parameters,
)
from moetool.anatomy.skeleton.build import find_embedding
from moetool.anatomy.skeleton.cells import ParameterCells
from moetool.anatomy.skeleton.dtype_plan import read_dtype_plan
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from moetool.catalogue.published import ExtraParameters


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
    cells = ParameterCells()
    for path, parameter in model.named_parameters():
        place = placement.place(path)
        loaded = next((kept for words, kept in plan if words.search(path)), parameter.dtype)
        is_read = place.component not in (*TOWERS, Component.ROUTED_EXPERTS) and not any(
            path.startswith(f"{block}.") for block in unread
        )
        cells.add(
            parameter,
            place,
            dtype=None if dtype is None else loaded,
            num_active=parameter.numel() if is_read else 0,
        )
    _add_active_experts(skeleton, cells)
    for path in {*skeleton.experts.unreadable, *(sign.path for sign in skeleton.experts.signs)}:
        # All parameters are in doubt if the module has none itself.
        cells.forget_active(list(model.get_submodule(path).parameters()) or model.parameters())
    return ParameterTable(rows=tuple(cells.list_rows()), is_tied=is_embedding_tied(model))


def _add_active_experts(skeleton: RoutedSkeleton, cells: ParameterCells) -> None:
    """Add the active parameters of routed experts to their rows.

    Layers that share their experts (DiffusionGemma's two stacks) may choose the same ones or
    others. Then one token of each runs at least what the layer that runs most does, and at most what
    all of them do together.
    """
    model = skeleton.model
    ranges: dict[tuple[int, ...], list[ActiveRange | None]] = {}
    held: dict[tuple[int, ...], list[nn.Parameter]] = {}
    for layer in skeleton.layers:
        parameters = list(list_expert_parameters(model, layer).values())
        number = skeleton.top_k[layer]
        active = None if number is None else count_active_experts(model, layer, top_k=number)
        identities = tuple(map(id, parameters))
        held[identities] = parameters
        ranges.setdefault(identities, []).append(active)
    for identities, alternatives in ranges.items():
        num_params = sum(parameter.numel() for parameter in dict.fromkeys(held[identities]))
        cells.add_active(held[identities][0], join_ranges(alternatives, num_params=num_params))


def join_ranges(ranges: Sequence[ActiveRange | None], *, num_params: int) -> ActiveRange | None:
    """Return what layers that share their experts run of these together; None if unknown.

    Args:
        ranges: What each of them runs.
        num_params: Parameters of the experts.
    """
    known = [active for active in ranges if active is not None]
    if len(known) < len(ranges):
        return None
    return ActiveRange(
        max(active.fewest for active in known),
        min(sum(active.most for active in known), num_params),
    )


def is_embedding_tied(model: PreTrainedModel) -> bool:
    """Return whether the embedding of a model is its head too."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    embedding = find_embedding(model)
    weights = [getattr(module, "weight", None) for module in (head, embedding)]
    return weights[0] is not None and weights[0] is weights[1]


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
