"""What the model that transformers builds tells of itself, compared with the files if there are any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from moetool.anatomy.components import Component
from moetool.anatomy.headers.published_format import find_quantization
from moetool.anatomy.headers.table import HeaderTable
from moetool.anatomy.parameters import ActiveRange, ParameterRow, ParameterTable
from moetool.anatomy.routing.moe_layers import FoundExperts, MoeLayer, find_experts
from moetool.anatomy.routing.top_k import find_top_k
from moetool.anatomy.skeleton.active_experts import is_run_by_text, list_expert_parameters
from moetool.anatomy.skeleton.build import (
    build_whole_skeleton,
    find_dtype,
    find_embedding,
    refuse_unbuildable,
)
from moetool.anatomy.skeleton.description import describe_model
from moetool.anatomy.skeleton.model_class import note_class
from moetool.anatomy.skeleton.table import count_skeleton
from moetool.catalogue.published import ExtraParameters
from moetool.checkpoint.config import make_config
from moetool.checkpoint.subject import Subject
from moetool.errors import InputError
from moetool.inspection.differences import explain_differences, pair_rows
from moetool.inspection.from_headers import describe_files, merge, summarize
from moetool.inspection.notes import note_config, note_flops, note_routing, note_towers
from moetool.inspection.published import compare_published, note_contradictions
from moetool.inspection.result import Flops, Inspection, Source
from moetool.simulation.flops.flops import count_flops
from moetool.simulation.meta.generation import CantSimulate

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def inspect_skeleton(
    subject: Subject, files: HeaderTable | None, *, trust_remote_code: bool
) -> Inspection:
    """Return a model as the skeleton that transformers builds of it tells it.

    Args:
        subject: The model.
        files: What the headers of its files tell; None without files.
        trust_remote_code: Run Python code from the model's repository if it needs it.

    Raises:
        InputError: The configuration describes no model that can be built.
        UntraceableError: This transformers has no class for it.
    """
    config = make_config(
        subject.config,
        name=subject.model,
        place=subject.place,
        code=subject.code,
        revision=subject.revision,
        trust_remote_code=trust_remote_code,
        by_architecture=True,
    )
    dtype = find_dtype(config, headers=subject.headers)
    with refuse_unbuildable(subject.model, config, trust_remote_code=trust_remote_code):
        model = build_whole_skeleton(config, dtype=dtype, trust_remote_code=trust_remote_code)
    return inspect_built(subject, model, files=files, dtype=dtype)


def inspect_built(
    subject: Subject,
    model: PreTrainedModel,
    *,
    files: HeaderTable | None,
    dtype: torch.dtype | None,
) -> Inspection:
    """Return a model as its modules tell it.

    Args:
        subject: The model.
        model: It, on the meta device and in evaluation mode.
        files: What the headers of its files tell; None without files.
        dtype: What transformers converts the weights to; None if unknown.

    Raises:
        InputError: A layer chooses more experts than it has.
    """
    config = model.config
    experts = find_experts(model)
    hidden_size = _find_hidden_size(config, model)
    top_k = {layer: find_top_k(model, layer, hidden_size=hidden_size) for layer in experts.layers}
    _refuse_impossible(top_k, place=subject.place)
    table = count_skeleton(
        model,
        experts.layers,
        top_k=top_k,
        dtype=dtype,
        other_experts=experts.unreadable,
        doubtful=[sign.path for sign in experts.signs],
    )
    anatomy = describe_model(model, experts.layers, table, top_k=top_k, hidden_size=hidden_size)
    published = subject.published
    if published is not None and subject.is_from_catalogue:
        table = _add_extra(table, published.extra_parameters)
    parameters = summarize(table)
    if not experts.are_all_read:
        parameters = replace(parameters, expert_share=None)
    flops, why_no_flops = _count_flops(model, experts)
    quantization = find_quantization(subject)
    routed = anatomy.routed_layers
    return Inspection(
        model=subject.model,
        model_type=config.model_type,
        source=Source.SKELETON if files is None else Source.BOTH,
        revision=subject.revision,
        num_layers=anatomy.num_layers,
        num_moe_layers=len({(layer.stack.partition(".")[0], layer.layer) for layer in routed})
        if experts.are_all_read
        else None,
        num_experts=_merge([layer.num_experts for layer in routed], experts),
        top_k=_merge([layer.top_k for layer in routed], experts),
        num_shared_experts=anatomy.num_shared_experts,
        anatomy=anatomy,
        quantization=quantization,
        dtype=str(dtype).removeprefix("torch.") if dtype is not None else None,
        parameters=parameters,
        rows=tuple(pair_rows(table, files)),
        flops=flops,
        files=None
        if files is None
        else describe_files(subject, files, differences=explain_differences(table, files)),
        published=None
        if published is None
        else compare_published(published, total=parameters.total, active=parameters.active),
        reported=None,
        notes=(
            *_note_stand_in(subject),
            *subject.notes,
            *note_class(subject.config, config),
            *note_contradictions(subject, total=parameters.total),
            *note_routing(experts, anatomy, table),
            *note_towers(table),
            *note_flops(anatomy, flops),
            *note_config(
                subject.config,
                quantization=quantization,
                has_dtype=dtype is not None,
                has_headers=files is not None,
            ),
            *([f"Files: {files.unknown}, counted as none."] if files and files.unknown else []),
            *([f"FLOPs are unknown: {why_no_flops}."] if why_no_flops else []),
        ),
    )


def _refuse_impossible(top_k: Mapping[MoeLayer, int | None], *, place: str) -> None:
    """Refuse layers that choose more experts than they have.

    Raises:
        InputError: Naming the first.
    """
    for layer, number in top_k.items():
        num_ids = layer.num_experts + layer.num_identity_experts
        if number is not None and number > num_ids:
            raise InputError(
                f"'{place}' describes no model: {layer.block_path} chooses {number:,} of {num_ids:,} "
                "experts.",
                hint="Use the config.json that came with the checkpoint.",
            )


def _merge(
    numbers: list[int | None] | list[int], experts: FoundExperts
) -> int | tuple[int | None, ...] | None:
    """Return what layers share; 0 in a dense model, unknown for experts that no rule reads."""
    if experts.is_dense:
        return 0
    # No routed layer at all: experts that only images pass, or none that is read.
    if not numbers:
        return 0 if experts.are_all_read else None
    return merge(numbers if experts.are_all_read else [*numbers, None])


def _note_stand_in(subject: Subject) -> list[str]:
    counted_as = subject.published.counted_as if subject.published else None
    return [f"Counted as {counted_as}"] if counted_as and subject.is_from_catalogue else []


def _add_extra(table: ParameterTable, extra: Sequence[ExtraParameters]) -> ParameterTable:
    """Return the table with what a model has in every layer and the class it is counted by lacks."""
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


def _count_flops(model: PreTrainedModel, experts: FoundExperts) -> tuple[Flops | None, str | None]:
    """Return the FLOPs per token, or why they are unknown."""
    try:
        flops = count_flops(model, found=experts)
    except CantSimulate as error:
        return None, error.reason
    routed = {
        id(parameter): parameter.numel()
        for layer in experts.layers
        if is_run_by_text(layer)
        for parameter in list_expert_parameters(model, layer).values()
    }
    dense = flops.of_dense_model(num_routed_parameters=sum(routed.values()))
    dense_prefill = dense.prefill if dense else None
    dense_decode = dense.decode if dense else None
    return Flops(
        num_prompt_tokens=flops.num_prompt_tokens,
        prefill=flops.prefill,
        decode=flops.decode,
        dense_prefill=dense_prefill,
        dense_decode=dense_decode,
        prefill_ratio=flops.prefill / dense_prefill if dense_prefill else None,
        decode_ratio=flops.decode / dense_decode if flops.decode and dense_decode else None,
    ), None


def _find_hidden_size(config: PreTrainedConfig, model: PreTrainedModel) -> int:
    """Return the width of the hidden states: the configuration's, or that of the embedding."""
    for name in ("hidden_size", "d_model", "n_embd"):
        size = getattr(config.get_text_config(), name, None)
        if isinstance(size, int):
            return size
    weight = getattr(find_embedding(model), "weight", None)
    return int(weight.shape[-1]) if isinstance(weight, torch.Tensor) else 0
