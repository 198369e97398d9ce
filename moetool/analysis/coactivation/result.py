"""Co-activation of experts as a result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from moetool.analysis.coactivation.baseline import PairBaseline
from moetool.analysis.coactivation.matrices import PairMatrix
from moetool.analysis.coactivation.prediction import Prefetch
from moetool.analysis.statistics.prediction import HitRate, Prediction
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
            across layers 1, or more if tokens run fewer experts in both. None if it was not
            computed.
        lift_low: Lower limit of the lift's 95% interval, if the prompts are a sample.
        lift_high: The upper limit.
        p_value: Of the lift, if the true one were as expected. A smaller one than 1e-6 is stated
            as 1e-6: prompts can't show more.
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

    @property
    def is_above(self) -> bool:
        """Whether the lift is significantly above the expected one."""
        return bool(self.is_significant and self.lift > (self.expected_lift or 0))


@dataclass(frozen=True)
class GroupShare:
    """Share of pairs of a group of experts under some router.

    Attributes:
        share_of_pairs: See `ExpertGroup`.
    """

    share_of_pairs: float


@dataclass(frozen=True)
class ExpertGroup:
    """Experts of a layer of which every two are chosen together more than their loads explain.

    Attributes:
        experts: Their ids.
        least_lift: The smallest lift of their pairs.
        share_of_pairs: Share of all pairs of all decisions that are of two members.
        loads: The same under a router with the same loads.
        baseline: The same under a uniform random router.
    """

    experts: tuple[int, ...]
    least_lift: float
    share_of_pairs: float
    loads: GroupShare
    baseline: GroupShare


@dataclass(frozen=True)
class GroupPairs:
    """The strongest pairs of one group of tokens, such as a domain.

    They are tested within the group, unless its sums over prompts would not fit into memory.

    Attributes:
        group: Value of the column that groups tokens.
        num_tokens: Tokens of the group with a decision in the layer.
        baseline: Figures of a uniform random router; None where no decision has a pair.
        pairs: The strongest first.
    """

    group: str
    num_tokens: int
    baseline: PairBaseline | None
    pairs: tuple[ExpertPair, ...]


@dataclass(frozen=True)
class Transition:
    """Pairs of an expert of a layer and an expert of the next routed layer of the stack.

    Attributes:
        layer: The next layer.
        num_tokens: Tokens with a decision in both.
        pairs: The strongest first.
        prediction: Of the next layer's experts among the top-k of a linear predictor. None if
            prompts or experts are too few to fit and score one.
        prefetch: The same for larger sets, the first of which is top-k; empty if there is none.
    """

    layer: int
    num_tokens: int
    pairs: tuple[ExpertPair, ...]
    prediction: Prediction | None
    prefetch: tuple[Prefetch, ...]
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

    @property
    def surest_pair(self) -> ExpertPair | None:
        """The listed pair above whose interval begins highest; None if none is above."""
        above = [pair for pair in self.pairs if pair.is_above]
        return max(above, key=lambda pair: (pair.lift_low or 0, pair.lift), default=None)


@dataclass(frozen=True)
class Verdict:
    """The answer in a few numbers, over all layers.

    Attributes:
        num_pairs: Pairs of experts of a layer.
        num_above: Those with a lift that is significantly above the expected one.
        num_below: Those with a lift that is significantly below it.
        is_tested: Whether any pair could be tested.
        num_predicted_layers: Layers whose experts are predicted from the layer before.
        num_layers_beyond_popularity: Those in which that beats popular experts for certain.
        does_predict: Whether these are more than half, as a few layers are by chance; None
            without predictions.
    """

    num_pairs: int
    num_above: int
    num_below: int
    is_tested: bool
    num_predicted_layers: int
    num_layers_beyond_popularity: int
    does_predict: bool | None


@dataclass(frozen=True)
class GroupSummary:
    """The strongest pairs of one group of tokens over all layers.

    Attributes:
        group: Value of the column that groups tokens.
        num_tokens: Tokens of the group in the layer that has most of them.
        pairs: Each with its layer, the strongest first: those above in the group, if pairs of the
            group were tested.
    """

    group: str
    num_tokens: int
    pairs: tuple[tuple[LayerCoactivation, ExpertPair], ...]


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
        verdict: The answer in a few numbers.
        hit_rate: Mean over layers of the prediction's hit rate; None if there is none.
        popularity: The same of predicting popular experts.
        baseline: The same of predicting random ones.
        notes: Warnings, what was inferred, and why a number is None: a sentence each.
    """

    trace: TraceFacts
    by: str
    layers: tuple[LayerCoactivation, ...]
    verdict: Verdict
    hit_rate: float | None
    popularity: float | None
    baseline: HitRate | None
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        name = f" of {printable(self.trace.trace)}" if self.trace.trace else ""
        above, pairs = self.verdict.num_above, self.verdict.num_pairs
        hits = "" if self.hit_rate is None else f", next layer predicted {self.hit_rate:.0%}"
        layers = number_of(len(self.layers), "layer")
        return f"<Coactivation{name}: {layers}, {above:,} of {pairs:,} pairs above chance{hits}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the object of the JSON report. Values are plain; unknown ones are None."""
        value = {item.name: getattr(self, item.name) for item in fields(self)}
        value["layers"] = [_without_matrices(layer) for layer in self.layers]
        plain: dict[str, Any] = make_plain(value)
        return plain

    def summarize_groups(self) -> tuple[GroupSummary, ...]:
        """Return the strongest pairs of each group over all layers, in the order of names."""
        found: dict[str, list[tuple[LayerCoactivation, GroupPairs]]] = {}
        for layer in self.layers:
            for each in layer.by_group:
                found.setdefault(each.group, []).append((layer, each))
        return tuple(
            GroupSummary(
                group=name,
                num_tokens=max(each.num_tokens for _, each in found[name]),
                pairs=tuple(
                    sorted(
                        (
                            (layer, pair)
                            for layer, each in found[name]
                            for pair in each.pairs
                            if pair.is_significant is None or pair.is_above
                        ),
                        key=lambda item: -item[1].lift,
                    )
                ),
            )
            for name in sorted(found)
        )

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
