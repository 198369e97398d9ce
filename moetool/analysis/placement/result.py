"""The result of a comparison of placements: their scores, and the slots that they fill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, get_args

from moetool.analysis.placement.methods.cluster import Cluster
from moetool.analysis.placement.scoring import PlacementScore
from moetool.choices import choose_word
from moetool.plain import Tabular, make_frame, make_plain
from moetool.printable import printable
from moetool.trace.facts import LayerFacts, TraceFacts
from moetool.wording import number_of

if TYPE_CHECKING:
    import pandas as pd

Method = Literal["contiguous", "eplb", "coactivation"]
CONTIGUOUS: Method = "contiguous"
EPLB: Method = "eplb"
COACTIVATION: Method = "coactivation"
METHODS = (CONTIGUOUS, EPLB, COACTIVATION)

# Lists of a result that are tables.
TableName = Literal["scores", "slots"]

_SCORES = tuple(each.name for each in fields(PlacementScore))


@dataclass(frozen=True)
class LayerPlacement(LayerFacts):
    """One layer's scores on the prompts that were held out.

    Attributes:
        load: Assignments of each expert, over all prompts.
        scores: By method.
        baseline: The scores that the same placements have for a random router.
    """

    load: tuple[int, ...]
    scores: Mapping[str, PlacementScore]
    baseline: Mapping[str, PlacementScore]

    @property
    def name(self) -> str:
        """The layer's number, after its stack unless that is the decoder."""
        return name_layer(self.stack, self.layer)


class Direction(StrEnum):
    """Directions of a change.

    Attributes:
        DOWN: The whole interval is below 0.
        UP: The whole interval is above 0.
        NONE: The interval holds 0.
        UNKNOWN: There is no interval.
    """

    DOWN = "down"
    UP = "up"
    NONE = "none"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Change:
    """A relative change, with the 95 % interval that sampling the prompts leaves.

    Attributes:
        change: -0.1 is a tenth less.
        low: Lower limit; None with fewer than two prompts.
        high: Upper limit.
        verdict: The direction that the interval supports.
    """

    change: float
    low: float | None
    high: float | None
    verdict: Direction


@dataclass(frozen=True)
class MethodPlacement(PlacementScore):
    """A method's scores, as means over layers; bytes are those of all layers together.

    Attributes:
        baseline: The scores that the same placements have for a random router.
        fan_out_change: Change of fan-out against contiguous placement, over prompts.
        batch_imbalance_change: The same of batch imbalance; a batch belongs to the prompt that it
            ends in.
        layers_better_than_eplb: Share of layers with a lower batch imbalance than under EPLB.
        physical_to_logical: Expert of each slot of each layer, fitted on all prompts; slots of a
            GPU follow each other.
        scored_physical_to_logical: The same, fitted on half of the prompts: the placement that the
            scores are of. None where scores are those of `physical_to_logical`.
    """

    baseline: PlacementScore = field(kw_only=True)
    fan_out_change: Change | None = field(kw_only=True, default=None)
    batch_imbalance_change: Change | None = field(kw_only=True, default=None)
    layers_better_than_eplb: float | None = field(kw_only=True, default=None)
    physical_to_logical: Mapping[str, tuple[int, ...]] = field(kw_only=True)
    scored_physical_to_logical: Mapping[str, tuple[int, ...]] | None = field(
        kw_only=True, default=None
    )


@dataclass(frozen=True)
class GroupShare:
    """The tokens of a group in the trace."""

    group: str
    num_prompts: int
    num_tokens: int


@dataclass(frozen=True)
class Split:
    """The division of a trace into a half to fit on and a half to score on.

    Attributes:
        unit: `prompt`, or `step` for a load table; None if scores are those of the rows that the
            placements were fitted on.
        num_fitted: Prompts or steps that the scored placements were fitted on.
        num_held_out: Prompts or steps that they were scored on.
        seed: Decides which are held out.
        held_out_prompts: Their ids, in the order of the trace; empty for a load table.
    """

    unit: str | None
    num_fitted: int
    num_held_out: int
    seed: int
    held_out_prompts: tuple[str, ...] = ()


@dataclass(frozen=True)
class VllmAdvice:
    """Settings of vLLM, which reads no placement from a file.

    Attributes:
        num_redundant_experts: The fewest with which EPLB's batch imbalance is within 2 % of the
            lowest among the numbers tried.
        expert_placement_strategy: `linear` or `round_robin`, whichever has the lower batch imbalance
            without replicas; `linear` if the router has no groups, which `round_robin` needs.
        imbalance_by_redundant: EPLB's batch imbalance on the held-out prompts, by the number of
            redundant experts.
        imbalance_by_strategy: The same without EPLB, by strategy.
    """

    num_redundant_experts: int
    expert_placement_strategy: str
    imbalance_by_redundant: Mapping[str, float]
    imbalance_by_strategy: Mapping[str, float]


@dataclass(frozen=True)
class Placement(Tabular):
    """The whole answer: scores of each method, and the slots that it fills.

    Attributes:
        trace: Facts about the trace.
        by: The column whose values are spread over both halves; None for a load table.
        cluster: GPUs and nodes.
        tokens_per_batch: Tokens of each batch; None where batches are the steps of a load table.
        split: The halves.
        num_batches: Complete batches in the half that was scored, in the layer with the fewest.
        groups: The tokens of each value of the column, most first.
        hidden_size: Values of a token that are sent to a GPU; None if unknown.
        bytes_per_value: Bytes of each.
        layers: In the order of the trace.
        methods: By name; None where a method needs what the trace lacks.
        notes: Warnings, what was inferred, and why a number is None: a sentence each.
        vllm: Settings of vLLM, if they were asked for.
    """

    trace: TraceFacts
    by: str | None
    cluster: Cluster
    tokens_per_batch: int | None
    split: Split
    num_batches: int
    groups: tuple[GroupShare, ...]
    hidden_size: int | None
    bytes_per_value: int | None
    layers: tuple[LayerPlacement, ...]
    methods: Mapping[str, MethodPlacement | None]
    notes: tuple[str, ...]
    vllm: VllmAdvice | None = None

    def __repr__(self) -> str:
        name = f" of {printable(self.trace.trace)}" if self.trace.trace else ""
        scores = [
            f"{method} {score.batch_imbalance:.2f}"
            for method, score in self.methods.items()
            if score is not None and score.batch_imbalance is not None
        ]
        shown = f"; batch imbalance {', '.join(scores)}" if scores else ""
        gpus = number_of(self.cluster.num_gpus, "GPU")
        return f"<Placement{name}: {number_of(len(self.layers), 'layer')} on {gpus}{shown}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the object of the JSON report. Values are plain; unknown ones are None."""
        plain: dict[str, Any] = make_plain(self)
        if self.vllm is None:
            del plain["vllm"]
        return plain

    @classmethod
    def column_types(cls) -> Mapping[str, Any]:
        """Return the columns of the rows, in order, each with the type of its values."""
        return {
            "stack": str,
            "layer": int,
            "num_experts": int,
            "top_k": int,
            "num_tokens": int,
            "method": str,
            **dict.fromkeys(_SCORES, float | None),
            **{f"random_{name}": float | None for name in _SCORES},
        }

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row per layer and method. Values are plain; unknown ones are None."""
        return [
            {
                "stack": layer.stack,
                "layer": layer.layer,
                "num_experts": layer.num_experts,
                "top_k": layer.top_k,
                "num_tokens": layer.num_tokens,
                "method": method,
                **make_plain(score),
                **{
                    f"random_{name}": value
                    for name, value in make_plain(layer.baseline[method]).items()
                },
            }
            for layer in self.layers
            for method, score in layer.scores.items()
        ]

    def to_frame(self, of: TableName = "scores") -> pd.DataFrame:
        """Return one of the tables as a DataFrame.

        Args:
            of: `scores` for the rows of the CSV report, or `slots` for the expert of every slot of
                every method.

        Raises:
            UsageError: There is no such table.
        """
        if choose_word(of, get_args(TableName), name="table of a placement") == "scores":
            return super().to_frame()
        rows = [
            {
                "method": method,
                "stack": layer.stack,
                "layer": layer.layer,
                "slot": slot,
                "gpu": slot * self.cluster.num_gpus // len(found.physical_to_logical[layer.name]),
                "expert": expert,
            }
            for method, found in self.methods.items()
            if found is not None
            for layer in self.layers
            for slot, expert in enumerate(found.physical_to_logical[layer.name])
        ]
        kinds = {"method": str, "stack": str, "layer": int, "slot": int, "gpu": int, "expert": int}
        return make_frame(rows, kinds)


def name_layer(stack: str, layer: int) -> str:
    """Return the key of a layer in a result: its number, after its stack unless the decoder."""
    return str(layer) if stack == "decoder" else f"{stack}.{layer}"
