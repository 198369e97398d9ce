"""The answer of `moetool specialize`: per layer whether, per domain and expert how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from moetool.analysis.specialization.lift import DomainExpert
from moetool.analysis.specialization.verdict import Verdict
from moetool.analysis.statistics.discoveries import FALSE_DISCOVERY_RATE
from moetool.choices import choose_word
from moetool.plain import Tabular, flat_types, make_flat, make_frame, make_plain
from moetool.printable import printable
from moetool.trace.facts import LayerFacts, TraceFacts
from moetool.wording import number_of

if TYPE_CHECKING:
    import pandas as pd

# Lists of a result that are tables.
TableName = Literal["experts", "layers", "domains", "divergences", "repetition"]


@dataclass(frozen=True)
class LayerBaseline:
    """Figures of a uniform random router that runs as many experts for each token.

    Attributes:
        mutual_information_nats: To first order, as in `decision_sizes`. None where counts alone
            don't say how many experts each decision ran.
        same_domain_overlap: None where it was not measured, like the following.
        other_domain_overlap: Both are `top_k / num_experts` if all decisions run top-k experts.
    """

    mutual_information_nats: float | None
    same_domain_overlap: float | None = None
    other_domain_overlap: float | None = None


@dataclass(frozen=True)
class LayerSpecialization(LayerFacts):
    """Information that one layer's choice of expert carries about the domain.

    The conditional figures take only tokens that domains share: those whose id occurs in at least
    two domains. They are None where the trace has no token ids, or domains share too few.

    Attributes:
        mutual_information_nats: Between expert and domain over assignments:
            `H(expert) + H(domain) - H(expert, domain)`.
            None where no expert ever ran, like the following fields.
        null_nats: Its mean when the prompts' labels are permuted.
        excess_nats: The difference: the part that the domains explain.
        normalized: `excess_nats / H(domain)`, 1 if the expert determines the domain. None also
            where experts ran for one domain only.
        p_value: Share of permutations that reach the observed value, the observation counted as
            one: `(1 + #{null >= observed}) / (1 + permutations)`.
        q_value: The same with the false discovery rate over all layers controlled (Benjamini and
            Hochberg 1995).
        shared_share: Share of the sampled tokens whose id occurs in at least two domains.
        conditional_information_nats: Between expert and domain, given the token id.
        conditional_null_nats: Its mean when domains are permuted among the prompts that use the
            same token id about as often.
        conditional_excess_nats: The difference: what is left when vocabulary is known.
        conditional_normalized: `conditional_excess_nats / H(domain | token id)`.
        same_domain_overlap: Share of experts that a token has in common with the same token id in
            another prompt of its domain.
        other_domain_overlap: The same for prompts of two domains. A router that looks at the token
            alone gives both the same value.
        conditional_p_value: Share of random signs of the prompts that reach the difference of
            these overlaps; see `vocabulary`.
        conditional_q_value: The same with the false discovery rate over all layers controlled.
        baseline: Figures of a uniform random router; None where no expert ever ran.
    """

    mutual_information_nats: float | None
    null_nats: float | None
    excess_nats: float | None
    normalized: float | None
    p_value: float | None
    q_value: float | None = None
    shared_share: float | None = None
    conditional_information_nats: float | None = None
    conditional_null_nats: float | None = None
    conditional_excess_nats: float | None = None
    conditional_normalized: float | None = None
    same_domain_overlap: float | None = None
    other_domain_overlap: float | None = None
    conditional_p_value: float | None = None
    conditional_q_value: float | None = None
    baseline: LayerBaseline | None = None

    @property
    def is_significant(self) -> bool:
        """Whether the use of experts differs between domains, beyond chance."""
        return is_small(self.q_value)


@dataclass(frozen=True)
class DomainSize:
    """The size of the traced part of a domain."""

    domain: str
    prompts: int
    tokens: int


@dataclass(frozen=True)
class DomainExpertTest(DomainExpert):
    """The use of one expert by one domain, and whether it could be chance.

    The score behind the p-values is the number of assignments beyond the expert's share of all
    tokens, over its standard deviation when the prompts' labels are permuted.

    Attributes:
        p_value: Share of permutations that reach the absolute score, the observation counted as
            one. None where the expert was never chosen, like the following fields.
        q_value: The same with the false discovery rate over all domains, layers and experts
            controlled (Benjamini and Hochberg 1995).
        familywise_p_value: Share of permutations whose largest absolute score over all domains,
            layers and experts reaches this one (Westfall and Young 1993).
        shared_share: Share of the domain's tokens that choose the expert, among sampled tokens whose
            id occurs in other domains as well. None where there are none, like the following.
        share_elsewhere: The same if each of these tokens chose as its id does in other domains:
            the share that vocabulary explains.
        elsewhere_p_value: Share of random signs of the prompts with a difference, anywhere, as many
            standard errors from zero.
    """

    p_value: float | None
    q_value: float | None
    familywise_p_value: float | None
    shared_share: float | None = None
    share_elsewhere: float | None = None
    elsewhere_p_value: float | None = None

    @property
    def is_domain_expert(self) -> bool:
        """Whether the domain uses the expert more than all tokens do, beyond chance."""
        return is_small(self.q_value) and self.lift is not None and self.lift > 1

    @property
    def is_certain_expert(self) -> bool:
        """Whether it does so by more than any domain and expert would by chance."""
        return is_small(self.familywise_p_value) and self.lift is not None and self.lift > 1

    @property
    def is_beyond_vocabulary(self) -> bool:
        """Whether the domain uses the expert more than its token ids do elsewhere."""
        return (
            self.is_certain_expert
            and is_small(self.elsewhere_p_value)
            and (self.shared_share or 0) > (self.share_elsewhere or 0)
        )


def is_small(value: float | None) -> bool:
    """Return whether a p-value or q-value is known and small."""
    return value is not None and value <= FALSE_DISCOVERY_RATE


@dataclass(frozen=True)
class DivergenceBaseline:
    """A divergence by chance.

    Attributes:
        divergence_nats: To first order, as in `decision_sizes`; None where a domain has no
            assignment, or counts alone don't say how many experts each decision ran.
    """

    divergence_nats: float | None


@dataclass(frozen=True)
class Divergence:
    """The Jensen-Shannon divergence between two domains' use of a layer's experts.

    It is `H((a + b) / 2) - (H(a) + H(b)) / 2` in nats, for the shares a and b of assignments: 0 for
    equal use, `ln 2` for no common expert. None where a domain has no assignment.

    Attributes:
        divergence_nats: As observed.
        null_nats: Its mean when the labels of the prompts of both domains are permuted.
        excess_nats: The difference, without the bias of small samples.
        baseline: Of a uniform random router that runs as many experts.
    """

    stack: str
    layer: int
    domain: str
    other: str
    divergence_nats: float | None
    null_nats: float | None
    excess_nats: float | None
    baseline: DivergenceBaseline


@dataclass(frozen=True)
class RepeatedShares:
    """Shares of consecutive tokens under a router without memory; see `Repetition`."""

    first: float | None
    any: float | None
    overlap: float | None


@dataclass(frozen=True)
class Repetition:
    """The share of consecutive tokens that are given the same experts (Mixtral, table 5).

    None where there are no consecutive tokens, or no first choice is known.

    Attributes:
        domain: None for all domains together.
        num_pairs: Consecutive tokens of a prompt.
        first: Share of pairs with the same first choice.
        any: Share of pairs with at least one expert in common.
        overlap: Mean number of experts in common, over top-k.
        baseline: Under a uniform random router that runs as many experts for each token: `1 / E`,
            `1 - C(E - k, k) / C(E, k)` and `k / E` if these are always k of E.
        shuffled: For the domain's tokens in any order: the sum of squared shares of the experts
            among first choices; the share among random pairs of sampled tokens; the sum of squared
            shares of decisions that choose the expert, over top-k.
    """

    stack: str
    layer: int
    domain: str | None
    num_pairs: int
    first: float | None
    any: float | None
    overlap: float | None
    baseline: RepeatedShares
    shuffled: RepeatedShares


@dataclass(frozen=True)
class Specialization(Tabular):
    """The whole answer: per layer whether, per domain and expert how.

    Attributes:
        domains: In alphabetical order.
        layers: In the order of the trace.
        experts: Every domain and expert of every layer.
        most_lifted: Of these, the over-represented ones of each domain, the surest first.
        divergences: Every pair of domains in every layer, unless there are too many domains.
        repetition: Every layer, over all domains and for each; empty for counts alone.
        num_permutations: Permutations of the prompts' labels behind the p-values.
        seed: Random seed of the permutations.
        notes: Warnings, what was inferred, and why a number is None: a sentence each.
        trace: Facts about the trace; None for counts alone.
        by: The column that holds the domains.
    """

    domains: tuple[DomainSize, ...]
    layers: tuple[LayerSpecialization, ...]
    experts: tuple[DomainExpertTest, ...]
    most_lifted: Mapping[str, Sequence[DomainExpertTest]]
    verdict: Verdict
    divergences: tuple[Divergence, ...]
    repetition: tuple[Repetition, ...]
    num_permutations: int
    seed: int
    notes: tuple[str, ...]
    trace: TraceFacts | None = None
    by: str = "domain"

    def __repr__(self) -> str:
        name = f" of {printable(self.trace.trace)}" if self.trace and self.trace.trace else ""
        known = [layer.p_value for layer in self.layers if layer.p_value is not None]
        domains = number_of(len(self.domains), "domain")
        numbers = f"{domains}, {number_of(len(self.layers), 'layer')}"
        p_values = f", p from {min(known):.2g} to {max(known):.2g}" if known else ""
        return f"<Specialization{name}: {numbers}{p_values}>"

    @property
    def mean_divergences(self) -> dict[tuple[str, str], float | None]:
        """The excess divergence of each pair of domains, its mean over the layers that know it."""
        found: dict[tuple[str, str], list[float]] = {}
        for each in self.divergences:
            known = found.setdefault((each.domain, each.other), [])
            if each.excess_nats is not None:
                known.append(each.excess_nats)
        return {
            pair: sum(values) / len(values) if values else None for pair, values in found.items()
        }

    @property
    def strongest(self) -> DomainExpertTest | None:
        """The largest lift that is certain, beyond vocabulary if any is; None if there is none."""
        certain = [cell for cell in self.experts if cell.is_certain_expert]
        beyond = [cell for cell in certain if cell.is_beyond_vocabulary]
        return max(beyond or certain, key=lambda cell: cell.lift or 0.0, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return the object of the JSON report. Values are plain; unknown ones are None."""
        names = (
            "trace",
            "by",
            "num_permutations",
            "seed",
            "verdict",
            "domains",
            "layers",
            "experts",
            "divergences",
            "repetition",
            "notes",
        )
        return {name: make_plain(getattr(self, name)) for name in names}

    @classmethod
    def column_types(cls) -> Mapping[str, Any]:
        """Return the columns of the rows, in order, each with the type of its values."""
        return get_type_hints(DomainExpertTest)

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row per domain, layer and expert. Values are plain; unknown ones are None."""
        return [make_plain(cell) for cell in self.experts]

    def to_frame(self, of: TableName = "experts") -> pd.DataFrame:
        """Return one of the lists as a DataFrame with a column for each attribute of its items.

        Args:
            of: `experts` for the rows of the CSV report, `layers` for p-values, or `domains`,
                `divergences` or `repetition`.

        Raises:
            UsageError: There is no such list.
        """
        choose_word(of, get_args(TableName), name="table of a specialization")
        kinds = {
            "experts": DomainExpertTest,
            "layers": LayerSpecialization,
            "domains": DomainSize,
            "divergences": Divergence,
            "repetition": Repetition,
        }
        rows = [make_flat(item) for item in getattr(self, of)]
        return make_frame(rows, flat_types(kinds[of]))
