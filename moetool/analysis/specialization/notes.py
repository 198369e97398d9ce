"""Notes of a specialization: what to be careful with, and why a number is None."""

from __future__ import annotations

from collections.abc import Sequence

from moetool.analysis.specialization.divergence import MOST_DOMAINS
from moetool.analysis.specialization.result import (
    DomainExpertTest,
    DomainSize,
    LayerSpecialization,
)
from moetool.printable import printable

# With fewer prompts per domain, intervals are wide.
_ENOUGH_PROMPTS = 20
_DOMAINS_NAMED = 12


def warn_of_few_prompts(domains: Sequence[DomainSize]) -> list[str]:
    """Return a note if a domain has few prompts."""
    few = [size.domain for size in domains if size.prompts < _ENOUGH_PROMPTS]
    if not few:
        return []
    shown = ", ".join(printable(domain, max_length=80) for domain in few[:_DOMAINS_NAMED])
    more = f" and {len(few) - _DOMAINS_NAMED} more" if len(few) > _DOMAINS_NAMED else ""
    return [f"Fewer than {_ENOUGH_PROMPTS} prompts in {shown}{more}: intervals are wide there."]


def warn_of_many_domains(names: Sequence[str]) -> list[str]:
    """Return a note if pairs of domains are not compared."""
    if len(names) <= MOST_DOMAINS:
        return []
    return [
        f"The divergence between two domains is left out, because there are {len(names):,} domains; "
        f"it is computed for up to {MOST_DOMAINS}."
    ]


def explain_unknown(
    layers: Sequence[LayerSpecialization], experts: Sequence[DomainExpertTest]
) -> list[str]:
    """Return why some numbers are None."""
    notes = []
    if any(layer.p_value is None for layer in layers):
        notes.append("A layer in which no expert ran has neither MI nor p.")
    if any(layer.normalized is None and layer.p_value is not None for layer in layers):
        notes.append(
            "A layer whose experts ran for one domain only has no entropy of domains to divide by."
        )
    ran = [layer.baseline for layer in layers if layer.baseline is not None]
    if any(baseline.mutual_information_nats is None for baseline in ran):
        notes.append(
            "Counts alone don't say how many experts each decision ran: the mutual information and "
            "divergence of a random router are unknown."
        )
    num_unknown = sum(cell.lift is None for cell in experts)
    if num_unknown:
        notes.append(
            f"Lift is unknown in {num_unknown:,} of {len(experts):,} cases: the expert was never "
            "chosen, or the domain has no tokens in the layer."
        )
    num_single = sum(cell.lift is not None and cell.lift_low is None for cell in experts)
    if num_single:
        notes.append(
            f"Lift has no interval in {num_single:,} of {len(experts):,} cases: a single prompt of "
            "the domain chose the expert."
        )
    return notes


def explain_missing_vocabulary(
    layers: Sequence[LayerSpecialization], *, has_token_ids: bool
) -> list[str]:
    """Return why it is unknown how much of the specialization is vocabulary."""
    if not has_token_ids:
        return [
            "The trace has no column token_id, so it is unknown how much of the specialization is "
            "vocabulary."
        ]
    if any(layer.p_value is not None and layer.conditional_p_value is None for layer in layers):
        return [
            "No token id occurs in two prompts of each of two domains, so it is unknown how much "
            "of the specialization is vocabulary."
        ]
    return []


def describe_sample(num_sampled: int, num_prompts: int) -> list[str]:
    """Return a note if not all prompts are in the sample behind figures on token ids."""
    if num_sampled == num_prompts:
        return []
    return [
        f"Figures given the token id are from a sample of {num_sampled:,} of {num_prompts:,} "
        "prompts, about as many of each domain."
    ]


def explain_unknown_first(*, has_ranks: bool) -> list[str]:
    """Return why first choices are unknown, if they are."""
    if has_ranks:
        return []
    return ["The trace has no ranks by weight, so first choices are unknown."]
