"""The routing that a trace recorded, for a model that is estimated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.errors import InputError
from moetool.memory.answers.figures import Phase
from moetool.memory.speed.experts_touched import Routing, count_ids
from moetool.trace.metadata import RoutedLayer
from moetool.trace.reading.counts import ExpertCounter, ExpertCounts, LayerCounts, count_experts
from moetool.trace.reading.reader import TraceSource, open_trace

_OTHER_MODEL_HINT = "Name a trace of this model, made without --layers."


def read_routing(path: Path, choices: Mapping[MoeLayer, int]) -> Routing:
    """Return the routing that a trace recorded.

    The trace's `phase` separates prompts from generated tokens. If it has no tokens of one phase,
    those of the other are used instead.

    Args:
        path: The trace.
        choices: The number of experts a token chooses in each routed layer of the model.

    Raises:
        InputError: The trace doesn't exist, can't be read, or is of another model.
    """
    source = open_trace(path)
    counts = count_experts(source, by="domain")
    _refuse_other_model(source, counts, choices)
    of_all = _find_shares(counts.layers, choices)
    of_phase = {
        phase: _find_shares(_count_phase(source, phase, choices).layers, choices)
        for phase in (Phase.PREFILL, Phase.DECODE)
    }
    notes = [
        *source.notes,
        *(
            f"{path.name} does not mark tokens of {phase}: all of its tokens are used instead."
            for phase, shares in of_phase.items()
            if not shares
        ),
    ]
    return Routing(
        prefill={**of_all, **of_phase[Phase.PREFILL]},
        decode={**of_all, **of_phase[Phase.DECODE]},
        name=path.name,
        notes=tuple(notes),
    )


def _count_phase(
    source: TraceSource, phase: Phase, choices: Mapping[MoeLayer, int]
) -> ExpertCounts:
    """Return how often each expert was chosen by the tokens of a phase."""
    counter = ExpertCounter(by="domain")
    if "phase" in source.columns:
        optional = [name for name in ("domain", "stack") if name in source.columns]
        for table in source.iter_tables([*optional, "layer", "expert", "phase"]):
            counter.add(table.filter(pc.equal(table.column("phase"), phase.value)))
    return counter.counts(
        RoutedLayer(
            stack=layer.stack,
            layer=layer.layer,
            module=layer.experts_path,
            router=None,
            num_experts=layer.num_experts,
            num_identity_experts=layer.num_identity_experts,
            top_k=top_k,
        )
        for layer, top_k in choices.items()
    )


def _find_shares(
    counted: tuple[LayerCounts, ...], choices: Mapping[MoeLayer, int]
) -> dict[str, NDArray[np.float64]]:
    """Return the share of decisions that each expert with weights is in, by module path."""
    layers = {(layer.stack, layer.layer): layer for layer in choices}
    shares: dict[str, NDArray[np.float64]] = {}
    for counts in counted:
        layer = layers[counts.stack, counts.layer]
        assignments = counts.assignments.sum(axis=0)[: layer.num_experts]
        missing = layer.num_experts - len(assignments)
        num_decisions = counts.decisions.sum()
        shares[layer.experts_path] = np.pad(assignments / num_decisions, (0, missing))
    return shares


def _refuse_other_model(
    source: TraceSource, counts: ExpertCounts, choices: Mapping[MoeLayer, int]
) -> None:
    expected = {(layer.stack, layer.layer): (layer, top_k) for layer, top_k in choices.items()}
    seen = {(item.stack, item.layer) for item in counts.layers}
    for key in sorted(expected.keys() - seen):
        _refuse(source, f"it lacks layer {key[1]} ({key[0]})")
    for item in counts.layers:
        if (item.stack, item.layer) not in expected:
            _refuse(source, f"the model has no routed layer {item.layer} ({item.stack})")
        layer, top_k = expected[item.stack, item.layer]
        # Without metadata, the number of experts is only known to be above the largest id seen.
        is_known = source.metadata is not None and bool(source.metadata.layers)
        num_ids = count_ids(layer)
        if item.num_experts > num_ids or (is_known and item.num_experts < num_ids):
            of_model = f"layer {item.layer} has {num_ids} experts in the model"
            _refuse(source, f"{of_model}, {item.num_experts} in the trace")
        if item.top_k != top_k:
            of_model = f"layer {item.layer} chooses {top_k} experts in the model"
            _refuse(source, f"{of_model}, {item.top_k} in the trace")
        if (item.assignments.sum(axis=0) > item.decisions.sum()).any():
            _refuse(source, f"layer {item.layer} chooses an expert twice for one token")


def _refuse(source: TraceSource, fact: str) -> NoReturn:
    raise InputError(
        f"'{source.path}' is not a trace of this model.",
        hint=_OTHER_MODEL_HINT,
        facts=[f"seen: {fact}"],
    )
