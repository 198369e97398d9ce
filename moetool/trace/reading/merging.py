"""Metadata of a whole trace, merged from that of its parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from moetool.errors import InputError
from moetool.printable import printable
from moetool.trace.metadata import NOT_EXACT, RoutedLayer, TraceMetadata

# Parts that differ in one of these come from two models.
_OF_THE_MODEL = ("model", "revision", "model_type", "quantization")
# Parts that differ in one of these come from one model that may have routed differently.
_OF_THE_RUN = (
    *("dtype", "auto_class", "attention_implementation", "experts_implementation"),
    *("special_tokens", "max_prompt_tokens", "max_new_tokens", "temperature", "top_p", "cache"),
)
# Parts may differ in these without a note.
_UNNOTED = (
    *("device", "device_map", "parallel", "parallel_size"),
    *("batch_size", "max_batch_tokens", "seed"),
)
# Of one file; several files together have none.
_OF_A_FILE = ("prompts_sha256", "score_function", "imported_from")
_NEVER_UNKNOWN = ("max_new_tokens",)
_COUNTS = ("num_prompts", "num_tokens", "num_decisions", "num_cut_prompts", "num_new_tokens")
# Each group holds what means nothing without the others: FLOPs, the prompt that they hold for.
_OF_THE_SIZE = (
    ("total_parameters",),
    ("active_parameters",),
    ("quantized_expert_bytes", "quantized_linear_bytes", "unquantized_bytes"),
    ("flops_per_token", "flops_prompt_tokens", "dense_flops_per_token"),
)
_OF_A_LAYER = ("num_experts", "num_identity_experts", "top_k")
_ONE_TRACE_HINT = "Keep the parts of each trace in a separate folder."

Value = TypeVar("Value")


@dataclass(frozen=True)
class Part:
    """One file of a trace and its metadata."""

    path: Path
    metadata: TraceMetadata | None


def merge_metadata(parts: Sequence[Part], *, hint: str = _ONE_TRACE_HINT) -> TraceMetadata | None:
    """Return the metadata of all parts together; None if none of them has any.

    Args:
        parts: At least one.
        hint: Advice if they come from different models.

    Raises:
        InputError: The parts come from different models, or only some of them have metadata.
    """
    known = [(part.path, part.metadata) for part in parts if part.metadata is not None]
    _refuse_two_models(known, hint=hint)
    if known and len(known) < len(parts):
        silent = next(part.path for part in parts if part.metadata is None)
        raise InputError(
            f"'{printable(silent)}' has no metadata, but '{printable(known[0][0].name)}' next to it "
            "has: they may be of different models.",
            hint=hint,
        )
    if not known:
        return None
    each = [metadata for _, metadata in known]
    unknown: dict[str, Any] = dict.fromkeys(_find_unequal_sizes(each))
    return replace(
        each[-1],
        complete=all(metadata.complete for metadata in each),
        exact=all(metadata.exact for metadata in each),
        rank_order=all(metadata.rank_order for metadata in each),
        layers=_merge_layers(known, hint=hint),
        notes=_unique(note for metadata in each for note in metadata.notes),
        **{name: sum(getattr(metadata, name) for metadata in each) for name in _COUNTS},
        **unknown,
    )


def keep_common(merged: TraceMetadata, parts: Sequence[Part]) -> TraceMetadata:
    """Return merged metadata without what only some of the parts say.

    Args:
        merged: From `merge_metadata`.
        parts: Those that were merged; each has metadata.
    """
    each = [part.metadata for part in parts if part.metadata is not None]
    unknown = [
        name
        for name in (*_OF_THE_RUN, *_UNNOTED, *_OF_A_FILE)
        if name not in _NEVER_UNKNOWN and len({getattr(one, name) for one in each}) > 1
    ]
    changes: dict[str, Any] = dict.fromkeys(unknown)
    return replace(
        merged,
        max_new_tokens=max(one.max_new_tokens for one in each),
        versions={
            name: version
            for name, version in merged.versions.items()
            if all(one.versions.get(name) == version for one in each)
        },
        **changes,
    )


def describe_parts(parts: Sequence[Part]) -> tuple[str, ...]:
    """Return notes on the parts that a reader of the trace should know, as sentences."""
    known = [(part.path, part.metadata) for part in parts if part.metadata is not None]
    notes = []
    unfinished = [path for path, metadata in known if not metadata.complete]
    if unfinished:
        notes.append(f"{_name(unfinished)} unfinished: its run has not ended.")
    inexact = [(path, metadata) for path, metadata in known if not metadata.exact]
    if inexact:
        reasons = _unique(
            printable(note.removeprefix(NOT_EXACT).strip(), max_length=400)
            for _, metadata in inexact
            for note in metadata.notes
            if note.startswith(NOT_EXACT)
        )
        words = ": ".join([f"{_name([path for path, _ in inexact])} not exact", *reasons])
        notes.append(f"{words.rstrip('.')}.")
    for name in _OF_THE_RUN:
        values = _unique(getattr(metadata, name) for _, metadata in known)
        if len(values) > 1:
            shown = ", ".join(printable(value, max_length=40) for value in values[:4])
            notes.append(f"The parts differ in {name}: {shown}.")
    return tuple(notes)


def _refuse_two_models(known: Sequence[tuple[Path, TraceMetadata]], *, hint: str) -> None:
    for (first, one), (second, other) in pairwise(known):
        for name in _OF_THE_MODEL:
            values = getattr(one, name), getattr(other, name)
            if values[0] != values[1]:
                seen = " and ".join(printable(value, max_length=60) for value in values)
                raise _two_models(first, second, fact=f"{name} {seen}", hint=hint)


def _find_unequal_sizes(each: Sequence[TraceMetadata]) -> list[str]:
    """Return the counts of the model that parts state differently, or that only some state."""
    return [
        name
        for names in _OF_THE_SIZE
        if len({tuple(getattr(metadata, name) for name in names) for metadata in each}) > 1
        for name in names
    ]


def _merge_layers(
    known: Sequence[tuple[Path, TraceMetadata]], *, hint: str
) -> tuple[RoutedLayer, ...]:
    """Return all layers that the parts describe: each may hold other layers of the model."""
    layers: dict[tuple[str, int], tuple[Path, RoutedLayer]] = {}
    for path, metadata in known:
        for layer in metadata.layers:
            first, same = layers.get((layer.stack, layer.layer), (path, layer))
            layers[layer.stack, layer.layer] = first, same.join(layer)
            is_varied = same.is_varied or layer.is_varied
            for name in _OF_A_LAYER:
                values = getattr(same, name), getattr(layer, name)
                if values[0] != values[1] and not (is_varied and name == "top_k"):
                    place = f"layer {layer.layer} of {printable(layer.stack, max_length=40)}"
                    fact = f"{name} {values[0]} and {values[1]} in {place}"
                    raise _two_models(first, path, fact=fact, hint=hint)
    return tuple(layer for _, layer in layers.values())


def _two_models(first: Path, second: Path, *, fact: str, hint: str) -> InputError:
    return InputError(
        f"'{printable(first)}' and '{printable(second.name)}' come from different models.",
        hint=hint,
        facts=[f"seen: {fact}"],
    )


def _name(paths: Sequence[Path]) -> str:
    """Return the names of files as the beginning of a sentence, with its verb."""
    first = f"'{printable(paths[0].name, max_length=60)}'"
    if len(paths) == 1:
        return f"{first} is"
    return f"{first} and {len(paths) - 1} more are"


def _unique(values: Iterable[Value]) -> tuple[Value, ...]:
    return tuple(dict.fromkeys(values))
