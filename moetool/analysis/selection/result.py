"""The experts that were selected from a trace, and what the selection rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, get_type_hints

from moetool.analysis.selection.choices import Average, Score
from moetool.analysis.selection.freezing import FreezeList
from moetool.plain import Tabular, make_frame, make_plain
from moetool.printable import printable
from moetool.trace.facts import LayerFacts, TraceFacts
from moetool.wording import number_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SelectionBaseline:
    """The same figures for a uniform random router, which has the trace's decisions and weights.

    Attributes:
        score: Score of every expert.
        num_selected: Mean number of experts that its choice would have.
        num_missed: Experts without a token.
        overlap: Of the choices from two halves of the prompts.
    """

    score: float
    num_selected: float
    num_missed: float
    overlap: float | None


@dataclass(frozen=True)
class OverallBaseline:
    """The same figures over all layers for a uniform random router.

    Attributes:
        num_selected: Of all layers.
        num_missed: Of all layers.
        overlap: Mean of the layers' overlaps.
    """

    num_selected: float
    num_missed: float
    overlap: float | None


@dataclass(frozen=True)
class LayerSelection(LayerFacts):
    """The selected experts of one layer.

    Attributes:
        selected: Ids, the highest score first; none if no prompt has a decision in the layer.
        num_selected: Number of them.
        selected_score: Sum of their scores; unknown without decisions, like the next two.
        total_score: Sum of all scores.
        scores: Of every expert, with the four decimals that the choice is made from.
        assignments: Of every expert.
        gate_mass: Sum of every expert's weights; None if there are none.
        missed: Experts that no token chose.
        num_missed: Number of them.
        overlap: Mean share of the choice that is the same from both halves of the prompts, over
            random splits; None if there is one prompt only, or no prompts.
        baseline: None without decisions.
    """

    selected: tuple[int, ...]
    num_selected: int
    selected_score: float | None
    total_score: float | None
    scores: tuple[float, ...] | None
    assignments: tuple[int, ...]
    gate_mass: tuple[float, ...] | None
    missed: tuple[int, ...]
    num_missed: int
    overlap: float | None
    baseline: SelectionBaseline | None


@dataclass(frozen=True)
class PruningBaseline:
    """The same figures where experts of a uniform random router are dropped.

    Attributes:
        dropped_share: Share of its assignments that chose a dropped expert.
        overlap: Mean share of the dropped experts that two halves of its tokens would drop.
    """

    dropped_share: float | None
    overlap: float | None


@dataclass(frozen=True)
class LayerPruning:
    """The experts of one layer that stay.

    Attributes:
        stack: As in the trace's column.
        layer: As in the trace's column.
        module: Module path of the block, as llm-compressor names it.
        retained: Ids, ascending.
        dropped: Ids, ascending.
        dropped_share: Share of the assignments that chose a dropped expert; None without any.
        overlap: Mean share of the dropped experts that both halves of the prompts would drop; None
            if there is one prompt only, no prompts, or the score is not of the trace.
        baseline: The same of a uniform random router; None without decisions.
    """

    stack: str
    layer: int
    module: str
    retained: tuple[int, ...]
    dropped: tuple[int, ...]
    dropped_share: float | None
    overlap: float | None
    baseline: PruningBaseline | None


@dataclass(frozen=True)
class Pruning:
    """The experts that stay when a share of each layer's is dropped.

    Attributes:
        ratio: Share to drop.
        by: Score of which the smallest are dropped.
        num_groups: Groups that lose the same number of experts.
        num_dropped: Experts dropped from each layer, as many from all; None if layers differ.
        dropped_share: Mean of the layers' shares.
        overlap: Mean of the layers' overlaps.
        baseline: The same of a uniform random router.
        retained: As llm-compressor's report has them: by module path, the ids that stay.
        layers: Those with decisions.
    """

    ratio: float
    by: Score
    num_groups: int
    num_dropped: int | None
    dropped_share: float | None
    overlap: float | None
    baseline: PruningBaseline
    retained: Mapping[str, tuple[int, ...]]
    layers: tuple[LayerPruning, ...]


@dataclass(frozen=True)
class SelectionRow:
    """One row of the CSV report: an expert of a layer."""

    stack: str
    layer: int
    expert: int
    assignments: int
    gate_mass: float | None
    score: float | None
    place: int | None
    is_selected: bool
    is_retained: bool | None


@dataclass(frozen=True)
class Selection(Tabular):
    """The experts to fine-tune, as ESFT selects them, and those to keep when pruning.

    Attributes:
        trace: Facts about the trace.
        by: Score that the selection is made from.
        average: Average that the score is.
        top_p: Cumulative score at which the selection ends.
        domains: Domains whose prompts count; None for all.
        num_prompts: Prompts that count.
        experts: ESFT's own form: for every routed layer of the model, by its number as a string,
            the selected experts. After its stack and a dot, if the model has several stacks.
        shared_experts: Whether shared experts are to be trained as well.
        non_expert_modules: Whether all other modules are to be trained as well.
        layers: Those that were read.
        num_experts: Experts of the layers with decisions.
        num_selected: Those of them that are selected.
        num_missed: Those of them that no token chose.
        overlap: Mean of the layers' overlaps.
        baseline: The same of a uniform random router; None without decisions.
        pruning: If it was asked for.
        freeze_list: If it was asked for.
        notes: Sentences that a reader should know.
    """

    trace: TraceFacts
    by: Score
    average: Average
    top_p: float
    domains: tuple[str, ...] | None
    num_prompts: int
    experts: Mapping[str, tuple[int, ...]]
    shared_experts: bool
    non_expert_modules: bool
    layers: tuple[LayerSelection, ...]
    num_experts: int
    num_selected: int
    num_missed: int
    overlap: float | None
    baseline: OverallBaseline | None
    pruning: Pruning | None
    freeze_list: FreezeList | None
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        name = f" of {printable(self.trace.trace)}" if self.trace.trace else ""
        chosen = number_of(self.num_selected, "expert")
        layers = number_of(len(self.layers), "layer")
        return f"<Selection{name}: {chosen} in {layers}, by {self.by} to {self.top_p:g}>"

    def to_esft(self) -> dict[str, Any]:
        """Return the selection as ESFT's `expert_cfg.json` has it."""
        names = ("experts", "shared_experts", "non_expert_modules")
        return {name: make_plain(getattr(self, name)) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Return the object of the JSON report. Values are plain; unknown ones are None."""
        return {item.name: make_plain(getattr(self, item.name)) for item in fields(self)}

    @classmethod
    def column_types(cls) -> Mapping[str, Any]:
        """Return the columns of the rows, in order, each with the type of its values."""
        return get_type_hints(SelectionRow)

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row per layer and expert. Values are plain; unknown ones are None."""
        kept = {
            (layer.stack, layer.layer): set(layer.retained)
            for layer in (self.pruning.layers if self.pruning else ())
        }
        return [
            make_plain(_make_row(layer, expert, kept.get((layer.stack, layer.layer))))
            for layer in self.layers
            for expert in range(layer.num_experts)
        ]

    def to_frame(self) -> pd.DataFrame:
        """Return the rows of the CSV report as a DataFrame: one for each layer and expert."""
        return make_frame(self.to_rows(), self.column_types())


def _make_row(layer: LayerSelection, expert: int, kept: set[int] | None) -> SelectionRow:
    is_selected = expert in layer.selected
    return SelectionRow(
        stack=layer.stack,
        layer=layer.layer,
        expert=expert,
        assignments=layer.assignments[expert],
        gate_mass=None if layer.gate_mass is None else layer.gate_mass[expert],
        score=None if layer.scores is None else layer.scores[expert],
        place=layer.selected.index(expert) if is_selected else None,
        is_selected=is_selected,
        is_retained=None if kept is None else expert in kept,
    )
