"""One forward call of a family's model, seen by the recorder and by both referees at once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from packaging.version import Version
from transformers import PreTrainedModel

from moetool import RoutingRecorder
from moetool.anatomy.routing.moe_layers import MoeLayer, find_moe_layers
from moetool.errors import UntraceableError
from moetool.tracing.recording.calls import RecordedCall, RecordedLayer
from moetool.tracing.windows.collect import refuse_apart
from tests.families.tiny.dense_reference import ObservedExperts, observe_experts
from tests.families.tiny.gemm_audit import GemmAudit
from tests.families.tiny.models import LOOPED_FAMILIES, available, build_family, text_inputs

# Their experts run what their routers did not choose: see test_inexact.py.
INEXACT_FAMILIES = frozenset({"doge", "nllb-moe"})


@dataclass(frozen=True)
class ProvenLayer:
    """One routed layer: what was recorded, and what the referees saw.

    Attributes:
        recorded: The decisions that moetool recorded.
        observed: What the experts received and returned.
        pairs: The number of products of each token with each expert's weights.
    """

    recorded: RecordedLayer
    observed: ObservedExperts
    pairs: Counter[tuple[int, int]]

    @property
    def place(self) -> MoeLayer:
        return self.recorded.layer

    def relative_error(self, ids: torch.Tensor, weights: torch.Tensor) -> float:
        """Return how far the experts' output is from that of a dense loop with a decision."""
        return self.observed.relative_error(ids, weights)

    def expected_pairs(self, ids: torch.Tensor) -> Counter[tuple[int, int]]:
        """Return the pairs that a decision makes, except those with experts without weights."""
        token, slot = torch.nonzero((ids >= 0) & (ids < self.place.num_experts), as_tuple=True)
        return Counter(zip(token.tolist(), ids[token, slot].tolist(), strict=True))

    @property
    def ids(self) -> torch.Tensor:
        return torch.from_numpy(self.recorded.experts).long()

    @property
    def weights(self) -> torch.Tensor:
        return torch.from_numpy(self.recorded.weights)


@dataclass(frozen=True)
class Proof:
    """A recorded forward call, and the same call without recorder.

    Attributes:
        plain: The model's output.
        recorded: Its output while it was recorded.
        layers: Those that ran.
        routers: By experts path, the router that the recorder found.
        factors: By experts path, the output factor that it measured.
        modules_before: Each module's path, class and number of hooks.
        modules_after: The same after recording.
    """

    plain: torch.Tensor
    recorded: torch.Tensor
    layers: list[ProvenLayer]
    routers: dict[str, str | None]
    factors: dict[str, float | None]
    modules_before: list[tuple[str, type, int]]
    modules_after: list[tuple[str, type, int]]


def prove(model: PreTrainedModel) -> Proof:
    """Run a model plainly, then under the recorder and both referees."""
    inputs: dict[str, Any] = text_inputs(model)
    layers = find_moe_layers(model)
    modules_before = list_modules(model)
    with torch.inference_mode():
        plain = run(model, inputs)
        with (
            RoutingRecorder(model, keep_scores=True) as recorder,
            observe_experts(model, layers) as observed,
            GemmAudit(model, layers) as audit,
        ):
            recorded = run(model, inputs)
    return Proof(
        plain=plain,
        recorded=recorded,
        layers=[
            ProvenLayer(layer, observed[layer.layer.experts_path], audit.pairs(layer.layer))
            for layer in recorded_layers(recorder.calls)
        ],
        routers={layer.experts_path: recorder.find_router(layer) for layer in layers},
        factors={layer.experts_path: recorder.find_output_factor(layer) for layer in layers},
        modules_before=modules_before,
        modules_after=list_modules(model),
    )


@cache
def proof_of(name: str) -> Proof:
    """Return the proof of a family's tiny model as it is built, run only once."""
    return prove(build_family(name))


def list_modules(model: PreTrainedModel) -> list[tuple[str, type, int]]:
    """Return each module's path, class and number of hooks."""
    return [
        (path, type(module), len(module._forward_hooks) + len(module._forward_pre_hooks))
        for path, module in model.named_modules()
    ]


def run(model: PreTrainedModel, inputs: dict[str, Any]) -> torch.Tensor:
    """Return a model's first output tensor."""
    with torch.random.fork_rng(devices=[]):
        output: torch.Tensor = model(**inputs)[0]
    return output


def recorded_layers(calls: list[RecordedCall]) -> list[RecordedLayer]:
    """Return the layers of all calls, an encoder-decoder having one call a stack."""
    return [layer for call in calls for layer in call.layers]


def unreadable_families() -> frozenset[str]:
    """Return the families whose experts no rule reads: before 5.23 Aria's route within themselves."""
    is_older = Version(transformers.__version__) < Version("5.23")
    return frozenset({"aria", "aria_text"} if is_older else ())


def unread_families() -> frozenset[str]:
    """Return those families, and those whose layers run several times a call."""
    return unreadable_families() | frozenset(LOOPED_FAMILIES)


@cache
def why_refused(name: str) -> str | None:
    """Return why a family is not traced exactly; None if it is."""
    model = build_family(name)
    try:
        find_moe_layers(model)
        if name in LOOPED_FAMILIES:
            record(model)
    except UntraceableError as error:
        return str(error)
    return None


def record(model: PreTrainedModel, *, allow_inexact: bool = False) -> None:
    """Run a model under the recorder, and raise what keeps it from being traced."""
    with RoutingRecorder(model, allow_inexact=allow_inexact) as recorder:
        run(model, text_inputs(model))
    refuse_apart(recorder.calls)


def exact_families() -> list[str]:
    """Return the families that are claimed to be traced exactly; a test checks the claim."""
    return [name for name in available() if name not in INEXACT_FAMILIES | unread_families()]
