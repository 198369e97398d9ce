"""The answer to what a cache of experts on the GPU is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from moetool.analysis.caching.simulation.policies import Policy
from moetool.choices import choose_word
from moetool.plain import Tabular, make_frame, make_plain
from moetool.printable import printable
from moetool.trace.decisions import PHASES
from moetool.trace.facts import LayerFacts, TraceFacts

if TYPE_CHECKING:
    import pandas as pd

PREFILL, DECODE = PHASES

# Lists of a result that are tables.
TableName = Literal["policies", "layer_policies", "touched", "layer_touched"]


@dataclass(frozen=True)
class HitBaseline:
    """The hit rate that a uniform random router would have."""

    hit_rate: float | None


@dataclass(frozen=True)
class PolicyBaseline:
    """The worth of the same cache for a uniform random router."""

    hit_rate: float | None
    bytes_per_token: float | None


@dataclass(frozen=True)
class PolicyResult:
    """The worth of one policy with one budget in one phase, over all layers.

    Attributes:
        policy: `static`, `lru`, `lfu` or `belady`.
        budget: As it was asked for.
        phase: `prefill` or `decode`.
        experts_per_layer: Experts that stay on the GPU, the mean over layers.
        gpu_bytes: Their size in all layers; None if the size of an expert is unknown.
        hit_rate: Share of requests whose expert is on the GPU. None without requests, or where
            nothing is left to fit on.
        hit_rate_low: Lower limit of its 95 % interval over prompts.
        hit_rate_high: Upper limit.
        bytes_per_token: Bytes of experts that are moved to the GPU, per token.
        baseline: Of a uniform random router, of which each token chooses as many experts.
    """

    policy: str
    budget: str
    phase: str
    experts_per_layer: float
    gpu_bytes: int | None
    hit_rate: float | None
    hit_rate_low: float | None
    hit_rate_high: float | None
    bytes_per_token: float | None
    baseline: PolicyBaseline


@dataclass(frozen=True)
class GroupResult:
    """The worth of one policy with one budget in one phase, for the steps of one group.

    The caches are those of the whole trace: the steps of other groups come between.

    Attributes:
        group: Value of the column that groups the steps.
        num_tokens: Tokens of the group in the phase.
        baseline: Of a random router: the hit rate is that of the phase in the whole trace.
    """

    group: str
    policy: str
    budget: str
    phase: str
    num_tokens: int
    hit_rate: float | None
    hit_rate_low: float | None
    hit_rate_high: float | None
    bytes_per_token: float | None
    baseline: PolicyBaseline


@dataclass(frozen=True)
class GroupHits:
    """The hit rates of all policies for the steps of one group, at one budget and in one phase.

    Attributes:
        hit_rates: By policy.
        bytes_per_token: Of the policy of the verdict.
        baseline: Hit rate of that policy for a random router.
    """

    group: str
    num_tokens: int
    hit_rates: Mapping[str, float | None]
    bytes_per_token: float | None
    baseline: HitBaseline


@dataclass(frozen=True)
class LayerPolicyResult:
    """The hit rate of one policy with one budget in one phase, in one layer.

    Attributes:
        num_kept: Experts that stay on the GPU.
    """

    policy: str
    budget: str
    phase: str
    num_kept: int
    hit_rate: float | None
    baseline: HitBaseline


# Of a size and kind, in each layer: fewer are left out of the page.
ENOUGH_BATCHES = 5


@dataclass(frozen=True)
class TouchedBaseline:
    """The distinct experts that a uniform random router would need."""

    experts: float


@dataclass(frozen=True)
class Touched:
    """Distinct experts that the tokens of a batch need together, the mean over batches.

    Attributes:
        batch_size: Tokens.
        of: `one text` for consecutive tokens of a prompt, `several texts` for the n-th tokens of
            as many prompts.
        num_batches: Batches in all layers.
        fewest_batches: Batches in the layer that has the fewest.
        experts: Distinct experts per layer.
        by_load: Of tokens that choose independently with the load of the trace,
            `sum_e (1 - (1 - p_e)^B)`.
        baseline: Of a uniform random router whose tokens choose as many experts each: the mean over
            batches of `E (1 - prod(1 - s / E))`, which is `E (1 - (1 - k/E)^B)` if all choose k.
    """

    batch_size: int
    of: str
    num_batches: int
    fewest_batches: int
    experts: float
    by_load: float
    baseline: TouchedBaseline

    @property
    def has_enough_batches(self) -> bool:
        """Whether the mean is over more than a few batches, which may be those of one text."""
        return self.fewest_batches >= ENOUGH_BATCHES


@dataclass(frozen=True)
class LayerCaching(LayerFacts):
    """The worth of a cache in one layer.

    Attributes:
        expert_bytes: Size of an expert; None if unknown.
        policies: One for each policy, budget and phase.
        touched: One for each batch size and kind of batch.
    """

    expert_bytes: int | None
    policies: tuple[LayerPolicyResult, ...]
    touched: tuple[Touched, ...]


@dataclass(frozen=True)
class PhaseSize:
    """The tokens of a phase, and the experts that they need.

    Attributes:
        phase: `prefill` or `decode`.
        num_steps: Passes through the model, one for each batch.
        requests_per_token: Distinct experts of all layers that a step needs, per token.
        uncached_bytes_per_token: Bytes that are moved per token if no expert stays on the GPU.
    """

    phase: str
    num_tokens: int
    num_steps: int
    requests_per_token: float
    uncached_bytes_per_token: float | None


@dataclass(frozen=True)
class Caching(Tabular):
    """The worth of keeping some experts on the GPU.

    Attributes:
        trace: Facts about the trace.
        by: Column of the groups; None if there are none.
        tokens_per_batch: Tokens of a prompt that pass together; None for all of them.
        has_generated_tokens: Whether the trace has tokens that the model wrote. Otherwise those of
            prompts, one by one, stand for them in decode.
        phases: Of the trace, or simulated.
        policies: One for each policy, budget and phase.
        groups: The same for each group.
        touched: One for each batch size and kind of batch.
        layers: In the order of stack and layer.
        notes: What was assumed, and why a number is None: a sentence each.
    """

    trace: TraceFacts
    by: str | None
    tokens_per_batch: int | None
    has_generated_tokens: bool
    phases: tuple[PhaseSize, ...]
    policies: tuple[PolicyResult, ...]
    groups: tuple[GroupResult, ...]
    touched: tuple[Touched, ...]
    layers: tuple[LayerCaching, ...]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        name = printable(self.trace.trace or self.trace.model or "a frame")
        best = [item for item in self.policies if item.phase == DECODE and item.hit_rate]
        words = ", ".join(
            f"{item.policy} {item.budget}: {item.hit_rate:.0%}"
            for item in best[:4]
            if item.hit_rate
        )
        return f"<Caching of {name}: {words or 'no decoded tokens'}>"

    @property
    def verdict(self) -> tuple[PolicyResult, PolicyResult | None] | None:
        """The best policy that can be run in decoding, at the middle budget, and the optimum there.

        The optimum is None where prefill is in the same simulation: it has the most hits of both
        phases together. None if no token needs an expert.
        """
        known = [
            item for item in self.policies if item.phase == DECODE and item.hit_rate is not None
        ]
        kept = sorted({item.experts_per_layer for item in known})
        if not kept:
            return None
        middle = kept[(len(kept) - 1) // 2]
        known = [item for item in known if item.experts_per_layer == middle]
        # With both phases in one simulation, the optimum of both is not one of decode alone.
        bound = next((item for item in known if item.policy == Policy.BELADY), None)
        online = [item for item in known if item is not bound and item.policy != Policy.BELADY]
        best = max(online, key=lambda item: item.hit_rate or 0.0)
        return best, None if self.has_generated_tokens else bound

    def list_groups_of_verdict(self) -> list[GroupHits]:
        """Return the hits of each group in the phase and at the budget of the verdict."""
        if self.verdict is None:
            return []
        best, _ = self.verdict
        found: dict[str, list[GroupResult]] = {}
        for item in self.groups:
            if (item.phase, item.budget) == (best.phase, best.budget):
                found.setdefault(item.group, []).append(item)
        listed = []
        for name, items in found.items():
            mine = next(item for item in items if item.policy == best.policy)
            listed.append(
                GroupHits(
                    group=name,
                    num_tokens=mine.num_tokens,
                    hit_rates={item.policy: item.hit_rate for item in items},
                    bytes_per_token=mine.bytes_per_token,
                    baseline=HitBaseline(mine.baseline.hit_rate),
                )
            )
        return listed

    def list_by_budget(self, phase: str) -> list[PolicyResult]:
        """Return the policies of a phase, those of one budget together, the smallest first."""
        mine = [item for item in self.policies if item.phase == phase]
        first = {item.budget: index for index, item in reversed(list(enumerate(mine)))}
        return sorted(mine, key=lambda item: (item.experts_per_layer, first[item.budget]))

    def to_dict(self) -> dict[str, Any]:
        """Return the object of the JSON report. Values are plain; unknown ones are None."""
        plain: dict[str, Any] = make_plain(self)
        return plain

    @classmethod
    def column_types(cls) -> Mapping[str, Any]:
        """Return the columns of the rows, in order, each with the type of its values."""
        return {"group": str | None, "num_tokens": int, **_type_columns(PolicyResult)}

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row for each policy, budget and phase, then the same of each group."""
        sizes = {size.phase: size.num_tokens for size in self.phases}
        rows = [
            {"group": None, "num_tokens": sizes[item.phase], **_flatten(item)}
            for item in self.policies
        ]
        wholes = {(item.policy, item.budget, item.phase): item for item in self.policies}
        for group in self.groups:
            whole = wholes[group.policy, group.budget, group.phase]
            kept = {"experts_per_layer": whole.experts_per_layer, "gpu_bytes": whole.gpu_bytes}
            rows.append({**_flatten(group), **kept})
        return rows

    def to_frame(self, of: TableName = "policies") -> pd.DataFrame:
        """Return one of the lists as a DataFrame.

        Args:
            of: `policies` for the rows of the CSV report, `touched` for the batch sizes;
                `layer_policies` and `layer_touched` for the same by layer.

        Raises:
            UsageError: There is no such list.
        """
        choose_word(of, get_args(TableName), name="table of a cache")
        if of == "policies":
            return make_frame(self.to_rows(), self.column_types())
        if of == "touched":
            return make_frame([_flatten(item) for item in self.touched], _type_columns(Touched))
        name = of.removeprefix("layer_")
        rows = [
            {"stack": layer.stack, "layer": layer.layer, **_flatten(item)}
            for layer in self.layers
            for item in getattr(layer, name)
        ]
        kind = LayerPolicyResult if name == "policies" else Touched
        return make_frame(rows, {"stack": str, "layer": int, **_type_columns(kind)})


def _flatten(item: object) -> dict[str, Any]:
    """Return the fields as columns; those of the baseline are named `random_…`."""
    row: dict[str, Any] = make_plain(item)
    return row | {f"random_{name}": value for name, value in row.pop("baseline").items()}


def _type_columns(kind: Any) -> dict[str, Any]:
    types = get_type_hints(kind)
    baseline = get_type_hints(types.pop("baseline"))
    return types | {f"random_{name}": each for name, each in baseline.items()}
