"""Dependence of routing on the token alone, as a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from moetool.analysis.statistics.prediction import Prediction
from moetool.plain import Tabular, make_plain
from moetool.printable import printable
from moetool.trace.facts import LayerFacts, TraceFacts
from moetool.wording import number_of


@dataclass(frozen=True)
class TokenBaseline:
    """The same figures under a router that does not look at tokens, for the same occurrences.

    Attributes:
        fixed_share: See `LayerTokens`.
        usual_share: See `LayerTokens`; simulated.
    """

    fixed_share: float
    usual_share: float


@dataclass(frozen=True)
class UsualShare:
    """The share of an id's usual expert under some router that does not look at tokens.

    Attributes:
        usual_share: Simulated for as many occurrences.
    """

    usual_share: float


@dataclass(frozen=True)
class LayerTokens(LayerFacts):
    """Dependence of one layer's first choices on the token alone.

    Attributes:
        num_token_ids: Distinct token ids that were counted.
        num_frequent: Those with at least `min_count` occurrences, which the shares are about.
        fixed_share: Share of the ids whose first choice never changes; None without such ids.
        usual_share: Share of their occurrences with the first choice that is most frequent for
            the id.
        baseline: Under a uniform random router; None where the shares are None.
        loads: Under a router with the same loads of first choices that ignores the token.
        prediction: Of first choices by the token's id: the usual one of the id in the other half of
            the prompts, or the layer's if the id does not occur there. None if prompts are too few.
    """

    num_token_ids: int
    num_frequent: int
    fixed_share: float | None
    usual_share: float | None
    baseline: TokenBaseline | None
    loads: TokenBaseline | None
    prediction: Prediction | None


@dataclass(frozen=True)
class TokenInLayer:
    """First choices of one token id in one layer: a row of the CSV report.

    Attributes:
        token: The tokenizer's piece; None if the trace has none.
        num_tokens: Occurrences of the id with a first choice.
        num_experts_seen: Experts that were a first choice at least once.
        usual_expert: The most frequent first choice.
        usual_share: Share of the occurrences that it gets.
        random_usual_share: The same under a uniform random router, for as many occurrences.
        loads_usual_share: The same under a router with the same loads of first choices that ignores
            the token.
    """

    stack: str
    layer: int
    token_id: int
    token: str | None
    num_tokens: int
    num_experts_seen: int
    usual_expert: int
    usual_share: float
    random_usual_share: float
    loads_usual_share: float


@dataclass(frozen=True)
class FrequentToken:
    """A token id over all layers of a stack.

    Attributes:
        token: The tokenizer's piece; None if the trace has none.
        num_tokens: Occurrences of the id.
        num_layers: Layers with enough of them.
        num_fixed: Layers in which its first choice never changes.
        usual_share: Mean over layers of the share of its most frequent first choice.
        baseline: Under a uniform random router, for as many occurrences.
        loads: Under a router with the same loads of first choices that ignores the token.
        usual_experts: That first choice by layer.
    """

    stack: str
    token_id: int
    token: str | None
    num_tokens: int
    num_layers: int
    num_fixed: int
    usual_share: float
    baseline: UsualShare
    loads: UsualShare
    usual_experts: Mapping[int, int]


@dataclass(frozen=True)
class RoutingVerdict:
    """The answer in a few numbers, over all layers.

    Attributes:
        num_predicted_layers: Layers whose first choices are predicted by the token's id.
        num_layers_beyond_popularity: Those in which that beats the most popular expert for certain.
        does_predict: Whether these are more than half, as a few layers are by chance; None
            without predictions.
        least_fixed_share: The smallest `fixed_share` of a layer; None if no id is judged.
        most_fixed_share: The largest.
        baseline_fixed_share: The largest under a uniform random router.
    """

    num_predicted_layers: int
    num_layers_beyond_popularity: int
    does_predict: bool | None
    least_fixed_share: float | None
    most_fixed_share: float | None
    baseline_fixed_share: float | None


def reach_verdict(layers: Sequence[LayerTokens]) -> RoutingVerdict:
    """Return what the figures of all layers support."""
    predictions = [layer.prediction for layer in layers if layer.prediction is not None]
    num_beyond = sum(prediction.is_gain_certain for prediction in predictions)
    shares = [layer.fixed_share for layer in layers if layer.fixed_share is not None]
    return RoutingVerdict(
        num_predicted_layers=len(predictions),
        num_layers_beyond_popularity=num_beyond,
        does_predict=2 * num_beyond > len(predictions) if predictions else None,
        least_fixed_share=min(shares, default=None),
        most_fixed_share=max(shares, default=None),
        baseline_fixed_share=max(
            (layer.baseline.fixed_share for layer in layers if layer.baseline is not None),
            default=None,
        ),
    )


@dataclass(frozen=True)
class TokenRouting(Tabular):
    """The whole answer.

    Attributes:
        trace: Facts about the trace.
        min_count: Occurrences that an id needs to be judged.
        layers: In the order of stack and layer.
        verdict: The answer in a few numbers.
        tokens: The most frequent ids of each stack.
        id_sample: Share of the ids that were counted: 1 unless they would fill the memory.
        notes: Warnings, what was inferred, and why a number is None: a sentence each.
        cells: Every id that is judged in every layer.
    """

    trace: TraceFacts
    min_count: int
    layers: tuple[LayerTokens, ...]
    verdict: RoutingVerdict
    tokens: tuple[FrequentToken, ...]
    id_sample: float
    notes: tuple[str, ...]
    cells: tuple[TokenInLayer, ...] = field(repr=False)

    def __repr__(self) -> str:
        name = f" of {printable(self.trace.trace)}" if self.trace.trace else ""
        least, most = self.verdict.least_fixed_share, self.verdict.most_fixed_share
        known = least is not None and most is not None
        shares = f", {least:.0%} to {most:.0%} of ids fixed" if known else ""
        return f"<TokenRouting{name}: {number_of(len(self.layers), 'layer')}{shares}>"

    @property
    def predicted_layers(self) -> tuple[LayerTokens, ...]:
        """The layers whose first choices are predicted, that of the smallest hit rate first."""
        predicted = [
            (layer.prediction.hit_rate, index, layer)
            for index, layer in enumerate(self.layers)
            if layer.prediction is not None
        ]
        return tuple(layer for *_, layer in sorted(predicted, key=lambda item: item[:2]))

    def to_dict(self) -> dict[str, Any]:
        """Return the object of the JSON report. Values are plain; unknown ones are None."""
        value = {
            item.name: make_plain(getattr(self, item.name)) for item in fields(self) if item.repr
        }
        # The names of an object in JSON are texts.
        for token in value["tokens"]:
            token["usual_experts"] = {
                str(layer): expert for layer, expert in token["usual_experts"].items()
            }
        return value

    @classmethod
    def column_types(cls) -> Mapping[str, Any]:
        """Return the columns of the rows, in order, each with the type of its values."""
        return get_type_hints(TokenInLayer)

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row for each layer and each id with enough occurrences."""
        return [make_plain(cell) for cell in self.cells]
