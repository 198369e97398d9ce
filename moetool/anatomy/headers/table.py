"""The parameter table of a checkpoint by the headers of its files, without torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from moetool.anatomy.components import Component, Place
from moetool.anatomy.config_fields import is_tied, read_text_config
from moetool.anatomy.headers.header_signs import find_header_signs
from moetool.anatomy.headers.other_tensors import OtherTensors, sort_out
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
from moetool.anatomy.parameters import ParameterTable, PlaceSums, make_rows
from moetool.checkpoint.headers.tensor_headers import TensorHeaders

# torch's names for the dtypes of safetensors.
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
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class HeaderTable:
    """A checkpoint, counted by its headers.

    Attributes:
        table: The parameter table, in the dtypes and bytes of the files.
        other_tensors: Everything else in the files.
        num_layers: Layers in the names of tensors.
        num_experts: Routed experts by routed layer; None if neither names nor shapes show them.
        expert_params: Parameters of one routed expert by routed layer, without those that all experts
            of a layer share; None if experts differ, or if their number is unknown.
        top_k: The top-k that config.json states, if it leaves no doubt.
        dtype_bytes: Bytes of all tensors in the files by dtype.
        uncounted: Packed tensors that could not be counted, by place. The table counts them as 0.
        unknown: The reason why some packed tensors could not be counted, so that the table's totals
            are too small; None if all were counted.
        active_unknown: The reason why active parameters are unknown; None if they are known.
        experts_unknown: The reason why layers whose names show no experts may have some; None if
            they have none.
        unclear: A matrix whose name no rule matches, of which a token may run all or nothing; None
            if there is none.
    """

    table: ParameterTable
    other_tensors: tuple[OtherTensors, ...]
    num_layers: int
    num_experts: Mapping[tuple[str, int], int | None]
    expert_params: Mapping[tuple[str, int], int | None]
    top_k: int | None
    dtype_bytes: Mapping[str, int]
    uncounted: Mapping[Place, int]
    unknown: str | None
    active_unknown: str | None
    experts_unknown: str | None
    unclear: str | None


def count_headers(
    headers: TensorHeaders,
    config: Mapping[str, object],
    *,
    stated_by: str | None = "config.json",
) -> HeaderTable:
    """Return a checkpoint's parameters, counted by the headers of its files.

    Args:
        headers: Of all weight files.
        config: Its config.json, from which only facts on the meaning of tensors are read: the number
            of layers, beyond which layers predict further tokens; whether the head is tied to the
            embedding; the packing of weights.
        stated_by: The name of the file that the configuration is from; None if there is none.
    """
    text_config = read_text_config(config)
    are_tied = is_tied(config)
    aliases: Mapping[str, str] = {}
    if is_tensorrt_llm(config):
        text_config = read_routing_fields(config)
        aliases = name_experts(tensor.name for tensor in headers.tensors)
    kept, others = sort_out(
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
    top_k, active_unknown = find_stated_top_k(config, text_config, num_experts, stated_by=stated_by)
    active_unknown = experts_unknown or active_unknown
    table = ParameterTable(
        rows=make_rows(
            cells, num_experts=num_experts, top_k=top_k, knows_active=active_unknown is None
        ),
        is_tied=are_tied if are_tied is not None else (False if has_head else None),
    )
    unread = [tensor for tensor in kept if tensor.stored.num_params is None]
    return HeaderTable(
        table=table,
        other_tensors=others,
        num_layers=len({(p.stack, p.layer) for p in cells if p.layer is not None}),
        num_experts=num_experts,
        expert_params=_count_one_expert(cells, num_experts),
        top_k=top_k,
        dtype_bytes=_sum_dtypes(headers),
        uncounted=Counter(find_place(form, layer, routed) for _, form, layer in unread),
        unknown=_explain_unknown(unread) if unread else None,
        active_unknown=active_unknown,
        experts_unknown=experts_unknown,
        unclear=next((t.stored.header.name for t in kept if _is_unclear(t)), None),
    )


def _sum_up(tensors: Iterable[PlacedTensor], routed: set[Layer]) -> dict[Place, PlaceSums]:
    cells: dict[Place, PlaceSums] = {}
    # A cache, because making and hashing a place for every tensor is slow.
    cell_of: dict[tuple[NameForm, Layer], PlaceSums] = {}
    for tensor in tensors:
        stored, form, layer = tensor
        cell = cell_of.get((form, layer))
        if cell is None:
            cell = cells.setdefault(find_place(form, layer, routed), PlaceSums())
            cell_of[form, layer] = cell
        header = stored.header
        num_params = stored.num_params or 0
        cell.num_params += num_params
        if not form.is_of_one_expert and len(header.shape) < 2:
            cell.num_common += num_params
        if _is_unclear(tensor):
            cell.num_unclear += num_params
        cell.num_bytes += header.num_bytes
        cell.dtypes[_name_dtype(header.dtype)] = None
    return cells


def _count_experts(
    tensors: Iterable[PlacedTensor], routed: set[Layer]
) -> dict[tuple[str, int], int | None]:
    """Return the number of experts in each routed layer, by numbered tensors or by stacks."""
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


def _count_one_expert(
    cells: Mapping[Place, PlaceSums], num_experts: Mapping[tuple[str, int], int | None]
) -> dict[tuple[str, int], int | None]:
    """Return the parameters of one expert in each routed layer; None where they are unknown."""
    counts: dict[tuple[str, int], int | None] = dict.fromkeys(num_experts)
    for place, cell in cells.items():
        if place.component is not Component.ROUTED_EXPERTS or place.layer is None:
            continue
        experts = num_experts.get((place.stack, place.layer))
        if experts:
            number, rest = divmod(cell.num_params - cell.num_common, experts)
            counts[place.stack, place.layer] = None if rest else number
    return counts


def _is_unclear(tensor: PlacedTensor) -> bool:
    return not tensor.form.is_understood and len(tensor.stored.header.shape) > 1


def _explain_unknown(tensors: Sequence[PlacedTensor]) -> str:
    first = tensors[0].stored.header
    return (
        f"neither the files nor config.json show how {len(tensors)} tensors are packed, such as "
        f"{first.name} ({first.dtype})"
    )


def _sum_dtypes(headers: TensorHeaders) -> dict[str, int]:
    sums: dict[str, int] = {}
    for tensor in headers.tensors:
        sums[tensor.dtype] = sums.get(tensor.dtype, 0) + tensor.num_bytes
    return {_name_dtype(dtype): sums[dtype] for dtype in sorted(sums, key=lambda name: -sums[name])}


def _name_dtype(dtype: str) -> str:
    return _DTYPES.get(dtype, dtype.lower())
