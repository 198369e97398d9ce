"""Tokens of one expert as a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from moetool.plain import Tabular, make_plain
from moetool.printable import printable
from moetool.trace.facts import LayerFacts, TraceFacts


@dataclass(frozen=True)
class TokenContext:
    """A token with those around it in its prompt.

    Attributes:
        prompt_id: As in the trace's column.
        position: As in the trace's column.
        token_id: As in the trace's column.
        weight: Of the expert; None if the trace has no weights.
        before: Pieces of the tokens before it, in order; None for one without a piece.
        token: Its piece.
        after: Pieces of the tokens after it.
    """

    prompt_id: str
    position: int
    token_id: int
    weight: float | None
    before: tuple[str | None, ...]
    token: str | None
    after: tuple[str | None, ...]


@dataclass(frozen=True)
class ExpertToken:
    """A token id that an expert gets.

    Attributes:
        token: The tokenizer's piece; None if the trace has none.
        count: Decisions on the id that choose the expert.
        first_count: Those in which it is the first choice; None if that is unknown.
        num_tokens: Occurrences of the id in the layer.
        share: `count / num_tokens`.
        lift: `share` over the expert's share of all tokens.
    """

    token_id: int
    token: str | None
    count: int
    first_count: int | None
    num_tokens: int
    share: float
    lift: float


@dataclass(frozen=True)
class _Row(ExpertToken):
    """A row of the CSV report: a token id, with its context of the largest weight."""

    prompt_id: str
    position: int
    weight: float | None


@dataclass(frozen=True)
class ExpertShare:
    """The share of an expert under some router.

    Attributes:
        share: See `ExpertTokens`.
    """

    share: float


@dataclass(frozen=True)
class GroupUse:
    """The use of the expert by one group of tokens, such as a domain.

    Attributes:
        group: Value of the column that groups tokens.
        num_tokens: Decisions of the layer for tokens of the group.
        count: Those that choose the expert.
        share: Their share.
        baseline: Under a uniform random router that runs as many experts.
        tokens: Ids that it gets most often in the group, with their counts, shares and lifts there.
    """

    group: str
    num_tokens: int
    count: int
    share: float
    baseline: ExpertShare
    tokens: tuple[ExpertToken, ...]


@dataclass(frozen=True)
class ExpertTokens(LayerFacts, Tabular):
    """Tokens that one expert gets.

    Attributes:
        trace: Facts about the trace.
        expert: Its id.
        count: Decisions that choose it.
        share: Their share of the layer's tokens.
        baseline: Under a uniform random router that runs as many experts: `top_k / num_experts` if
            these are always top-k.
        num_token_ids: Distinct ids that it gets.
        num_layer_ids: Distinct ids that the layer gets.
        tokens: The most frequent first.
        contexts: Of the tokens with the largest weights, or, without weights, of a sample; at most
            one of each token id.
        notes: Warnings, what was inferred, and why a number is None: a sentence each.
        by: Column that groups tokens.
        by_group: The expert's use by each group; empty if there is one group.
        all_tokens: Every id that the expert gets, the most frequent first.
        all_contexts: One for each of these.
    """

    trace: TraceFacts
    expert: int
    count: int
    share: float
    baseline: ExpertShare
    num_token_ids: int
    num_layer_ids: int
    tokens: tuple[ExpertToken, ...]
    contexts: tuple[TokenContext, ...]
    notes: tuple[str, ...]
    by: str
    by_group: tuple[GroupUse, ...]
    all_tokens: tuple[ExpertToken, ...] = field(repr=False)
    all_contexts: tuple[TokenContext, ...] = field(repr=False)

    def __repr__(self) -> str:
        return (
            f"<ExpertTokens of expert {self.expert} in {printable(self.stack, max_length=40)} layer "
            f"{self.layer}: {self.count:,} choices, {self.num_token_ids:,} token ids>"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the object of the JSON report, whose layer is the only item of `layers`."""
        facts = [item.name for item in fields(LayerFacts)]
        layer = {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if item.repr and item.name not in ("trace", "by", "notes")
        }
        others = [name for name in layer if name not in facts]
        ordered = {name: layer[name] for name in (*facts, *others)}
        plain: dict[str, Any] = make_plain(
            {"trace": self.trace, "by": self.by, "layers": [ordered], "notes": self.notes}
        )
        return plain

    @classmethod
    def column_types(cls) -> Mapping[str, Any]:
        """Return the columns of the rows, in order, each with the type of its values."""
        return {"stack": str, "layer": int, "expert": int, **get_type_hints(_Row)}

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row for each token id that the expert gets."""
        place = {"stack": self.stack, "layer": self.layer, "expert": self.expert}
        return [
            {
                **place,
                **make_plain(token),
                "prompt_id": context.prompt_id,
                "position": context.position,
                "weight": context.weight,
            }
            for token, context in zip(self.all_tokens, self.all_contexts, strict=True)
        ]
