"""The balance of a trace as a value: its layers, capacity and losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from moetool.analysis.balance.capacity.result import CapacityShare, ExpertChoice
from moetool.analysis.balance.evenness import find_over_mean
from moetool.analysis.balance.layer_result import LayerBalance, PartBalance
from moetool.analysis.balance.losses import Loss
from moetool.choices import choose_word
from moetool.plain import Tabular, make_frame, make_plain
from moetool.printable import printable
from moetool.trace.facts import TraceFacts
from moetool.wording import number_of

if TYPE_CHECKING:
    import pandas as pd

# Figures that every part of a trace has, each with that of a random router.
FIGURES = ("entropy", "cv", "gini", "max_violation", "jain", "num_dead")

TableName = Literal["layers", "experts", "capacity"]


@dataclass(frozen=True)
class LargestBaseline:
    """The largest figures of all layers that a uniform random router is expected to show.

    Attributes:
        max_violation: None if it is unknown in a layer, or no expert ran.
    """

    max_violation: float | None


@dataclass(frozen=True)
class AcrossLayers:
    """Percentiles of a figure over the layers in which an expert ran."""

    figure: str
    p50: float
    p75: float
    p90: float
    p95: float


@dataclass(frozen=True)
class PartBaseline:
    """The figures of a group or a phase that a uniform random router is expected to show."""

    cv: float | None
    max_violation: float | None
    num_dead: float


@dataclass(frozen=True)
class PartSummary:
    """The balance of a group or a phase over all layers in which an expert ran for it.

    Attributes:
        part: `group` or `phase`.
        name: Of the group or phase.
        num_tokens: Largest number of decisions of a layer for its tokens.
        cv: Mean over layers.
        max_violation: Mean over layers.
        num_dead: Experts of all layers that were never chosen.
        baseline: Of a uniform random router.
    """

    part: Literal["group", "phase"]
    name: str
    num_tokens: int
    cv: float | None
    max_violation: float | None
    num_dead: int
    baseline: PartBaseline


@dataclass(frozen=True)
class Verdict:
    """The answer in a few numbers, over the layers in which an expert ran.

    Attributes:
        layers: These layers.
        num_uneven: Of these, surely uneven ones; None where a layer's is unknown.
        max_violation: The smallest and the largest of all layers.
        max_violation_batch: The same of means over batches; None without batches.
        num_experts: Experts of all layers.
        num_dead: Of these, experts that were never chosen.
        random_max_violation: The largest of all layers expected of a random router; None if it is
            unknown.
        random_max_violation_batch: The largest one that is expected of a layer, over batches.
        random_num_dead: Expected of a random router; None if it is unknown.
    """

    layers: tuple[LayerBalance, ...]
    num_uneven: int | None
    max_violation: tuple[float, float]
    max_violation_batch: tuple[float, float] | None
    num_experts: int
    num_dead: int
    random_max_violation: float | None
    random_max_violation_batch: float | None
    random_num_dead: float | None

    @property
    def max_over_mean(self) -> float | None:
        """The largest load of an expert over the mean load of its layer."""
        return find_over_mean(self.max_violation[1])

    @property
    def random_max_over_mean(self) -> float | None:
        """The largest one expected of a random router; None if it is unknown."""
        return find_over_mean(self.random_max_violation)


@dataclass(frozen=True)
class Balance(Tabular):
    """The evenness of all layers, and what follows from it.

    Attributes:
        trace: Facts about the trace.
        by: Column of the groups; None for a load table.
        layers: In the order of stack and layer.
        across_layers: Percentiles of the figures over layers.
        parts: Groups, then phases, each over all layers.
        losses: Auxiliary losses over all layers.
        batches: `prompt` if each prompt is a batch, `tokens` for a number of consecutive tokens,
            `step` for the steps of a load table; None for counts without them.
        capacity: Shares of dropped assignments over all layers; empty without batches.
        expert_choice: Empty where no probabilities were recorded.
        baseline: Of a uniform random router, over all layers.
        notes: What was inferred, and why something is unknown: a sentence each.
    """

    trace: TraceFacts
    by: str | None
    layers: tuple[LayerBalance, ...]
    across_layers: tuple[AcrossLayers, ...]
    parts: tuple[PartSummary, ...]
    losses: tuple[Loss, ...]
    batches: Literal["prompt", "tokens", "step"] | None
    capacity: tuple[CapacityShare, ...]
    expert_choice: tuple[ExpertChoice, ...]
    baseline: LargestBaseline
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        name = f" of {printable(self.trace.trace)}" if self.trace.trace else ""
        known = [layer.entropy for layer in self.layers if layer.entropy is not None]
        spread = f", entropy {min(known):.3f} to {max(known):.3f}" if known else ""
        dead = sum(len(layer.dead) for layer in self.layers)
        layers = number_of(len(self.layers), "layer")
        return f"<Balance{name}: {layers}{spread}, {number_of(dead, 'dead expert')}>"

    @property
    def verdict(self) -> Verdict | None:
        """The answer in a few numbers; None if no expert ran."""
        layers = tuple(layer for layer in self.layers if layer.max_violation is not None)
        if not layers:
            return None
        uneven = [layer.is_uneven for layer in layers]
        dead = [layer.baseline.num_dead for layer in layers]
        return Verdict(
            layers=layers,
            num_uneven=None if None in uneven else uneven.count(True),
            max_violation=_span([layer.max_violation for layer in layers]) or (0.0, 0.0),
            max_violation_batch=_span([layer.max_violation_batch for layer in layers]),
            num_experts=sum(layer.num_experts for layer in layers),
            num_dead=sum(len(layer.dead) for layer in layers),
            random_max_violation=self.baseline.max_violation,
            random_max_violation_batch=_find_largest(
                [each.baseline.max_violation_batch for each in layers]
            ),
            random_num_dead=None if None in dead else sum(number or 0.0 for number in dead),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the object of the JSON report. Values are plain; unknown ones are None."""
        plain: dict[str, Any] = make_plain(self)
        return plain

    @classmethod
    def column_types(cls) -> Mapping[str, Any]:
        """Return the columns of the rows, in order, each with the type of its values."""
        figures = dict.fromkeys(FIGURES, float | None)
        return {
            "stack": str,
            "layer": int,
            "num_experts": int,
            "top_k": int | None,
            "part": str,
            "name": str | None,
            "num_tokens": int | None,
            **{
                column: kind
                for name, kind in figures.items()
                for column in (name, f"random_{name}")
            },
        }

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row per layer and part: all tokens, each group, each phase."""
        rows = []
        for layer in self.layers:
            parts: list[tuple[str, str | None, LayerBalance | PartBalance]] = [("all", None, layer)]
            parts += [("group", part.name, part) for part in layer.groups]
            parts += [("phase", part.name, part) for part in layer.phases]
            for part, name, figures in parts:
                row: dict[str, Any] = {
                    "stack": layer.stack,
                    "layer": layer.layer,
                    "num_experts": layer.num_experts,
                    "top_k": layer.top_k,
                    "part": part,
                    "name": name,
                    "num_tokens": figures.num_tokens,
                }
                for figure in FIGURES:
                    row[figure] = make_plain(getattr(figures, figure))
                    row[f"random_{figure}"] = make_plain(getattr(figures.baseline, figure))
                rows.append(row)
        return rows

    def to_frame(self, of: TableName = "layers") -> pd.DataFrame:
        """Return one of the tables as a DataFrame.

        Args:
            of: `layers` for the rows of the CSV report, `experts` for the load of each expert, or
                `capacity` for the shares dropped over all layers.

        Raises:
            UsageError: There is no such table.
        """
        choose_word(of, get_args(TableName), name="table of a balance")
        if of == "layers":
            return make_frame(self.to_rows(), self.column_types())
        if of == "experts":
            return make_frame(self._list_experts(), get_type_hints(_ExpertRow))
        names = ("factor", "policy", "tokens_per_batch", "dropped_share")
        rows = [
            {
                **{name: getattr(share, name) for name in names},
                "random_dropped_share": share.baseline.dropped_share,
            }
            for share in self.capacity
        ]
        kinds = {"factor": float, "policy": str, "tokens_per_batch": float | None}
        shares = {"dropped_share": float | None, "random_dropped_share": float | None}
        return make_frame(rows, {**kinds, **shares})

    def _list_experts(self) -> list[dict[str, Any]]:
        rows = []
        for layer in self.layers:
            mean = sum(layer.load) / layer.num_experts
            for expert, load in enumerate(layer.load):
                prompts = layer.prompts_choosing
                rows.append(
                    make_plain(
                        _ExpertRow(
                            stack=layer.stack,
                            layer=layer.layer,
                            expert=expert,
                            load=load,
                            over_mean=load / mean if mean else None,
                            num_prompts=prompts[expert] if prompts is not None else None,
                        )
                    )
                )
        return rows


def _span(values: Sequence[float | None]) -> tuple[float, float] | None:
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else None


def _find_largest(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None


@dataclass(frozen=True)
class _ExpertRow:
    stack: str
    layer: int
    expert: int
    load: int
    over_mean: float | None
    num_prompts: int | None
