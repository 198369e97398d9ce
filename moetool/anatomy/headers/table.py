"""From the tensor headers of a checkpoint's files to a parameter table, without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from moetool.anatomy.components import TOWERS, Component, Place
from moetool.anatomy.config_fields import is_tied, read_text_config
from moetool.anatomy.headers.header_signs import find_header_signs
from moetool.anatomy.headers.other_tensors import LeftOut, sort_out
from moetool.anatomy.headers.placed_tensors import (
    Layer,
    NameForm,
    PlacedTensor,
    find_expert,
    find_place,
    find_routed_layers,
    place_tensors,
)
from moetool.anatomy.headers.stated_top_k import find_stated_top_k
from moetool.anatomy.headers.stored_tensors import read_stored
from moetool.anatomy.headers.tensorrt_llm import is_tensorrt_llm, name_experts, read_routing_fields
from moetool.anatomy.parameters import ActiveRange, ParameterRow, ParameterTable
from moetool.checkpoint.headers.tensor_headers import TensorHeaders

# safetensors' names of dtypes that torch names otherwise.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0",
    "I8": "int8",
    "U8": "uint8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
}


@dataclass(frozen=True)
class HeaderTable:
    """What a checkpoint's headers tell.

    Attributes:
        table: Their parameter table, in the dtypes and bytes of the files.
        left_out: What else the files hold.
        num_layers: Layers that the names show.
        num_experts: Routed experts of every layer that has any, as far as names and shapes show.
        top_k: What config.json states, if it states it beyond doubt.
        dtype_bytes: Bytes of all tensors in the files by dtype.
        uncounted: Packed tensors that could not be counted, by place. The table counts them as 0.
        unknown: Why some packed tensors could not be counted; None if all were. The totals of the
            table are then too small.
        active_unknown: Why active parameters are unknown; None if they are known.
        experts_unknown: Why layers whose names show no experts may have some; None if they have none.
        unclear: A matrix whose name says nothing; None if all are understood. A token may run all
            of it or nothing.
    """

    table: ParameterTable
    left_out: tuple[LeftOut, ...]
    num_layers: int
    num_experts: Mapping[tuple[str, int], int | None]
    top_k: int | None
    dtype_bytes: Mapping[str, int]
    uncounted: Mapping[Place, int]
    unknown: str | None
    active_unknown: str | None
    experts_unknown: str | None
    unclear: str | None


@dataclass
class _Cell:
    """What is summed up for one row.

    Attributes:
        num_params: All of it.
        num_common: What the experts of a layer share.
        num_unclear: Matrices whose names say nothing.
        num_bytes: In the files.
        dtypes: Of the tensors.
    """

    num_params: int = 0
    num_common: int = 0
    num_unclear: int = 0
    num_bytes: int = 0
    dtypes: dict[str, None] = field(default_factory=dict)


def count_headers(headers: TensorHeaders, config: Mapping[str, object]) -> HeaderTable:
    """Return what the headers of a checkpoint's files tell of its parameters.

    Args:
        headers: Of all its weight files.
        config: Its config.json. Only what decides the meaning of tensors is read from it: layers
            beyond the model's own predict further tokens, a head stored beside the embedding it is
            tied to is no second one, packed weights have so many bits.
    """
    text_config = read_text_config(config)
    are_tied = is_tied(config)
    aliases: Mapping[str, str] = {}
    if is_tensorrt_llm(config):
        text_config = read_routing_fields(config)
        aliases = name_experts(tensor.name for tensor in headers.tensors)
    kept, left_out = sort_out(
        place_tensors(read_stored(headers.tensors, config), aliases=aliases),
        text_config=text_config,
        is_tied=are_tied,
    )
    routed = find_routed_layers(kept)
    cells = _sum_up(kept, routed)
    num_experts = _count_experts(kept, routed)
    components = {place.component for place in cells}
    has_head = Component.LM_HEAD in components
    experts_unknown = find_header_signs(kept, routed=routed, config=config)
    top_k, active_unknown = find_stated_top_k(config, text_config, num_experts)
    active_unknown = experts_unknown or active_unknown
    table = ParameterTable(
        rows=tuple(
            ParameterRow(
                stack=place.stack,
                layer=place.layer,
                component=place.component,
                num_params=cell.num_params,
                active=None if active_unknown else _count_active(place, cell, num_experts, top_k),
                dtype=" + ".join(map(_name_dtype, cell.dtypes)),
                num_bytes=cell.num_bytes,
            )
            for place, cell in cells.items()
        ),
        is_tied=are_tied if are_tied is not None else (False if has_head else None),
    )
    unread = [tensor for tensor in kept if tensor.stored.num_params is None]
    return HeaderTable(
        table=table,
        left_out=left_out,
        num_layers=len({(p.stack, p.layer) for p in cells if p.layer is not None}),
        num_experts=num_experts,
        top_k=top_k,
        dtype_bytes=_sum_dtypes(headers),
        uncounted=Counter(find_place(form, layer, routed) for _, form, layer in unread),
        unknown=_explain_unknown(unread) if unread else None,
        active_unknown=active_unknown,
        experts_unknown=experts_unknown,
        unclear=next((t.stored.header.name for t in kept if _is_unclear(t)), None),
    )


def _sum_up(tensors: Iterable[PlacedTensor], routed: set[Layer]) -> dict[Place, _Cell]:
    cells: dict[Place, _Cell] = {}
    # Looked up for every tensor, where places would have to be made and hashed.
    cell_of: dict[tuple[NameForm, Layer], _Cell] = {}
    for tensor in tensors:
        stored, form, layer = tensor
        cell = cell_of.get((form, layer))
        if cell is None:
            cell = cells.setdefault(find_place(form, layer, routed), _Cell())
            cell_of[form, layer] = cell
        header = stored.header
        num_params = stored.num_params or 0
        cell.num_params += num_params
        if not form.is_of_one_expert and len(header.shape) < 2:
            cell.num_common += num_params
        if _is_unclear(tensor):
            cell.num_unclear += num_params
        cell.num_bytes += header.num_bytes
        cell.dtypes[header.dtype] = None
    return cells


def _count_experts(
    tensors: Iterable[PlacedTensor], routed: set[Layer]
) -> dict[tuple[str, int], int | None]:
    """Return the experts of every routed layer: numbered tensors, or the stack they lie in."""
    numbered: dict[Layer, set[str | None]] = {}
    stacked: dict[Layer, set[int]] = {}
    for tensor in tensors:
        if not tensor.form.holds_experts:
            continue
        shape = tensor.stored.header.shape
        if tensor.form.is_of_one_expert:
            numbered.setdefault(tensor.layer, set()).add(find_expert(tensor))
        elif len(shape) >= 3:
            stacked.setdefault(tensor.layer, set()).add(shape[0])
    return {
        (stack, layer): len(numbered[stack, layer])
        if (stack, layer) in numbered
        else min(stacked.get((stack, layer), {0})) or None
        for stack, layer in sorted((s, n) for s, n in routed if n is not None)
    }


def _count_active(
    place: Place,
    cell: _Cell,
    num_experts: Mapping[tuple[str, int], int | None],
    top_k: int | None,
) -> ActiveRange:
    if place.component in TOWERS:
        return ActiveRange(0, 0)
    num_active = cell.num_params
    if place.component is Component.ROUTED_EXPERTS and place.layer is not None:
        experts = num_experts[place.stack, place.layer]
        assert experts is not None
        assert top_k is not None
        num_active = (cell.num_params - cell.num_common) // experts * top_k + cell.num_common
    return ActiveRange(num_active - cell.num_unclear, num_active)


def _is_unclear(tensor: PlacedTensor) -> bool:
    return not tensor.form.is_understood and len(tensor.stored.header.shape) > 1


def _explain_unknown(tensors: Sequence[PlacedTensor]) -> str:
    first = tensors[0].stored.header
    return (
        f"{len(tensors)} tensors hold weights packed in a way that nothing in the files or in "
        f"config.json tells, such as {first.name} ({first.dtype})"
    )


def _sum_dtypes(headers: TensorHeaders) -> dict[str, int]:
    sums: dict[str, int] = {}
    for tensor in headers.tensors:
        sums[tensor.dtype] = sums.get(tensor.dtype, 0) + tensor.num_bytes
    return {_name_dtype(dtype): sums[dtype] for dtype in sorted(sums, key=lambda name: -sums[name])}


def _name_dtype(dtype: str) -> str:
    return _DTYPES.get(dtype, dtype.lower())
