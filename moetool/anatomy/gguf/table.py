"""The parameter table of a GGUF model by its headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from moetool.anatomy.components import TOWERS, Component, Place
from moetool.anatomy.gguf.names import GgufName, read_name
from moetool.anatomy.headers.other_tensors import OtherTensors, Reason
from moetool.anatomy.headers.table import HeaderTable
from moetool.anatomy.parameters import ParameterTable, PlaceSums, make_rows
from moetool.checkpoint.gguf.files import GgufModel
from moetool.checkpoint.gguf.header import GgufTensor

# Families whose biases that choose experts are trained; those of all others are adjusted apart.
_TRAINED_BIASES = ("ernie4_5-moe", "afmoe", "laguna")
_TOKEN_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_MISSING_TOP_K = "the file does not state how many experts a token runs"
_CHUNKS = "experts that a token chooses may share smaller ones, whose number differs"


class _Named(NamedTuple):
    tensor: GgufTensor
    name: GgufName


def count_gguf(model: GgufModel) -> HeaderTable:
    """Return a GGUF model's parameters, counted by its headers."""
    named = [_Named(tensor, read_name(tensor.name)) for tensor in model.tensors]
    kept, others = _sort_out(model, named)
    cells = _sum_up(kept)
    num_experts = _count_experts(kept)
    top_k = model.read_count("expert_used_count") if num_experts else None
    active_unknown = _find_doubt(model, kept, num_experts, top_k)
    names = {tensor.name for tensor in model.tensors}
    dtype_bytes: dict[str, int] = {}
    for tensor in model.tensors:
        dtype_bytes[tensor.type.name] = dtype_bytes.get(tensor.type.name, 0) + tensor.num_bytes
    rows = make_rows(
        cells, num_experts=num_experts, top_k=top_k, knows_active=active_unknown is None
    )
    return HeaderTable(
        table=ParameterTable(
            rows=rows, is_tied=_HEAD not in names if _TOKEN_EMBEDDING in names else None
        ),
        other_tensors=others,
        num_layers=len({(p.stack, p.layer) for p in cells if p.layer is not None}),
        num_experts=num_experts,
        expert_params=_count_one_expert(kept, cells, num_experts),
        top_k=top_k,
        dtype_bytes=dict(sorted(dtype_bytes.items(), key=lambda item: -item[1])),
        uncounted={},
        unknown=None,
        active_unknown=active_unknown,
        experts_unknown=None,
        unclear=next((t.tensor.name for t in kept if _is_unclear(t)), None),
    )


def count_mtp_layers(model: GgufModel) -> int:
    """Return how many of a model's last layers predict further tokens."""
    return model.read_count("nextn_predict_layers") or 0


def _sort_out(
    model: GgufModel, named: Sequence[_Named]
) -> tuple[list[_Named], tuple[OtherTensors, ...]]:
    """Return the tensors that hold the model's parameters, and in groups those that do not."""
    block_count, num_mtp = model.read_count("block_count"), count_mtp_layers(model)
    first_mtp = None if block_count is None or not num_mtp else block_count - num_mtp
    # The latent's expansion is there twice in files for old and for absorbed attention.
    absorbed = {each.name.layer for each in named if ".attn_k_b." in each.tensor.name}
    is_trained = model.architecture in _TRAINED_BIASES
    kept: list[_Named] = []
    others: dict[Reason, list[_Named]] = {}
    for each in named:
        name = each.name
        reason = None
        if name.is_mtp or (
            first_mtp is not None and name.layer is not None and name.layer >= first_mtp
        ):
            reason = Reason.MTP
        elif name.is_rope:
            reason = Reason.ROPE
        elif name.is_scale:
            reason = Reason.SCALES
        elif name.is_table or (name.is_selection and not is_trained):
            reason = Reason.BUFFERS
        elif ".attn_kv_b." in each.tensor.name and name.layer in absorbed:
            reason = Reason.ABSORBED
        if reason is None:
            kept.append(each)
        else:
            others.setdefault(reason, []).append(each)
    return kept, tuple(_describe(reason, group) for reason, group in others.items())


def _describe(reason: Reason, group: Sequence[_Named]) -> OtherTensors:
    components: dict[Component, int] = {}
    for tensor, name in group:
        component = name.component or Component.OTHER
        components[component] = components.get(component, 0) + tensor.num_elements
    return OtherTensors(
        reason=reason,
        num_tensors=len(group),
        num_params=sum(components.values()),
        num_bytes=sum(each.tensor.num_bytes for each in group),
        example=group[0].tensor.name,
        components={name: number for name, number in components.items() if number},
    )


def _sum_up(tensors: Sequence[_Named]) -> dict[Place, PlaceSums]:
    cells: dict[Place, PlaceSums] = {}
    for each in tensors:
        tensor, name = each
        component = name.component or Component.OTHER
        is_tower = component in TOWERS
        place = Place(
            component.value if is_tower else name.stack,
            None if is_tower else name.layer,
            component,
        )
        cell = cells.setdefault(place, PlaceSums())
        cell.num_params += tensor.num_elements
        cell.num_unclear += tensor.num_elements if _is_unclear(each) else 0
        cell.num_bytes += tensor.num_bytes
        cell.dtypes[tensor.type.name] = None
    return cells


def _count_experts(tensors: Sequence[_Named]) -> dict[tuple[str, int], int | None]:
    """Return the number of experts in each routed layer, None where its tensors contradict."""
    stacked: dict[tuple[str, int], set[int]] = {}
    numbered: dict[tuple[str, int], set[int]] = {}
    for tensor, name in tensors:
        if name.layer is None or name.component is not Component.ROUTED_EXPERTS:
            continue
        layer = (name.stack, name.layer)
        if name.expert is not None:
            numbered.setdefault(layer, set()).add(name.expert)
        elif name.is_stack:
            stacked.setdefault(layer, set()).add(tensor.shape[0] if len(tensor.shape) > 1 else 0)
    found: dict[tuple[str, int], int | None] = {
        layer: len(each) for layer, each in numbered.items()
    }
    for layer, sizes in stacked.items():
        found[layer] = sizes.pop() or None if len(sizes) == 1 and layer not in numbered else None
    return dict(sorted(found.items()))


def _count_one_expert(
    tensors: Sequence[_Named],
    cells: Mapping[Place, PlaceSums],
    num_experts: Mapping[tuple[str, int], int | None],
) -> dict[tuple[str, int], int | None]:
    """Return the parameters of one routed expert in each layer; None if experts differ."""
    are_alike = not any(each.name.is_chunk for each in tensors)
    found: dict[tuple[str, int], int | None] = {}
    for (stack, layer), experts in num_experts.items():
        total = cells[Place(stack, layer, Component.ROUTED_EXPERTS)].num_params
        is_known = are_alike and experts is not None and total % experts == 0
        found[stack, layer] = total // experts if is_known and experts else None
    return found


def _find_doubt(
    model: GgufModel,
    tensors: Sequence[_Named],
    num_experts: Mapping[tuple[str, int], int | None],
    top_k: int | None,
) -> str | None:
    """Return why active parameters are unknown; None if they are known."""
    stated = model.read_count("expert_count") or 0
    if not num_experts:
        return (
            f"the file states {stated} experts, but has no tensors of experts" if stated else None
        )
    if None in num_experts.values():
        return "tensors of one layer show different numbers of experts"
    if any(each.name.is_chunk for each in tensors):
        return _CHUNKS
    if not top_k:
        return _MISSING_TOP_K
    fewest = min(number for number in num_experts.values() if number is not None)
    if set(num_experts.values()) != {stated}:
        return f"the file states {stated} experts, and its tensors hold another number"
    return f"the file states top-{top_k} of {fewest} experts" if top_k > fewest else None


def _is_unclear(named: _Named) -> bool:
    return named.name.component is None and len(named.tensor.shape) > 1
