"""The part of a balance that needs the routers' probabilities of all experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moetool.analysis.balance.capacity.batches import BatchCutter
from moetool.analysis.balance.capacity.expert_choice import ExpertChoiceCounter
from moetool.analysis.balance.layer_meter import LayerMeter
from moetool.analysis.balance.losses import ProbabilityMeter
from moetool.errors import InputError
from moetool.printable import printable
from moetool.trace.reading.probabilities import ProbabilitySource
from moetool.wording import number_of

Place = tuple[str, int]

_NONE_RECORDED = "no probabilities were recorded (route-trace --probabilities)"


@dataclass(frozen=True)
class ProbabilityReading:
    """The probabilities of a trace, added up.

    Attributes:
        meters: By stack and layer; those that cover all decisions of their layer.
        choices: Expert choice, for the same layers.
        notes: Why something is unknown.
    """

    meters: Mapping[Place, ProbabilityMeter] = field(default_factory=dict)
    choices: Mapping[Place, ExpertChoiceCounter] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_probabilities(
    source: ProbabilitySource | None,
    layers: Mapping[Place, LayerMeter],
    *,
    tokens_per_batch: int | None,
    why_none: str = "",
) -> ProbabilityReading:
    """Return the sums of a trace's probabilities.

    Args:
        source: The probabilities; None if there are none.
        layers: The layers to read.
        tokens_per_batch: As `BatchCutter` takes it.
        why_none: Why there are none.

    Raises:
        InputError: The probabilities are damaged, or those of another model.
    """
    if source is None:
        reason = why_none or _NONE_RECORDED
        return ProbabilityReading(
            notes=(
                "The losses switch, huggingface, olmoe and z_loss, and expert choice are unknown: "
                f"{reason}.",
            )
        )
    with_logits = source.score_function == "sigmoid"
    meters: dict[Place, ProbabilityMeter] = {}
    choices: dict[Place, ExpertChoiceCounter] = {}
    cutters: dict[Place, BatchCutter] = {}
    for part in source:
        place = (part.stack, part.layer)
        if place not in layers:
            continue
        layer = layers[place]
        width = part.probabilities.shape[1]
        if width not in (layer.num_experts, layer.shape.num_experts):
            raise InputError(
                f"'{printable(source.path)}' has {width} probabilities in layer {part.layer}, which has "
                f"{number_of(layer.num_experts, 'expert')}.",
                hint="Trace again with --probabilities, or move the file away to go on without it.",
            )
        if place not in meters:
            meters[place] = ProbabilityMeter(width, with_logits=with_logits)
            choices[place] = ExpertChoiceCounter(num_experts=width, top_k=layer.shape.top_k)
            cutters[place] = BatchCutter(tokens_per_batch)
        meters[place].add(part.probabilities)
        choices[place].add(cutters[place].cut(part.prompt, (part.probabilities,)))
    for place, cutter in cutters.items():
        choices[place].add(cutter.finish())
    return _keep_complete(meters, choices, layers, source)


def _keep_complete(
    meters: Mapping[Place, ProbabilityMeter],
    choices: Mapping[Place, ExpertChoiceCounter],
    layers: Mapping[Place, LayerMeter],
    source: ProbabilitySource,
) -> ProbabilityReading:
    """Return the layers whose probabilities cover all decisions, and why the others are unknown."""
    complete = [
        place
        for place, meter in meters.items()
        if meter.num_decisions == int(layers[place].groups.num_decisions.sum())
    ]
    notes = []
    num_missing = len(layers) - len(complete)
    if num_missing:
        notes.append(
            f"Losses of probabilities are unknown in {number_of(num_missing, 'layer')}, where "
            f"'{printable(source.path)}' doesn't have a row for each decision of the trace."
        )
    kept = {place: meters[place] for place in complete}
    if source.score_function is None:
        notes.append(
            "The z_loss is unknown: the trace doesn't say which function gave the probabilities."
        )
    elif source.score_function != "sigmoid":
        notes.append(
            f"The z_loss is unknown: {source.score_function} probabilities fix a token's logits only "
            "up to a constant."
            if source.score_function == "softmax"
            else "The z_loss is unknown: the router's scores are not logits."
        )
    elif any(meter.find_z_loss() is None for meter in kept.values()):
        notes.append(
            "The z_loss is unknown where probabilities near 1, stored as float16, fix the logits "
            "only roughly."
        )
    if any(meter.num_unnormalized for meter in kept.values()):
        notes.append("Losses are unknown where a decision's probabilities are all 0.")
    return ProbabilityReading(
        meters=kept,
        choices={place: choices[place] for place in complete},
        notes=tuple(notes),
    )
