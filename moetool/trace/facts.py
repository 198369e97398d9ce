"""Facts about a trace that was read, and about each of its layers, as reports state them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from moetool.trace.metadata import RoutedLayer, TraceMetadata


@dataclass(frozen=True)
class TraceFacts:
    """A trace in a few values; None where it has no metadata that says.

    Attributes:
        trace: The file or folder; None for a frame.
        model: As the trace's metadata name it.
        revision: Commit hash on the Hub.
        complete: Whether the run finished.
        exact: Whether every decision is the one that the experts carried out.
        num_prompts: Prompts with a decision in the layers that were read; None for a load table.
        num_tokens: Their tokens; those of an encoder and a decoder both count. None for a load table
            that doesn't state top-k.
        num_assignments: Experts chosen by all tokens in the layers that were read.
    """

    trace: str | None
    model: str | None
    revision: str | None
    model_type: str | None
    complete: bool | None
    exact: bool | None
    num_prompts: int | None
    num_tokens: int | None
    num_assignments: int


@dataclass(frozen=True)
class LayerFacts:
    """The part of a result that is about one routed layer.

    Attributes:
        stack: As in the trace's column.
        layer: As in the trace's column.
        num_experts: Routed experts, including identity experts, which come last.
        top_k: Assignments per decision, at most.
        num_tokens: Tokens with a decision in the layer.
    """

    stack: str
    layer: int
    num_experts: int
    top_k: int
    num_tokens: int


def describe_choices(layers: Iterable[RoutedLayer]) -> str:
    """Return how many experts a token has in layers, in words: `top-2 of 8 experts`."""
    kinds = sorted({(each.is_chosen_by_experts, each.top_k, each.num_experts) for each in layers})
    return ", ".join(
        f"up to {top_k} of {num_experts} experts, which choose tokens"
        if by_experts
        else f"top-{top_k} of {num_experts} experts"
        for by_experts, top_k, num_experts in kinds
    )


def describe_trace(
    metadata: TraceMetadata | None,
    *,
    path: str | None,
    num_prompts: int,
    num_tokens: int,
    num_assignments: int,
) -> TraceFacts:
    """Return the facts about a trace, from its metadata and what was counted in its rows."""
    return TraceFacts(
        trace=path,
        model=metadata.model if metadata else None,
        revision=metadata.revision if metadata else None,
        model_type=metadata.model_type if metadata else None,
        complete=metadata.complete if metadata else None,
        exact=metadata.exact if metadata else None,
        num_prompts=num_prompts,
        num_tokens=num_tokens,
        num_assignments=num_assignments,
    )
