"""The answer of `moetool specialize` in a few numbers and a word, and at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moetool.analysis.specialization.result import DomainExpertTest, LayerSpecialization


class Answer(StrEnum):
    """Answers to whether experts specialize.

    Attributes:
        UNKNOWN: No expert ran.
        ALIKE: Domains differ in no layer.
        DIFFERENT: They differ; how much of that is vocabulary is unknown.
        VOCABULARY: They differ; no layer gives the same token other experts in other domains.
        LITTLE: Some layer does, as little as untrained models do: see `UNTRAINED`.
        BEYOND_VOCABULARY: Some layer does, more than these.
    """

    UNKNOWN = "unknown"
    ALIKE = "alike"
    DIFFERENT = "different"
    VOCABULARY = "vocabulary"
    LITTLE = "little beyond vocabulary"
    BEYOND_VOCABULARY = "beyond vocabulary"


# Attention shows a token those before it, so even a model without training gives the same token other
# experts in other domains. How much depends on the model, which a trace does not show. The layers of
# four untrained copies of the demonstration model lie in this range over the sample prompts: a
# yardstick, not a bound for other models.
UNTRAINED = (0.016, 0.048)
_LITTLE = 0.05


@dataclass(frozen=True)
class Verdict:
    """The answer in a few numbers; layers and experts count where their p-value is known.

    Attributes:
        answer: In a word.
        num_tested_layers: Layers whose experts ran.
        num_significant_layers: Layers whose use of experts differs between domains.
        num_shared_layers: Layers in which domains share enough tokens to compare.
        num_layers_beyond_vocabulary: Layers in which the same token is given other experts in
            other domains.
        least_conditional_normalized: The smallest share of `H(domain | token id)` that experts
            explain among those layers; None if there are none.
        most_conditional_normalized: The largest.
        num_experts: Experts of all layers that were chosen.
        num_domain_experts: Those that at least one domain uses more than all tokens do, with a
            q-value of at most 5 %.
        num_certain_experts: Those with a family-wise p-value of at most 5 %.
        num_experts_beyond_vocabulary: Of these, those that its tokens use more than the same token
            ids do in other domains.
    """

    answer: Answer
    num_tested_layers: int
    num_significant_layers: int
    num_shared_layers: int
    num_layers_beyond_vocabulary: int
    least_conditional_normalized: float | None
    most_conditional_normalized: float | None
    num_experts: int
    num_domain_experts: int
    num_certain_experts: int
    num_experts_beyond_vocabulary: int


def choose_answer(
    *,
    num_tested_layers: int,
    num_significant_layers: int,
    num_shared_layers: int,
    num_layers_beyond_vocabulary: int,
    most_conditional_normalized: float | None,
) -> Answer:
    """Return the answer that the numbers of a verdict support."""
    if not num_tested_layers:
        return Answer.UNKNOWN
    if not num_significant_layers:
        return Answer.ALIKE
    if not num_shared_layers:
        return Answer.DIFFERENT
    if not num_layers_beyond_vocabulary:
        return Answer.VOCABULARY
    is_little = most_conditional_normalized is None or most_conditional_normalized < _LITTLE
    return Answer.LITTLE if is_little else Answer.BEYOND_VOCABULARY


@dataclass(frozen=True)
class StrongestLifts:
    """The largest lift of each expert of a layer.

    Attributes:
        lifts: Over the domains that use the expert more than all tokens do, with a q-value of at
            most 5 %; None for experts without one. # (num_experts,)
    """

    stack: str
    layer: int
    lifts: tuple[float | None, ...]


def find_strongest_lifts(
    layers: Sequence[LayerSpecialization], experts: Sequence[DomainExpertTest]
) -> list[StrongestLifts]:
    """Return the strongest lifts of each layer, in the order of the layers."""
    found: dict[tuple[str, int], list[float | None]] = {
        (layer.stack, layer.layer): [None] * layer.num_experts for layer in layers
    }
    for cell in experts:
        if cell.is_domain_expert and cell.lift is not None:
            lifts = found[cell.stack, cell.layer]
            lifts[cell.expert] = max(cell.lift, lifts[cell.expert] or 0.0)
    return [StrongestLifts(*place, tuple(lifts)) for place, lifts in found.items()]
