"""Specialization of experts by domain, beyond what the choice of prompts explains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.specialization.lift import DomainExpert, find_most_lifted, measure_lift
from moetool.choices import choose_word
from moetool.errors import InputError
from moetool.plain import Tabular, make_frame, make_plain
from moetool.printable import printable
from moetool.trace.reading.counts import ExpertCounts, LayerCounts
from moetool.wording import number_of

if TYPE_CHECKING:
    import pandas as pd

# Lists of a result that are tables.
TableName = Literal["experts", "layers", "domains"]

# Permutations drawn at a time, fewer if there are many prompts: bounds the permuted counts.
_BATCH = 64
_CELLS_AT_ONCE = 2**24
# More would neither fit into memory nor be read.
_MOST_CELLS = 2**27
_MOST_EXPERTS = 500_000
# With fewer prompts per domain, intervals are wide.
_ENOUGH_PROMPTS = 20
_DOMAINS_NAMED = 12


@dataclass(frozen=True)
class LayerSpecialization:
    """Information that one layer's choice of expert carries about the domain.

    Attributes:
        stack: As in the trace's column.
        layer: As in the trace's column.
        mutual_information_nats: Between expert and domain over assignments:
            `H(expert) + H(domain) - H(expert, domain)`.
            None where no expert ever ran, like the following fields.
        null_nats: Its mean when the prompts' labels are permuted.
        excess_nats: The difference: the part that the domains explain.
        normalized: `excess_nats / H(domain)`, 1 if the expert determines the domain. None also
            where experts ran for one domain only.
        p_value: Share of permutations that reach the observed value, the observation counted as
            one: `(1 + #{null >= observed}) / (1 + permutations)`.
    """

    stack: str
    layer: int
    mutual_information_nats: float | None
    null_nats: float | None
    excess_nats: float | None
    normalized: float | None
    p_value: float | None


@dataclass(frozen=True)
class DomainSize:
    """The size of the traced part of a domain."""

    domain: str
    prompts: int
    tokens: int


@dataclass(frozen=True)
class Specialization(Tabular):
    """The whole answer: per layer whether, per domain and expert how.

    Attributes:
        domains: In alphabetical order.
        layers: In the order of the trace.
        experts: Every domain and expert of every layer.
        most_lifted: Of these, the over-represented ones of each domain, the surest first.
        num_permutations: Permutations of the prompts' labels behind the p-values.
        seed: Random seed of the permutations.
        notes: Warnings, what was inferred, and why a number is None: a sentence each.
        trace: The name of the trace, if it has one.
    """

    domains: tuple[DomainSize, ...]
    layers: tuple[LayerSpecialization, ...]
    experts: tuple[DomainExpert, ...]
    most_lifted: Mapping[str, Sequence[DomainExpert]]
    num_permutations: int
    seed: int
    notes: tuple[str, ...]
    trace: str | None = None

    def __repr__(self) -> str:
        name = f" of {printable(self.trace)}" if self.trace else ""
        known = [layer.p_value for layer in self.layers if layer.p_value is not None]
        domains = number_of(len(self.domains), "domain")
        numbers = f"{domains}, {number_of(len(self.layers), 'layer')}"
        p_values = f", p from {min(known):.2g} to {max(known):.2g}" if known else ""
        return f"<Specialization{name}: {numbers}{p_values}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the object of the JSON report. Values are plain; unknown ones are None."""
        names = ("trace", "num_permutations", "seed", "domains", "layers", "experts", "notes")
        return {name: make_plain(getattr(self, name)) for name in names}

    @classmethod
    def column_types(cls) -> Mapping[str, Any]:
        """Return the columns of the rows, in order, each with the type of its values."""
        return get_type_hints(DomainExpert)

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row per domain, layer and expert. Values are plain; unknown ones are None."""
        return [make_plain(cell) for cell in self.experts]

    def to_frame(self, of: TableName = "experts") -> pd.DataFrame:
        """Return one of the lists as a DataFrame with a column for each attribute of its items.

        Args:
            of: `experts` for the rows of the CSV report, `layers` for p-values, or `domains`.

        Raises:
            UsageError: There is no such list.
        """
        choose_word(of, get_args(TableName), name="table of a specialization")
        kinds = {"experts": DomainExpert, "layers": LayerSpecialization, "domains": DomainSize}
        rows = [make_plain(item) for item in getattr(self, of)]
        return make_frame(rows, get_type_hints(kinds[of]))


def measure_specialization(
    counts: ExpertCounts,
    *,
    num_permutations: int = 999,
    seed: int = 0,
) -> Specialization:
    """Return how far experts specialize by domain.

    The unit of permutation is the prompt: tokens of one prompt are not independent samples, and
    permuting them would find a difference between any two sets of texts.

    Args:
        counts: Counted by prompt.
        num_permutations: Permutations of the prompts' labels.
        seed: Random seed of the permutations.

    Raises:
        InputError: There are fewer than two domains, or far too many.
    """
    names = sorted(set(counts.domains))
    if len(names) < 2:
        raise InputError(
            f"All prompts are of one domain, '{printable(names[0], max_length=60)}': there is "
            "nothing to compare.",
            hint="Label each prompt with a domain; see sample_prompts/README.md.",
        )
    num_experts = sum(layer.num_experts for layer in counts.layers)
    if len(names) * num_experts > _MOST_EXPERTS or len(names) * len(counts.groups) > _MOST_CELLS:
        raise InputError(
            f"{len(names):,} domains of {len(counts.groups):,} prompts and {num_experts:,} experts "
            "are too many to compare.",
            hint="Label the prompts with fewer domains, or analyse fewer layers at a time.",
        )
    index_of = {name: index for index, name in enumerate(names)}
    label = np.array([index_of[domain] for domain in counts.domains])
    observed = _information(counts, label[None])[0]  # (num_layers,)
    rng = np.random.default_rng(seed)
    null_sum = np.zeros(len(counts.layers))
    num_reached = np.zeros(len(counts.layers), dtype=np.int64)
    batch = max(1, min(_BATCH, _CELLS_AT_ONCE // (len(names) * len(label))))
    for start in range(0, num_permutations, batch):
        size = min(batch, num_permutations - start)
        null = _information(counts, rng.permuted(np.tile(label, (size, 1)), axis=1))
        null_sum += null.sum(axis=0)
        # A permutation that only swaps equal prompts must count as reaching the observed value.
        num_reached += (null >= observed - 1e-12).sum(axis=0)
    null_mean = null_sum / max(1, num_permutations)
    layers = tuple(
        _describe_layer(
            layer,
            observed=float(observed[index]),
            null=float(null_mean[index]),
            p_value=float((1 + num_reached[index]) / (1 + num_permutations)),
            domain_entropy=_domain_entropy(layer, label, len(names)),
        )
        for index, layer in enumerate(counts.layers)
    )
    experts = measure_lift(counts)
    domains = _domain_sizes(counts, label, names)
    return Specialization(
        domains=domains,
        layers=layers,
        experts=tuple(experts),
        most_lifted=find_most_lifted(experts),
        num_permutations=num_permutations,
        seed=seed,
        notes=(
            *_warn_of_few_prompts(domains),
            *counts.notes,
            *_explain_unknown(layers, experts),
        ),
    )


def _describe_layer(
    layer: LayerCounts, *, observed: float, null: float, p_value: float, domain_entropy: float
) -> LayerSpecialization:
    if not layer.assignments.any():
        return LayerSpecialization(layer.stack, layer.layer, None, None, None, None, None)
    return LayerSpecialization(
        stack=layer.stack,
        layer=layer.layer,
        mutual_information_nats=observed,
        null_nats=null,
        excess_nats=observed - null,
        normalized=(observed - null) / domain_entropy if domain_entropy > 0 else None,
        p_value=p_value,
    )


def _warn_of_few_prompts(domains: Sequence[DomainSize]) -> list[str]:
    few = [size.domain for size in domains if size.prompts < _ENOUGH_PROMPTS]
    if not few:
        return []
    shown = ", ".join(printable(domain, max_length=80) for domain in few[:_DOMAINS_NAMED])
    more = f" and {len(few) - _DOMAINS_NAMED} more" if len(few) > _DOMAINS_NAMED else ""
    return [f"fewer than {_ENOUGH_PROMPTS} prompts in {shown}{more}: intervals are wide there."]


def _explain_unknown(
    layers: Sequence[LayerSpecialization], experts: Sequence[DomainExpert]
) -> list[str]:
    """Return why some numbers are None, as sentences."""
    notes = []
    if any(layer.p_value is None for layer in layers):
        notes.append("a layer in which no expert ran has neither MI nor p")
    if any(layer.normalized is None and layer.p_value is not None for layer in layers):
        notes.append(
            "a layer whose experts ran for one domain only has no entropy of domains to divide by"
        )
    num_unknown = sum(cell.lift is None for cell in experts)
    if num_unknown:
        notes.append(
            f"lift is unknown in {num_unknown:,} of {len(experts):,} cases: the expert was never "
            "chosen, or the domain has no tokens in the layer"
        )
    num_single = sum(cell.lift is not None and cell.lift_low is None for cell in experts)
    if num_single:
        notes.append(
            f"lift has no interval in {num_single:,} of {len(experts):,} cases: a single prompt of "
            "the domain chose the expert"
        )
    return notes


def _information(counts: ExpertCounts, labels: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return the mutual information of every labelling and layer, in nats.

    Args:
        counts: Counted by prompt.
        labels: Domain index of each prompt. # (num_labellings, num_prompts)

    Returns:
        # (num_labellings, num_layers)
    """
    num_domains = int(labels.max()) + 1
    # 1 for the prompts of each domain. # (num_labellings, num_domains, num_prompts)
    member = (labels[:, None, :] == np.arange(num_domains)[:, None]).astype(np.float64)
    information = np.empty((len(labels), len(counts.layers)))
    for index, layer in enumerate(counts.layers):
        if not layer.assignments.any():
            information[:, index] = 0
            continue
        joint = member @ layer.assignments  # (num_labellings, num_domains, num_experts)
        joint /= joint.sum(axis=(1, 2), keepdims=True)
        information[:, index] = (
            _entropy(joint.sum(axis=1)) + _entropy(joint.sum(axis=2)) - _entropy(joint, axis=(1, 2))
        )
    return information


def _entropy(p: NDArray[np.float64], *, axis: int | tuple[int, ...] = -1) -> NDArray[np.float64]:
    """Return `-sum(p ln p)` with `0 ln 0 = 0`, in nats."""
    log = np.log(p, out=np.zeros_like(p), where=p > 0)
    entropy: NDArray[np.float64] = -(p * log).sum(axis=axis)
    return entropy


def _domain_entropy(layer: LayerCounts, label: NDArray[np.intp], num_domains: int) -> float:
    sizes = np.bincount(label, weights=layer.assignments.sum(axis=1), minlength=num_domains)
    return float(_entropy(sizes / max(1, sizes.sum())))


def _domain_sizes(
    counts: ExpertCounts, label: NDArray[np.intp], names: list[str]
) -> tuple[DomainSize, ...]:
    # Every layer decides for every token, so any layer would do; the largest allows for skips.
    decisions = np.max([layer.decisions for layer in counts.layers], axis=0)  # (num_prompts,)
    prompts = np.bincount(label, minlength=len(names))
    tokens = np.zeros(len(names), dtype=np.int64)
    np.add.at(tokens, label, decisions)
    return tuple(
        DomainSize(domain=name, prompts=int(prompts[index]), tokens=int(tokens[index]))
        for index, name in enumerate(names)
    )
