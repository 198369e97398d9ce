"""Co-activation of experts as a result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from moetool.analysis.coactivation.baseline import PairBaseline
from moetool.analysis.coactivation.matrices import PairMatrix
from moetool.analysis.coactivation.prediction import Prediction
from moetool.plain import Tabular, make_plain
from moetool.printable import printable
from moetool.trace.facts import LayerFacts, TraceFacts
from moetool.wording import number_of


@dataclass(frozen=True)
class ExpertPair:
    """Two experts that decisions choose together.

    Attributes:
        experts: The smaller id first; across layers, that of the layer, then that of the next.
        count: Decisions, or tokens across layers, that choose both.
        probability: Their share of all decisions.
        given_i: Probability of the second expert if the first is chosen.
        given_j: Probability of the first expert if the second is chosen.
        lift: `count * decisions / (count of one * count of the other)`.
        expected_lift: Lift under a router with the same loads that chooses at random otherwise;
            1 across layers. None if it was not computed.
        lift_low: Lower limit of the lift's 95% interval, if the prompts are a sample.
        lift_high: The upper limit.
        p_value: Of the lift, if the true one were as expected.
        is_significant: Whether the lift differs from the expected one, at a false discovery rate
            of 5% over the layer's pairs; None where it was not tested.
    """

    experts: tuple[int, int]
    count: int
    probability: float
    given_i: float
    given_j: float
    lift: float
    expected_lift: float | None = None
    lift_low: float | None = None
    lift_high: float | None = None
    p_value: float | None = None
    is_significant: bool | None = None


@dataclass(frozen=True)
class ExpertGroup:
    """Experts of a layer of which every two are chosen together more than their loads explain.

    Attributes:
        experts: Their ids.
        least_lift: The smallest lift of their pairs.
        share_of_pairs: Share of all pairs of all decisions that are of two members.
        expected_share: The same under a router with the same loads.
        random_share: The same under a uniform random router.
    """

    experts: tuple[int, ...]
    least_lift: float
    share_of_pairs: float
    expected_share: float
    random_share: float


@dataclass(frozen=True)
class GroupPairs:
    """The strongest pairs of one group of tokens, such as a domain.

    Attributes:
        group: Value of the column that groups tokens.
        num_tokens: Tokens of the group with a decision in the layer.
        pairs: The strongest first.
    """

    group: str
    num_tokens: int
    pairs: tuple[ExpertPair, ...]


@dataclass(frozen=True)
class Transition:
    """Pairs of an expert of a layer and an expert of the next routed layer of the stack.

    Attributes:
        layer: The next layer.
        num_tokens: Tokens with a decision in both.
        pairs: The strongest first. A random router's lift is 1.
        prediction: None if prompts or experts are too few to fit and score one.
    """

    layer: int
    num_tokens: int
    pairs: tuple[ExpertPair, ...]
    prediction: Prediction | None
    matrix: PairMatrix = field(repr=False, compare=False)


@dataclass(frozen=True)
class LayerCoactivation(LayerFacts):
    """Experts of one layer that are chosen together.

    Attributes:
        baseline: Figures of a uniform random router; None where decisions have no pairs.
        num_pairs: Pairs of experts, whether or not they occur.
        num_above: Pairs with a lift that is significantly above the expected one.
        num_below: Pairs with a lift that is significantly below it.
        num_never: Pairs that never occur, though the loads make ten decisions likely.
        pairs: The strongest first; see `measure_coactivation` for the choice.
        expert_groups: Those with the most pairs above what loads explain first.
        by_group: The strongest pairs of each group of tokens; empty if there is one group.
        next_layer: Pairs with the next layer; None for the last of a stack.
    """

    baseline: PairBaseline | None
    num_pairs: int
    num_above: int
    num_below: int
    num_never: int
    pairs: tuple[ExpertPair, ...]
    expert_groups: tuple[ExpertGroup, ...]
    by_group: tuple[GroupPairs, ...]
    next_layer: Transition | None
    matrix: PairMatrix = field(repr=False, compare=False)


@dataclass(frozen=True)
class _Row:
    """A row of the CSV report: a cell of a matrix.

    Attributes:
        next_layer: None for pairs of one decision.
    """

    stack: str
    layer: int
    next_layer: int | None
    expert_i: int
    expert_j: int
    count: int
    probability: float | None
    given_i: float | None
    given_j: float | None
    lift: float | None
    expected_lift: float | None
    lift_low: float | None
    lift_high: float | None
    p_value: float | None
    is_significant: bool | None


@dataclass(frozen=True)
class Coactivation(Tabular):
    """The whole answer.

    Attributes:
        trace: Facts about the trace.
        by: Column that groups tokens.
        layers: In the order of stack and layer.
        hit_rate: Mean over layers of the prediction's hit rate; None if there is none.
        popularity: The same of predicting popular experts.
        random: The same of predicting random ones.
        notes: Warnings, what was inferred, and why a number is None: a sentence each.
    """

    trace: TraceFacts
    by: str
    layers: tuple[LayerCoactivation, ...]
    hit_rate: float | None
    popularity: float | None
    random: float | None
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        name = f" of {printable(self.trace.trace)}" if self.trace.trace else ""
        above = sum(layer.num_above for layer in self.layers)
        pairs = sum(layer.num_pairs for layer in self.layers)
        hits = "" if self.hit_rate is None else f", next layer predicted {self.hit_rate:.0%}"
        layers = number_of(len(self.layers), "layer")
        return f"<Coactivation{name}: {layers}, {above:,} of {pairs:,} pairs above chance{hits}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the object of the JSON report. Values are plain; unknown ones are None."""
        value = {item.name: getattr(self, item.name) for item in fields(self)}
        value["layers"] = [_without_matrices(layer) for layer in self.layers]
        plain: dict[str, Any] = make_plain(value)
        return plain

    @classmethod
    def column_types(cls) -> Mapping[str, Any]:
        """Return the columns of the rows, in order, each with the type of its values."""
        return get_type_hints(_Row)

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row per pair of experts, of a layer and of neighbouring layers."""
        return list(self.iter_rows())

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        """Yield the same rows, which are millions for a large model."""
        for layer in self.layers:
            place = {"stack": layer.stack, "layer": layer.layer}
            for row in layer.matrix.iter_rows():
                yield {**place, "next_layer": None, **row}
            if layer.next_layer is not None:
                for row in layer.next_layer.matrix.iter_rows():
                    yield {**place, "next_layer": layer.next_layer.layer, **row}


def _without_matrices(layer: LayerCoactivation) -> dict[str, Any]:
    value = {item.name: getattr(layer, item.name) for item in fields(layer) if item.repr}
    following = layer.next_layer
    if following is not None:
        value["next_layer"] = {
            item.name: getattr(following, item.name) for item in fields(following) if item.repr
        }
    return value
