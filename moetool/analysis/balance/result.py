"""The balance of a trace as a value: its layers, capacity and losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from moetool.analysis.balance.capacity.drops import Policy
from moetool.analysis.balance.evenness import Evenness
from moetool.analysis.balance.hot import HotExpert
from moetool.analysis.balance.losses import Loss
from moetool.choices import choose_word
from moetool.plain import Tabular, make_frame, make_plain
from moetool.printable import printable
from moetool.trace.facts import LayerFacts, TraceFacts
from moetool.wording import number_of

if TYPE_CHECKING:
    import pandas as pd

# Figures that every part of a trace has, each with that of a random router.
FIGURES = ("entropy", "cv", "gini", "max_violation", "jain", "num_dead")

TableName = Literal["layers", "experts", "capacity"]


@dataclass(frozen=True)
class Baseline(Evenness):
    """The figures that a uniform random router is expected to show on as many tokens.

    Attributes:
        load: Assignments of each expert: the mean load.
        max_violation_batch: As in `LayerBalance`.
        unused_per_prompt: As in `LayerBalance`.
    """

    load: float
    max_violation_batch: float | None = None
    unused_per_prompt: float | None = None


@dataclass(frozen=True)
class PartBalance(Evenness):
    """The balance of one layer over a part of the tokens.

    Attributes:
        name: The group or the phase.
        num_tokens: Decisions of the layer for its tokens.
        load: Assignments of each expert.
        dead: Experts that were never chosen.
        baseline: Of a uniform random router on as many tokens.
    """

    name: str
    num_tokens: int
    load: tuple[int, ...]
    dead: tuple[int, ...]
    baseline: Baseline


@dataclass(frozen=True)
class CapacityShare:
    """The share of assignments that experts of limited capacity would drop.

    Attributes:
        factor: Capacity factor.
        policy: Who comes first: `position` or `probability`.
        tokens_per_batch: As asked for, or the mean size of the batches.
        dropped_share: Dropped assignments over all.
        by_position: The same by decile of the place in the batch; None for deciles without tokens,
            and for all if it is unknown.
        baseline: Of a uniform random router: `dropped_share` and `by_position`.
    """

    factor: float
    policy: Policy
    tokens_per_batch: float | None
    dropped_share: float | None
    by_position: tuple[float | None, ...] | None
    baseline: DroppedBaseline


@dataclass(frozen=True)
class DroppedBaseline:
    """The shares that a uniform random router would drop; see `CapacityShare`."""

    dropped_share: float | None
    by_position: tuple[float | None, ...]


@dataclass(frozen=True)
class LayerShare:
    """A share of one layer at a capacity factor, and that of a uniform random router."""

    factor: float
    share: float | None
    baseline: float | None


@dataclass(frozen=True)
class LayerBalance(Evenness, LayerFacts):
    """The balance of one layer; None stands for what is unknown.

    Attributes:
        load: Assignments of each expert.
        dead: Experts that were never chosen.
        hot: Experts whose load is surely above that of any of a random router's, hottest first.
        max_violation_batch: Mean of `max_violation` over batches.
        prompt_cv: The cv that an even router would show because it routes whole prompts alike:
            square root of `E sum(variance of an expert's share over samples of prompts)`. None for
            fewer than two prompts.
        is_uneven: Whether cv is more than twice `prompt_cv` and twice that of a random router.
        num_prompts: Prompts in which an expert ran.
        prompts_choosing: Of these, how many chose each expert.
        unused_per_prompt: Mean number of experts that a prompt never chose.
        dropped: Share of the layer's assignments dropped at each capacity factor.
        expert_choice: Share of the layer's tokens that expert choice leaves without an expert.
        aux_loss: The layer's part of the loss `switch`; 1 if even.
        mean_squared: The layer's part of the loss `mean_squared`.
        z_loss: The layer's part of the loss `z_loss`.
        groups: By the column that groups tokens; empty if there is one group.
        phases: Prefill and decode; empty if the trace has one of them.
        baseline: Of a uniform random router on as many tokens.
    """

    load: tuple[int, ...]
    dead: tuple[int, ...]
    hot: tuple[HotExpert, ...]
    max_violation_batch: float | None
    prompt_cv: float | None
    is_uneven: bool | None
    num_prompts: int | None
    prompts_choosing: tuple[int, ...] | None
    unused_per_prompt: float | None
    dropped: tuple[LayerShare, ...]
    expert_choice: tuple[LayerShare, ...]
    aux_loss: float | None
    mean_squared: float | None
    z_loss: float | None
    groups: tuple[PartBalance, ...]
    phases: tuple[PartBalance, ...]
    baseline: Baseline


@dataclass(frozen=True)
class AcrossLayers:
    """Percentiles of a figure over the layers in which an expert ran."""

    figure: str
    p50: float
    p75: float
    p90: float
    p95: float


@dataclass(frozen=True)
class PartSummary:
    """The balance of a group or a phase over all layers in which an expert ran for it.

    Attributes:
        part: `group` or `phase`.
        name: Of the group or phase.
        num_tokens: Largest number of decisions of a layer for its tokens.
        cv: Mean over layers.
        random_cv: The same of a uniform random router.
        max_violation: Mean over layers.
        random_max_violation: The same of a uniform random router.
        num_dead: Experts of all layers that were never chosen.
        random_num_dead: Expected of a uniform random router.
    """

    part: Literal["group", "phase"]
    name: str
    num_tokens: int
    cv: float | None
    random_cv: float | None
    max_violation: float | None
    random_max_violation: float | None
    num_dead: int
    random_num_dead: float


@dataclass(frozen=True)
class ExpertChoice:
    """Expert choice as a counterfactual.

    Attributes:
        factor: Capacity factor.
        tokens_per_batch: As asked for, or the mean size of the batches.
        share_without_expert: Tokens that no expert takes, over all.
        baseline: The same for experts that take tokens at random.
    """

    factor: float
    tokens_per_batch: float | None
    share_without_expert: float | None
    baseline: float | None


@dataclass(frozen=True)
class Balance(Tabular):
    """The evenness of all layers, and what follows from it.

    Attributes:
        trace: Facts about the trace.
        by: Column of the groups.
        layers: In the order of stack and layer.
        across_layers: Percentiles of the figures over layers.
        parts: Groups, then phases, each over all layers.
        losses: Auxiliary losses over all layers.
        batches: `prompt` if each prompt is a batch, `tokens` for a number of consecutive tokens,
            `step` for the steps of a load table; None for counts without them.
        capacity: Shares of dropped assignments over all layers; empty without batches.
        expert_choice: Empty where no probabilities were recorded.
        notes: What was inferred, and why something is unknown: a sentence each.
    """

    trace: TraceFacts
    by: str
    layers: tuple[LayerBalance, ...]
    across_layers: tuple[AcrossLayers, ...]
    parts: tuple[PartSummary, ...]
    losses: tuple[Loss, ...]
    batches: Literal["prompt", "tokens", "step"] | None
    capacity: tuple[CapacityShare, ...]
    expert_choice: tuple[ExpertChoice, ...]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        name = f" of {printable(self.trace.trace)}" if self.trace.trace else ""
        known = [layer.entropy for layer in self.layers if layer.entropy is not None]
        spread = f", entropy {min(known):.3f} to {max(known):.3f}" if known else ""
        dead = sum(len(layer.dead) for layer in self.layers)
        layers = number_of(len(self.layers), "layer")
        return f"<Balance{name}: {layers}{spread}, {number_of(dead, 'dead expert')}>"

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
            "top_k": int,
            "part": str,
            "name": str | None,
            "num_tokens": int,
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


@dataclass(frozen=True)
class _ExpertRow:
    stack: str
    layer: int
    expert: int
    load: int
    over_mean: float | None
    num_prompts: int | None
