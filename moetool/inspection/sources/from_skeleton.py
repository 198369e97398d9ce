"""The inspection of a model by its skeleton, compared with the files if there are any."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from moetool.anatomy.headers.published_format import find_quantization
from moetool.anatomy.headers.table import HeaderTable
from moetool.anatomy.parameters import ParameterTable
from moetool.anatomy.skeleton.active_experts import (
    count_one_expert,
)
from moetool.anatomy.skeleton.build import (
    build_model,
    build_whole_skeleton,
    find_dtype,
    find_whole_class,
    refuse_unbuildable,
)
from moetool.anatomy.skeleton.description import describe_model
from moetool.anatomy.skeleton.model_class import note_class
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from moetool.anatomy.skeleton.table import add_extra, count_skeleton
from moetool.catalogue.published import ExtraParameters
from moetool.checkpoint.config import first_line, make_config
from moetool.checkpoint.subject import Subject
from moetool.errors import InputError
from moetool.inspection.differences import explain_differences
from moetool.inspection.figures import Files, Flops
from moetool.inspection.notes import (
    note_config,
    note_flops,
    note_routing,
    note_sources,
    note_towers,
)
from moetool.inspection.published import compare_published, note_contradictions
from moetool.inspection.result import Inspection, Source
from moetool.inspection.rows import pair_rows
from moetool.inspection.summary import describe_files, merge_layers, summarize
from moetool.process.garbage import seldom_collected
from moetool.process.quiet import quiet_transformers
from moetool.process.turns import in_turn
from moetool.simulation.flops.flops import DEFAULT_OPERATION_BUDGET, OperationBudget, count_flops
from moetool.simulation.meta.generation import CantSimulate
from moetool.trace.model_counts import ModelCounts

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Who traces a model doesn't wait for minutes to learn its FLOPs.
_FINAL_BUDGET = replace(DEFAULT_OPERATION_BUDGET, is_final=True)


@in_turn()
@quiet_transformers()
@seldom_collected()
def inspect_skeleton(
    subject: Subject, files: HeaderTable | None, *, trust_remote_code: bool
) -> Inspection:
    """Return the inspection of a model by the skeleton that its configuration builds.

    Args:
        subject: The model.
        files: The headers' table; None without files.
        trust_remote_code: Run Python code from the model's repository if it needs it.

    Raises:
        InputError: The configuration describes no model that can be built.
        UntraceableError: This transformers has no class for it.
    """
    config = make_config(
        subject.config,
        name=subject.model,
        label=subject.label,
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
    """Return the inspection of a model that is built.

    Args:
        subject: The model.
        model: Its skeleton, on the meta device and in evaluation mode.
        files: The headers' table; None without files.
        dtype: The dtype that transformers converts the weights to; None if unknown.

    Raises:
        InputError: A layer chooses more experts than it has.
    """
    config = model.config
    skeleton = RoutedSkeleton.of(model)
    _refuse_impossible(skeleton, label=subject.label)
    table = count_skeleton(skeleton, dtype=dtype)
    anatomy = describe_model(skeleton, table)
    published = subject.published
    if published is not None and subject.is_from_catalogue:
        table = add_extra(table, published.extra_parameters)
        if published.routes_otherwise:
            own = tuple(replace(layer, style=None) for layer in anatomy.routed_layers)
            anatomy = replace(anatomy, routed_layers=own)
    parameters = summarize(table)
    experts = skeleton.experts
    if not experts.are_all_read:
        parameters = replace(parameters, expert_share=None)
    flops, why_no_flops = _count_flops(skeleton)
    quantization = find_quantization(subject)
    routed = anatomy.routed_layers
    num_experts = merge_layers([layer.num_experts for layer in routed], experts)
    return Inspection(
        model=subject.model,
        model_type=config.model_type,
        source=Source.SKELETON if files is None else Source.BOTH,
        revision=subject.revision,
        num_layers=anatomy.num_layers,
        num_moe_layers=len({(layer.stack.partition(".")[0], layer.layer) for layer in routed})
        if experts.are_all_read
        else None,
        num_experts=num_experts,
        top_k=merge_layers([layer.top_k for layer in routed], experts),
        num_shared_experts=anatomy.num_shared_experts,
        expert_params=merge_layers(
            [
                count_one_expert(skeleton.expert_parameters[layer].values(), layer)
                for layer in skeleton.text_layers
            ],
            experts,
        )
        or None,
        anatomy=anatomy,
        quantization=quantization,
        expert_sources=subject.expert_sources,
        dtype=str(dtype).removeprefix("torch.") if dtype is not None else None,
        parameters=parameters,
        rows=tuple(pair_rows(table, files)),
        flops=flops,
        files=_describe_files(subject, table, files),
        published=None
        if published is None
        else compare_published(published, total=parameters.total, active=parameters.active),
        notes=(
            *_note_stand_in(subject),
            *subject.notes,
            *note_class(subject.config, config),
            *note_contradictions(subject, total=parameters.total),
            *note_routing(experts, anatomy, table),
            *note_sources(subject.expert_sources, num_experts),
            *note_towers(table),
            *note_flops(anatomy, flops),
            *note_config(
                subject.config,
                quantization=quantization,
                has_dtype=dtype is not None,
                has_headers=files is not None,
            ),
            *([f"Not counted in the files: {files.unknown}."] if files and files.unknown else []),
            *([f"FLOPs unknown: {why_no_flops}."] if why_no_flops else []),
        ),
    )


@quiet_transformers()
def count_model(
    build: Callable[[], PreTrainedModel], *, extra: Sequence[ExtraParameters] = ()
) -> tuple[ModelCounts, tuple[str, ...]]:
    """Return the sums of an inspection alone, and notes on those that are unknown.

    It takes 0.1 to 1.5 s, and never fails: whatever an unusual model raises becomes a note.

    Args:
        build: Returns the model on the meta device.
        extra: Parameters that are missing from its class.
    """
    try:
        model = build()
        model.eval()  # type: ignore[no-untyped-call]
        skeleton = RoutedSkeleton.of(model)
        _refuse_impossible(skeleton, label=type(model).__name__)
        parameters = summarize(add_extra(count_skeleton(skeleton, dtype=None), extra))
    except Exception as error:  # noqa: BLE001 - a model's own code may raise anything
        return ModelCounts(), (f"Parameters and FLOPs unknown: {first_line(error)}.",)
    notes = []
    if parameters.active_params is None:
        span = parameters.active_params_min, parameters.active_params_max
        notes.append(
            "Active parameters unknown: no rule reads some parts that may be experts."
            if None in span
            else f"Active parameters differ between tokens: {span[0]:,} to {span[1]:,}."
        )
    try:
        flops, why_no_flops = _count_flops(skeleton, _FINAL_BUDGET)
    except Exception as error:  # noqa: BLE001 - as above
        flops, why_no_flops = None, first_line(error)
    if flops is None:
        notes.append(f"FLOPs unknown: {why_no_flops}.")
    return ModelCounts(
        total_parameters=parameters.total,
        active_parameters=parameters.active_params,
        flops_per_token=flops.prefill if flops else None,
        flops_prompt_tokens=flops.num_prompt_tokens if flops else None,
        dense_flops_per_token=flops.dense_prefill if flops else None,
    ), tuple(notes)


def count_checkpoint(
    config: PreTrainedConfig, skeleton: PreTrainedModel
) -> tuple[ModelCounts, tuple[str, ...]]:
    """Return the counts of a whole checkpoint, and notes on unknown ones, as `count_model` does.

    Args:
        config: The checkpoint's configuration.
        skeleton: The language model that is built from it, which may lack towers.
    """

    def build() -> PreTrainedModel:
        whole = find_whole_class(config)
        if whole is None or whole is type(skeleton):
            return skeleton
        return build_model(whole, copy.deepcopy(config), dtype=None, device="meta")

    return count_model(build)


def _describe_files(
    subject: Subject, table: ParameterTable, files: HeaderTable | None
) -> Files | None:
    if subject.headers is None or files is None:
        return None
    return describe_files(subject.headers, files, differences=explain_differences(table, files))


def _refuse_impossible(skeleton: RoutedSkeleton, *, label: str) -> None:
    """Refuse layers that choose more experts than they have.

    Raises:
        InputError: There is one. The message names the first.
    """
    for layer, number in skeleton.top_k.items():
        num_ids = layer.num_experts + layer.num_identity_experts
        if number is not None and number > num_ids:
            raise InputError(
                f"'{label}' describes no model: {layer.block_path} chooses {number:,} of {num_ids:,} "
                "experts.",
                hint="Use the config.json that came with the checkpoint.",
            )


def _note_stand_in(subject: Subject) -> list[str]:
    counted_as = subject.published.counted_as if subject.published else None
    return [f"Counted as {counted_as}"] if counted_as and subject.is_from_catalogue else []


def _count_flops(
    skeleton: RoutedSkeleton, budget: OperationBudget = DEFAULT_OPERATION_BUDGET
) -> tuple[Flops | None, str | None]:
    """Return the FLOPs per token, or the reason why they are unknown."""
    try:
        flops = count_flops(skeleton.model, found=skeleton.experts, budget=budget)
    except CantSimulate as error:
        return None, error.reason
    routed = {
        id(parameter): parameter.numel()
        for layer in skeleton.text_layers
        for parameter in skeleton.expert_parameters[layer].values()
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
