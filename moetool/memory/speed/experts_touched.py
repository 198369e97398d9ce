"""The number of distinct experts that some tokens choose, by chance or according to a trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from transformers import PreTrainedModel

from moetool.anatomy.routing.moe_layers import MoeLayer
from moetool.anatomy.skeleton.routed_skeleton import RoutedSkeleton
from moetool.errors import InputError
from moetool.memory.answers.figures import Phase
from moetool.trace.metadata import RoutedLayer
from moetool.trace.reading.counts import ExpertCounter, ExpertCounts, LayerCounts, count_experts
from moetool.trace.reading.reader import TraceSource, open_trace

# The name of the routing that needs no trace.
UNIFORM = "uniform"

_OTHER_MODEL_HINT = "Name a trace of this model, made without --layers."


@dataclass(frozen=True)
class ExpertsTouched:
    """Distinct routed experts that at least one of some tokens chooses, in expectation.

    Attributes:
        per_layer: The number by the module path of a layer's experts, without identity experts.
        routing: `uniform`, or the name of the trace it was taken from.
    """

    per_layer: Mapping[str, float]
    routing: str

    @property
    def mean(self) -> float | None:
        """The mean over layers; None without any."""
        numbers = self.per_layer.values()
        return sum(numbers) / len(numbers) if numbers else None


@dataclass(frozen=True)
class Routing:
    """The share of tokens that choose each expert.

    Attributes:
        prefill: Shares among the tokens of prompts, by the module path of a layer's experts.
            # (num_experts,)
        decode: Shares among generated tokens, in the same form.
        name: `uniform`, or the name of the trace it was taken from.
        notes: Caveats for the reader, one sentence each.
    """

    prefill: Mapping[str, NDArray[np.float64]]
    decode: Mapping[str, NDArray[np.float64]]
    name: str
    notes: tuple[str, ...] = ()

    def expect_touched(self, phase: Phase, *, num_tokens: int) -> ExpertsTouched:
        """Return the expected number of distinct experts that some tokens of a phase touch.

        An expert that a share p of tokens choose is touched by at least one of T tokens with
        probability 1 - (1 - p)^T; the expectation is the sum over experts. It is exact if tokens
        choose independently of each other. Tokens of one text choose more similar experts, and
        touch fewer.

        Args:
            phase: The phase whose shares are used.
            num_tokens: Tokens that pass through a layer together.
        """
        shares = self.prefill if phase is Phase.PREFILL else self.decode
        return ExpertsTouched(
            per_layer={path: _expect_distinct(p, num_tokens) for path, p in shares.items()},
            routing=self.name,
        )


def find_choices(skeleton: PreTrainedModel) -> Mapping[MoeLayer, int] | None:
    """Return the routed layers that text tokens run, and the number of experts per token in each.

    None if that is unknown for any of them; empty for a dense model.

    Args:
        skeleton: The model on the meta device, its weights not quantized.
    """
    routed = RoutedSkeleton.of(skeleton)
    if not routed.experts.are_all_read:
        return None
    choices: dict[MoeLayer, int] = {}
    for layer in routed.text_layers:
        top_k = routed.top_k[layer]
        if top_k is None:
            return None
        choices[layer] = top_k
    return choices


def assume_uniform_routing(choices: Mapping[MoeLayer, int]) -> Routing:
    """Return the routing of a router that chooses all sets of `top_k` experts equally often.

    Each of E experts is chosen by a share k / E of tokens, so that T tokens touch
    E · (1 - (1 - k/E)^T) of them in expectation. Identity experts are chosen as often as others.

    Args:
        choices: The number of experts a token chooses in each routed layer.
    """
    shares = {
        layer.experts_path: np.full(layer.num_experts, top_k / _count_ids(layer))
        for layer, top_k in choices.items()
    }
    return Routing(prefill=shares, decode=shares, name=UNIFORM)


def read_routing(path: Path, choices: Mapping[MoeLayer, int]) -> Routing:
    """Return the routing that a trace recorded.

    The trace's `phase` separates prompts from generated tokens. If it has no tokens of one phase,
    those of the other are used instead.

    Args:
        path: The trace.
        choices: The number of experts a token chooses in each routed layer of the model.

    Raises:
        InputError: There is no trace at the path, it can't be read, or it is of another model.
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


def _expect_distinct(shares: NDArray[np.float64], num_tokens: int) -> float:
    return float((1 - (1 - shares) ** num_tokens).sum())


def _count_ids(layer: MoeLayer) -> int:
    return layer.num_experts + layer.num_identity_experts


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
        num_ids = _count_ids(layer)
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
