"""Dependence of routing on the token alone, as a result."""

from __future__ import annotations

from collections.abc import Mapping
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
class LayerTokens(LayerFacts):
    """Dependence of one layer's first choices on the token alone.

    Attributes:
        num_token_ids: Distinct token ids that were counted.
        num_frequent: Those with at least `min_count` occurrences, which the shares are about.
        fixed_share: Share of the ids whose first choice never changes; None without such ids.
        usual_share: Share of their occurrences with the first choice that is most frequent for
            the id.
        baseline: Under a uniform random router; None where the shares are None.
        loads: Under a router that makes first choices as often, whatever the token.
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
        random_share: The same under a uniform random router, for as many occurrences.
        loads_share: The same under a router that makes first choices as often, whatever the token.
    """

    stack: str
    layer: int
    token_id: int
    token: str | None
    num_tokens: int
    num_experts_seen: int
    usual_expert: int
    usual_share: float
    random_share: float
    loads_share: float


@dataclass(frozen=True)
class FrequentToken:
    """A token id over all layers of a stack.

    Attributes:
        token: The tokenizer's piece; None if the trace has none.
        num_tokens: Occurrences of the id.
        num_layers: Layers with enough of them.
        num_fixed: Layers in which its first choice never changes.
        usual_share: Mean over layers of the share of its most frequent first choice.
        random_share: The same under a uniform random router.
        usual_experts: That first choice by layer.
    """

    stack: str
    token_id: int
    token: str | None
    num_tokens: int
    num_layers: int
    num_fixed: int
    usual_share: float
    random_share: float
    usual_experts: Mapping[int, int]


@dataclass(frozen=True)
class TokenRouting(Tabular):
    """The whole answer.

    Attributes:
        trace: Facts about the trace.
        min_count: Occurrences that an id needs to be judged.
        layers: In the order of stack and layer.
        tokens: The most frequent ids of each stack.
        id_sample: Share of the ids that were counted: 1 unless they would fill the memory.
        notes: Warnings, what was inferred, and why a number is None: a sentence each.
        cells: Every id that is judged in every layer.
    """

    trace: TraceFacts
    min_count: int
    layers: tuple[LayerTokens, ...]
    tokens: tuple[FrequentToken, ...]
    id_sample: float
    notes: tuple[str, ...]
    cells: tuple[TokenInLayer, ...] = field(repr=False)

    def __repr__(self) -> str:
        name = f" of {printable(self.trace.trace)}" if self.trace.trace else ""
        known = [layer.fixed_share for layer in self.layers if layer.fixed_share is not None]
        shares = f", {min(known):.0%} to {max(known):.0%} of ids fixed" if known else ""
        return f"<TokenRouting{name}: {number_of(len(self.layers), 'layer')}{shares}>"

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
