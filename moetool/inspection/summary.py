"""The sums of an inspection, whichever derivation counted the parameters."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from moetool.anatomy.components import Component, Place
from moetool.anatomy.headers.table import HeaderTable
from moetool.anatomy.parameters import ActiveDefinition, ParameterTable
from moetool.checkpoint.headers.tensor_headers import TensorHeaders
from moetool.inspection.figures import Difference, Files, Parameters

if TYPE_CHECKING:
    from moetool.anatomy.routing.moe_layers import FoundExperts


def summarize(table: ParameterTable, *, uncounted: Collection[Place] = ()) -> Parameters:
    """Return the sums of a parameter table.

    Args:
        table: Of a skeleton, or of headers.
        uncounted: Rows that hold more than is counted. Every sum over one of them is unknown.
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


def merge(numbers: Collection[int | None]) -> int | tuple[int | None, ...] | None:
    """Return the one number that all layers have, or each layer's number if they differ.

    None if all of them are unknown.
    """
    different = set(numbers)
    if len(different) == 1:
        return different.pop()
    return tuple(numbers)


def merge_layers(
    numbers: Sequence[int | None], experts: FoundExperts
) -> int | tuple[int | None, ...] | None:
    """Return the one number of all layers, or each layer's; 0 in a dense model, None if unknown."""
    if experts.is_dense:
        return 0
    # No routed layer for text: only images pass experts, or no rule reads the experts.
    if not numbers:
        return 0 if experts.are_all_read else None
    return merge(numbers if experts.are_all_read else (*numbers, None))


def describe_files(
    headers: TensorHeaders, table: HeaderTable, *, differences: tuple[Difference, ...] | None = None
) -> Files:
    """Return the contents of a model's weight files.

    Args:
        headers: Of all of them.
        table: What is counted in them.
        differences: From the model; None where there is no model to compare them with.
    """
    return Files(
        num_files=len(headers.file_bytes),
        num_tensors=len(headers.tensors),
        num_bytes=sum(headers.file_bytes.values()),
        dtype_bytes=table.dtype_bytes,
        differences=differences,
    )
