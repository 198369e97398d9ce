"""The answer to whether two traces choose the same experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from moetool.analysis.comparison.baseline import Baseline
from moetool.analysis.comparison.token_changes import TokenChange, TokenIdChange
from moetool.choices import choose_word
from moetool.plain import Tabular, make_frame, make_plain
from moetool.printable import printable
from moetool.trace.facts import LayerFacts, TraceFacts

if TYPE_CHECKING:
    import pandas as pd

# Lists of a result that are tables.
TableName = Literal["cells", "layers", "groups", "positions", "token_ids", "tokens"]

# About this share of decisions differs between two engines that run the same weights
# (arXiv 2510.11370, between an inference engine and a trainer).
ENGINES_DIFFER = 0.1


class Verdict(StrEnum):
    """Verdict on how much two traces differ, next to two engines with the same weights.

    Attributes:
        IDENTICAL: In no set of experts and no first choice.
        ALIKE: In surely fewer decisions than two engines.
        AS_ENGINES: In about as many: the interval includes that share.
        DIFFERENT: In surely more.
        UNRELATED: They have no more experts in common than two independent routers.
        UNKNOWN: No decision was compared.
    """

    IDENTICAL = "identical"
    ALIKE = "alike"
    AS_ENGINES = "as engines"
    DIFFERENT = "different"
    UNRELATED = "unrelated"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The agreement of two traces over some decisions; a limit ends in `_low` or `_high`.

    Limits are those of a 95 % interval over prompts, None with fewer than two prompts. Means are
    None where nothing they could be taken over was recorded.

    Attributes:
        num_decisions: Tokens times layers that were compared.
        overlap: Mean share of experts that both chose, of the larger of the two sets.
        jaccard: Mean share of experts that both chose, of those that either chose.
        saturation: Mean share of the second trace's experts that the first chose, too: the router
            saturation of a checkpoint with respect to the final one (OLMoE, arXiv 2409.02060,
            section 5.1). It equals the overlap where both choose the same number of experts.
        changed_decisions: Share of decisions whose sets of experts differ.
        first_choice_flips: Share of decisions whose first choices differ; None without ranks.
        weight_change: Where the sets agree, the mean of `sum |w - w'| / (sum w + sum w')`: the
            share of weight that moved from one expert to another. None without weights.
        baseline: The same of two uniform random routers.
    """

    num_decisions: int
    overlap: float | None
    overlap_low: float | None
    overlap_high: float | None
    jaccard: float | None
    saturation: float | None
    changed_decisions: float | None
    changed_decisions_low: float | None
    changed_decisions_high: float | None
    first_choice_flips: float | None
    first_choice_flips_low: float | None
    first_choice_flips_high: float | None
    weight_change: float | None
    baseline: Baseline


@dataclass(frozen=True, kw_only=True)
class OverallAgreement(Agreement):
    """The agreement over all layers and tokens.

    Attributes:
        popularity: Of two routers that choose each expert as often as the traces do, independently
            of each other and of the token; the mean over decisions. None without any.
    """

    popularity: Baseline | None

    @property
    def is_well_below_engines(self) -> bool:
        """Whether less than half as many decisions changed, for certain, as between two engines."""
        changed, high = self.changed_decisions, self.changed_decisions_high
        most = changed if high is None else high
        return most is not None and most < ENGINES_DIFFER / 2


@dataclass(frozen=True, kw_only=True)
class LayerAgreement(Agreement, LayerFacts):
    """The agreement in one layer.

    Attributes:
        other_top_k: Assignments per decision in the second trace, at most.
        num_left_out: Decisions that only one of the traces has, or in which no expert ran.
        popularity: Of two routers that choose each expert as often as the traces do, independently
            of each other and of the token; None without decisions.
    """

    other_top_k: int
    num_left_out: int
    popularity: Baseline | None


@dataclass(frozen=True, kw_only=True)
class GroupAgreement(Agreement):
    """The agreement of one group of tokens over all layers."""

    group: str


@dataclass(frozen=True, kw_only=True)
class PositionAgreement(Agreement):
    """The agreement of the tokens in a range of positions over all layers.

    Attributes:
        first_position: Of the range.
        last_position: Of the range, itself included.
    """

    first_position: int
    last_position: int


@dataclass(frozen=True, kw_only=True)
class CellAgreement(Agreement):
    """The agreement of one group of tokens in one layer, a row of the CSV report."""

    stack: str
    layer: int
    group: str
    num_experts: int
    top_k: int
    other_top_k: int


@dataclass(frozen=True)
class Comparison(Tabular):
    """The agreement of two traces of the same tokens.

    Attributes:
        trace: Facts about the first.
        other: Facts about the second.
        by: The column that groups the tokens.
        verdict: How much they differ.
        overall: Over all layers and tokens.
        changed_tokens: Share of tokens with a changed decision in at least one layer.
        layers: In the order of stack and layer.
        groups: In alphabetical order.
        positions: Ranges that double in length.
        cells: Every group of every layer.
        min_count: Occurrences that a token id needs to be listed.
        num_token_ids: Token ids that occur at least that often.
        token_ids: Those that changed most.
        tokens: The single tokens that changed most.
        notes: What was left out, and why a number is None: a sentence each.
    """

    trace: TraceFacts
    other: TraceFacts
    by: str
    verdict: Verdict
    overall: OverallAgreement
    changed_tokens: float | None
    layers: tuple[LayerAgreement, ...]
    groups: tuple[GroupAgreement, ...]
    positions: tuple[PositionAgreement, ...]
    cells: tuple[CellAgreement, ...]
    min_count: int
    num_token_ids: int
    token_ids: tuple[TokenIdChange, ...]
    tokens: tuple[TokenChange, ...]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        names = " and ".join(
            printable(facts.trace or facts.model or "a frame") for facts in (self.trace, self.other)
        )
        changed = self.overall.changed_decisions
        words = "no decisions" if changed is None else f"{changed:.2%} of decisions differ"
        return f"<Comparison of {names}: {words}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the object of the JSON report. Values are plain; unknown ones are None."""
        plain: dict[str, Any] = make_plain(self)
        return plain

    @classmethod
    def column_types(cls) -> Mapping[str, Any]:
        """Return the columns of the rows, in order, each with the type of its values."""
        return _find_columns("cells")

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row for each layer and group. Values are plain; unknown ones are None."""
        return self._list_rows("cells")

    def to_frame(self, of: TableName = "cells") -> pd.DataFrame:
        """Return one of the lists as a DataFrame.

        Args:
            of: `cells` for the rows of the CSV report, a layer and group each; `layers`, `groups`,
                `positions`; `token_ids` and `tokens` that changed most.

        Raises:
            UsageError: There is no such list.
        """
        choose_word(of, get_args(TableName), name="table of a comparison")
        return make_frame(self._list_rows(of), _find_columns(of))

    def _list_rows(self, of: TableName) -> list[dict[str, Any]]:
        columns = _find_columns(of)
        items = [_add_baseline(item) for item in self.to_dict()[of]]
        return [{name: item[name] for name in columns} for item in items]


def judge(overall: OverallAgreement) -> Verdict:
    """Return how much two traces differ."""
    changed, overlap = overall.changed_decisions, overall.overlap
    if changed is None or overlap is None:
        return Verdict.UNKNOWN
    if changed == 0:
        return Verdict.ALIKE if overall.first_choice_flips else Verdict.IDENTICAL
    baselines = [overall.baseline, *([] if overall.popularity is None else [overall.popularity])]
    by_chance = max(each.overlap for each in baselines if each.overlap is not None)
    if (overall.overlap_low if overall.overlap_low is not None else overlap) <= by_chance:
        return Verdict.UNRELATED
    low, high = overall.changed_decisions_low, overall.changed_decisions_high
    if (changed if high is None else high) < ENGINES_DIFFER:
        return Verdict.ALIKE
    return (
        Verdict.DIFFERENT
        if (changed if low is None else low) > ENGINES_DIFFER
        else (Verdict.AS_ENGINES)
    )


_KINDS: Mapping[str, Any] = {
    "cells": CellAgreement,
    "layers": LayerAgreement,
    "groups": GroupAgreement,
    "positions": PositionAgreement,
    "token_ids": TokenIdChange,
    "tokens": TokenChange,
}
_NOT_IN_FRAMES = ("baseline", "popularity", "before", "after")
# Prefix of the columns with a baseline's values.
_RANDOM = "random_"


def _find_columns(of: str) -> dict[str, Any]:
    types = get_type_hints(_KINDS[of])
    names = [field.name for field in fields(_KINDS[of]) if field.name not in _NOT_IN_FRAMES]
    shared = {field.name for field in fields(Agreement)}
    # What a row is about comes first.
    names.sort(key=shared.__contains__)
    columns = {name: types[name] for name in names}
    if "baseline" in types:
        columns |= {f"{_RANDOM}{field.name}": float | None for field in fields(Baseline)}
    return columns


def _add_baseline(item: dict[str, Any]) -> dict[str, Any]:
    baseline = item.get("baseline") or {}
    return {**item, **{f"{_RANDOM}{name}": value for name, value in baseline.items()}}
