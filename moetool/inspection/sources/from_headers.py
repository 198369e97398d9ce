"""The inspection of a model by the headers of its files, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from moetool.anatomy.components import TOWERS, Component
from moetool.anatomy.config_fields import find_num_shared_experts
from moetool.anatomy.headers.published_format import find_quantization
from moetool.anatomy.headers.table import HeaderTable
from moetool.anatomy.parameters import ParameterTable
from moetool.checkpoint.subject import Subject
from moetool.inspection.notes import note_others, note_sources, note_towers
from moetool.inspection.published import compare_published
from moetool.inspection.result import Inspection, Source
from moetool.inspection.rows import list_header_rows
from moetool.inspection.summary import describe_files, merge, summarize


def inspect_headers(
    subject: Subject, table: HeaderTable, *, instead_because: str | None = None
) -> Inspection:
    """Return the inspection of a model by the headers of its files alone.

    Args:
        subject: The model, with headers.
        table: What is counted in them.
        instead_because: Why there is no skeleton, if one was asked for.
    """
    assert subject.headers is not None
    model_type = subject.config.get("model_type")
    layers = {row.layer for row in table.table.rows if row.layer is not None}
    parameters = summarize(table.table, uncounted=table.uncounted)
    are_known = table.experts_unknown is None and (table.unclear is None or bool(table.num_experts))
    if not are_known:
        parameters = replace(parameters, expert_share=None)
    counts = list(table.num_experts.values())
    num_experts = _merge_known(counts, are_known=are_known)
    return Inspection(
        model=subject.model,
        model_type=model_type if isinstance(model_type, str) else None,
        source=Source.HEADERS,
        revision=subject.revision,
        num_layers=table.num_layers if layers else None,
        num_moe_layers=len(counts) if are_known else None,
        num_experts=num_experts,
        top_k=table.top_k if counts else (0 if are_known else None),
        num_shared_experts=_count_shared(subject.config, table.table),
        quantization=find_quantization(subject),
        layout=subject.layout.name if subject.layout else None,
        expert_sources=subject.expert_sources,
        expert_params=_merge_expert_params(table),
        parameters=parameters,
        rows=tuple(list_header_rows(table)),
        files=describe_files(subject.headers, table),
        published=None
        if subject.published is None
        else compare_published(subject.published, total=parameters.total, active=parameters.active),
        notes=(
            *([instead_because] if instead_because else []),
            *subject.notes,
            *_note_unknown(table, subject),
            *note_sources(subject.expert_sources, num_experts),
            *note_towers(table.table),
            *note_others(table.other_tensors),
        ),
    )


def _merge_known(
    num_experts: list[int | None], *, are_known: bool
) -> int | tuple[int | None, ...] | None:
    """Return the experts of the routed layers; unknown if other layers may have some too."""
    if are_known:
        return merge(num_experts) if num_experts else 0
    return merge([*num_experts, None])


def _merge_expert_params(table: HeaderTable) -> int | tuple[int | None, ...] | None:
    """Return the parameters of one expert; None if there are none, or some can't be counted."""
    return None if table.unknown else merge(list(table.expert_params.values()) or [None])


def _note_unknown(table: HeaderTable, subject: Subject) -> list[str]:
    notes = []
    if table.unknown is not None:
        notes.append(f"Total unknown: {table.unknown}.")
    if table.unclear is not None:
        notes.append(
            f"The names of some tensors are not understood, such as {table.unclear}: a token may run "
            "all of them or none."
        )
    if table.active_unknown is not None:
        notes.append(f"Active parameters unknown from headers: {table.active_unknown}.")
        notes += _note_formula(table)
    elif table.top_k is not None and subject.layout is not None:
        notes.append(
            f"Active parameters follow from the top-{table.top_k} that {subject.stated_by} states."
        )
    elif table.top_k is not None:
        notes.append(
            f"Active parameters follow from the top-{table.top_k} that config.json states; use "
            "--source skeleton to count by the model's code."
        )
    has_shared = table.table.count_components()[Component.SHARED_EXPERTS] > 0
    if has_shared and _count_shared(subject.config, table.table) is None:
        notes.append(
            "The number of shared experts is unknown: their matrices are stored as those of one."
        )
    return notes


def _note_formula(table: HeaderTable) -> Iterator[str]:
    """Yield how active parameters follow from top-k, if that is all that is unknown about them."""
    each = list(table.expert_params.values())
    is_clear = table.unknown is None and table.unclear is None and table.experts_unknown is None
    if not each or None in each or not is_clear:
        return
    components = table.table.count_components()
    per_choice = sum(number for number in each if number is not None)
    routed = sum(
        number * experts
        for number, experts in zip(each, table.num_experts.values(), strict=True)
        if number is not None and experts is not None
    )
    others = table.table.total - routed - sum(components[tower] for tower in TOWERS)
    yield (
        f"A token runs {others:,} parameters and, in all layers together, {per_choice:,} for each of "
        "its top-k experts."
    )


def _count_shared(config: Mapping[str, object], table: ParameterTable) -> int | None:
    """Return the number of shared experts; None if there are some and config.json states none."""
    if table.count_components()[Component.SHARED_EXPERTS] == 0:
        return 0
    return find_num_shared_experts(config)
