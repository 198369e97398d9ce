"""From a model on the meta device to its parameter table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from moetool.anatomy.components import TOWERS, Component, Place
from moetool.anatomy.parameters import ActiveRange, ParameterRow, ParameterTable
from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.skeleton.active_experts import (
    count_active_experts,
    is_run_by_text,
    list_expert_parameters,
)
from moetool.anatomy.skeleton.build import find_embedding
from moetool.anatomy.skeleton.dtype_plan import read_dtype_plan
from moetool.anatomy.skeleton.placement import Placement


@dataclass
class _Cell:
    """What is summed up for one row."""

    num_params: int = 0
    active: ActiveRange | None = field(default_factory=lambda: ActiveRange(0, 0))
    num_bytes: int = 0
    dtypes: dict[str, None] = field(default_factory=dict)


def count_skeleton(
    model: PreTrainedModel,
    moe_layers: Sequence[MoeLayer],
    *,
    top_k: Mapping[MoeLayer, int | None],
    dtype: torch.dtype | None,
    other_experts: Iterable[str] = (),
    doubtful: Iterable[str] = (),
) -> ParameterTable:
    """Return the parameter table of a model.

    Every parameter is counted once, however many modules share it; buffers are none. Active is what
    one text token runs, in an encoder-decoder one token of each stack.

    Args:
        model: The model, usually a skeleton.
        moe_layers: Its routed layers.
        top_k: How many experts each of them chooses for a token; None where that is unknown.
        dtype: What the model was built in and transformers converts the weights to when it loads
            them; None if that is unknown.
        other_experts: Module paths of experts whose routing can't be read.
        doubtful: Module paths of what may be experts.
    """
    placement = Placement(model, moe_layers, other_experts)
    unread = [layer.block_path for layer in moe_layers if not is_run_by_text(layer)]
    plan = read_dtype_plan(model, dtype)
    cells: dict[Place, _Cell] = {}
    place_of: dict[int, Place] = {}
    for path, parameter in model.named_parameters():
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
    _add_active_experts(model, moe_layers, top_k=top_k, cells=cells, place_of=place_of)
    _forget_active(model, {*other_experts, *doubtful}, cells=cells, place_of=place_of)
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
    model: PreTrainedModel,
    moe_layers: Sequence[MoeLayer],
    *,
    top_k: Mapping[MoeLayer, int | None],
    cells: dict[Place, _Cell],
    place_of: Mapping[int, Place],
) -> None:
    """Add to the rows of experts what a token runs of them.

    Layers that share their experts (DiffusionGemma's two stacks) may choose the same ones or
    others, so that a token of each runs between the most that one of them does and all together.
    """
    ranges: dict[tuple[int, ...], list[ActiveRange | None]] = {}
    for layer in moe_layers:
        parameters = list_expert_parameters(model, layer).values()
        number = top_k[layer]
        active = None if number is None else count_active_experts(model, layer, top_k=number)
        ranges.setdefault(tuple(map(id, parameters)), []).append(active)
    sizes = {id(parameter): parameter.numel() for parameter in model.parameters()}
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
    """Make what a token runs of some modules unknown; of all, where one has no parameters itself."""
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
