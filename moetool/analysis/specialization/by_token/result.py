"""The answer of `moetool specialize --by token`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from moetool.choices import choose_word
from moetool.plain import Tabular, flat_types, make_flat, make_frame, make_plain
from moetool.printable import printable
from moetool.trace.facts import LayerFacts, TraceFacts
from moetool.wording import number_of

if TYPE_CHECKING:
    import pandas as pd

# Lists of a result that are tables.
TableName = Literal["tokens", "layers"]


@dataclass(frozen=True)
class VocabularyShares:
    """Shares of the usual expert under a router that ignores the token; see `LayerTokenUse`."""

    vocabulary_specialization: float
    first_vocabulary_specialization: float | None


@dataclass(frozen=True)
class LayerTokenUse(LayerFacts):
    """Vocabulary specialization of one layer (OLMoE, arXiv 2409.02060, 5.4).

    It is the share of a token id's occurrences that its usual expert gets, the one it chooses most:
    the mean over the ids with enough occurrences. Few occurrences make it large by chance, so that
    it means something only next to that of random routers at the same numbers of occurrences. None
    where no id has enough occurrences, and for first choices where the trace has no ranks.

    Attributes:
        num_token_ids: Ids with enough occurrences in the layer.
        covered_share: Their share of the layer's tokens.
        vocabulary_specialization: Of all experts that an occurrence chose.
        first_vocabulary_specialization: Of first choices alone.
        baseline: Under a uniform random router that runs as many experts.
        loads: Under a router with the same loads that ignores the token: it draws each decision
            from all tokens of the layer.
    """

    num_token_ids: int
    covered_share: float
    vocabulary_specialization: float | None
    first_vocabulary_specialization: float | None
    baseline: VocabularyShares | None
    loads: VocabularyShares | None


@dataclass(frozen=True)
class LoadsLift:
    """A lift under a router with the same loads that ignores the token; see `ExpertToken`."""

    shrunken_lift: float


@dataclass(frozen=True)
class ExpertToken:
    """One of the most characteristic tokens of an expert.

    Attributes:
        stack: As in the trace's column.
        layer: As in the trace's column.
        expert: As in the trace's column.
        token: The tokenizer's piece; None if the trace has none.
        occurrences: Decisions of the layer for the token id.
        prompts: Prompts with the token id.
        assignments: Occurrences that chose the expert.
        share: `assignments / occurrences`.
        expert_share: The expert's share of all tokens of the layer.
        lift: `share / expert_share`.
        shrunken_lift: The same after adding 10 occurrences that choose the expert as all tokens do:
            the order of the list.
        loads: The largest one of any token id if all chose the expert with its share of all tokens:
            what the first token of the list exceeds unless it is chance.
    """

    stack: str
    layer: int
    expert: int
    token_id: int
    token: str | None
    occurrences: int
    prompts: int
    assignments: int
    share: float
    expert_share: float
    lift: float
    shrunken_lift: float
    loads: LoadsLift

    @property
    def is_beyond_chance(self) -> bool:
        """Whether the token exceeds what any would under a router that ignores tokens."""
        return self.shrunken_lift > self.loads.shrunken_lift


@dataclass(frozen=True)
class TokenVerdict:
    """The answer in a few numbers, over the layers with enough occurrences of some token id.

    Attributes:
        num_layers: These layers.
        least: The smallest vocabulary specialization.
        most: The largest.
        least_by_loads: The smallest under a router with the same loads that ignores the token.
        most_by_loads: The largest.
    """

    num_layers: int
    least: float
    most: float
    least_by_loads: float
    most_by_loads: float


@dataclass(frozen=True)
class TokenSpecialization(Tabular):
    """The whole answer: per layer how far a token id decides, per expert which ids it gets.

    Attributes:
        layers: In the order of the trace.
        tokens: Of every layer and expert the most characteristic tokens, the most so first.
        verdict: The answer; None if no token id has enough occurrences.
        min_count: Occurrences that a token id needs in a layer.
        seed: Random seed of the random routers.
        notes: Warnings, what was inferred, and why a number is None: a sentence each.
        trace: Facts about the trace.
    """

    layers: tuple[LayerTokenUse, ...]
    tokens: tuple[ExpertToken, ...]
    verdict: TokenVerdict | None
    min_count: int
    seed: int
    notes: tuple[str, ...]
    trace: TraceFacts

    def __repr__(self) -> str:
        name = f" of {printable(self.trace.trace)}" if self.trace.trace else ""
        shares = f", {self.verdict.least:.0%} to {self.verdict.most:.0%}" if self.verdict else ""
        return f"<TokenSpecialization{name}: {number_of(len(self.layers), 'layer')}{shares}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the object of the JSON report. Values are plain; unknown ones are None."""
        names = ("min_count", "seed", "verdict", "layers", "tokens", "notes")
        return {
            "trace": make_plain(self.trace),
            "by": "token",
            **{name: make_plain(getattr(self, name)) for name in names},
        }

    @property
    def by(self) -> str:
        """The column whose values are compared."""
        return "token"

    @property
    def most_decided_layer(self) -> LayerTokenUse | None:
        """The layer in which the token decides most, among those with characteristic tokens."""
        places = {(token.stack, token.layer) for token in self.tokens}
        known = [layer for layer in self.layers if (layer.stack, layer.layer) in places]
        return max(known, key=lambda layer: layer.vocabulary_specialization or 0, default=None)

    @classmethod
    def column_types(cls) -> Mapping[str, Any]:
        """Return the columns of the rows, in order, each with the type of its values."""
        return flat_types(ExpertToken)

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row per layer, expert and characteristic token, with plain values."""
        return [make_flat(each) for each in self.tokens]

    def to_frame(self, of: TableName = "tokens") -> pd.DataFrame:
        """Return one of the lists as a DataFrame with a column for each attribute of its items.

        Args:
            of: `tokens` for the rows of the CSV report, or `layers`.

        Raises:
            UsageError: There is no such list.
        """
        choose_word(of, get_args(TableName), name="table of a specialization by token")
        kinds = {"tokens": ExpertToken, "layers": LayerTokenUse}
        rows = [make_flat(item) for item in getattr(self, of)]
        return make_frame(rows, flat_types(kinds[of]))
