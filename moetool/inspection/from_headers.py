"""What the headers of a checkpoint's files tell of a model, without torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from moetool.anatomy.components import Component, Place
from moetool.anatomy.config_fields import find_num_shared_experts
from moetool.anatomy.headers.published_format import find_quantization
from moetool.anatomy.headers.table import HeaderTable
from moetool.anatomy.parameters import ActiveDefinition, ParameterTable
from moetool.checkpoint.subject import Subject
from moetool.inspection.differences import pair_rows
from moetool.inspection.notes import note_towers
from moetool.inspection.published import compare_published
from moetool.inspection.result import (
    Difference,
    Files,
    Inspection,
    Parameters,
    Source,
)


def inspect_headers(
    subject: Subject, table: HeaderTable, *, instead_because: str | None = None
) -> Inspection:
    """Return a model as the headers of its files tell it.

    Args:
        subject: The model.
        table: What its headers tell.
        instead_because: Why there is no skeleton, where one was asked for.
    """
    model_type = subject.config.get("model_type")
    layers = {row.layer for row in table.table.rows if row.layer is not None}
    parameters = summarize(table.table, uncounted=table.uncounted)
    are_known = table.experts_unknown is None and (table.unclear is None or bool(table.num_experts))
    if not are_known:
        parameters = replace(parameters, expert_share=None)
    num_experts = list(table.num_experts.values())
    return Inspection(
        model=subject.model,
        model_type=model_type if isinstance(model_type, str) else None,
        source=Source.HEADERS,
        revision=subject.revision,
        num_layers=table.num_layers if layers else None,
        num_moe_layers=len(num_experts) if are_known else None,
        num_experts=_merge_known(num_experts, are_known=are_known),
        top_k=table.top_k if num_experts else (0 if are_known else None),
        num_shared_experts=_count_shared(subject.config, table.table),
        anatomy=None,
        quantization=find_quantization(subject),
        dtype=None,
        parameters=parameters,
        rows=tuple(replace(row, dtype=None, bytes=None) for row in pair_rows(table.table, table)),
        flops=None,
        files=describe_files(subject, table, differences=None),
        published=None
        if subject.published is None
        else compare_published(subject.published, total=parameters.total, active=parameters.active),
        reported=None,
        notes=(
            *([instead_because] if instead_because else []),
            *subject.notes,
            *_note_unknown(table),
            *note_towers(table.table),
            *(
                f"Not counted: {group.num_tensors:,} tensors of {group.reason} "
                f"({group.num_params:,} elements, such as {group.example})."
                for group in table.left_out
            ),
        ),
    )


def _merge_known(
    num_experts: list[int | None], *, are_known: bool
) -> int | tuple[int | None, ...] | None:
    """Return the experts of the layers that have some; unknown if others may have some too."""
    if are_known:
        return merge(num_experts) if num_experts else 0
    return merge([*num_experts, None])


def merge(numbers: Collection[int | None]) -> int | tuple[int | None, ...] | None:
    """Return the one number that layers share, or that of each if they differ; None if unknown."""
    different = set(numbers)
    if len(different) == 1:
        return different.pop()
    return tuple(numbers)


def summarize(table: ParameterTable, *, uncounted: Collection[Place] = ()) -> Parameters:
    """Return the sums of a parameter table.

    Args:
        table: The table.
        uncounted: Rows that hold more than is counted; every sum over one of them is unknown.
    """
    incomplete = {place.component for place in uncounted}
    active = {d: None if incomplete else table.count_active(d) for d in ActiveDefinition}
    components = table.count_components()
    total = None if incomplete else table.total
    run = active[ActiveDefinition.ALL]
    return Parameters(
        total=total,
        active=active,
        components={
            component.value: None if component in incomplete else number
            for component, number in components.items()
        },
        active_components={
            component.value: None if component in incomplete else table.count_active_of(component)
            for component in components
        },
        expert_share=components[Component.ROUTED_EXPERTS] / total if total else None,
        sparsity=run.exact / total if total and run and run.exact is not None else None,
        num_bytes=table.num_bytes,
        is_tied=table.is_tied,
    )


def describe_files(
    subject: Subject, table: HeaderTable, *, differences: tuple[Difference, ...] | None
) -> Files:
    """Return what a model's weight files hold."""
    assert subject.headers is not None
    return Files(
        num_files=len(subject.headers.file_bytes),
        num_tensors=len(subject.headers.tensors),
        num_bytes=sum(subject.headers.file_bytes.values()),
        dtype_bytes=table.dtype_bytes,
        differences=differences,
    )


def _note_unknown(table: HeaderTable) -> list[str]:
    notes = []
    if table.unknown is not None:
        notes.append(f"The total is unknown: {table.unknown}.")
    if table.unclear is not None:
        notes.append(
            f"Some names don't say what their tensors are, such as {table.unclear}: a token may run all "
            "of them or none."
        )
    if table.active_unknown is not None:
        notes.append(f"Active parameters are unknown from headers: {table.active_unknown}.")
    elif table.top_k is not None:
        notes.append(
            f"Active parameters rest on the top-{table.top_k} that config.json states; "
            "--source skeleton asks the model's code."
        )
    return notes


def _count_shared(config: Mapping[str, object], table: ParameterTable) -> int | None:
    """Return how many shared experts config.json states; None if there are some and it doesn't."""
    if table.count_components()[Component.SHARED_EXPERTS] == 0:
        return 0
    return find_num_shared_experts(config)
