"""Specialization of experts by domain, beyond what the choice of prompts explains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.specialization.decision_sizes import choose_sizes, expect_information
from moetool.analysis.specialization.divergence import measure_divergences
from moetool.analysis.specialization.given_token.elsewhere import find_familywise_p_values
from moetool.analysis.specialization.given_token.vocabulary import ConditionalSpecialization
from moetool.analysis.specialization.lift import DomainExpert, find_most_lifted, measure_lift
from moetool.analysis.specialization.notes import (
    explain_unknown,
    warn_of_few_prompts,
    warn_of_many_domains,
)
from moetool.analysis.specialization.result import (
    DomainExpertTest,
    DomainSize,
    LayerBaseline,
    LayerSpecialization,
    Specialization,
    is_small,
)
from moetool.analysis.specialization.significance import (
    PermutationTest,
    find_entropy,
    permute_labels,
)
from moetool.analysis.specialization.verdict import Verdict, choose_answer
from moetool.analysis.statistics.decision_sizes import Sizes
from moetool.analysis.statistics.discoveries import find_q_values
from moetool.errors import InputError
from moetool.printable import printable
from moetool.trace.reading.counts import ExpertCounts, LayerCounts
from moetool.trace.reading.layer_shapes import Place

# More would neither fit into memory nor be read.
_MOST_CELLS = 2**27
_MOST_EXPERTS = 500_000


def measure_specialization(
    counts: ExpertCounts,
    *,
    num_permutations: int = 999,
    seed: int = 0,
    conditional: Mapping[Place, ConditionalSpecialization] | None = None,
    sizes: Mapping[Place, Sequence[Sizes]] | None = None,
    by: str = "domain",
) -> Specialization:
    """Return how far experts specialize by domain.

    The unit of permutation is the prompt: tokens of one prompt are not independent samples, and
    permuting them would find a difference between any two sets of texts.

    Args:
        counts: Counted by prompt.
        num_permutations: Permutations of the prompts' labels.
        seed: Random seed of the permutations.
        conditional: By stack and layer, the specialization that is left when the token id is known.
        sizes: By stack and layer, the sizes of each domain's decisions, in the order of names.
        by: The column that holds the domains.

    Raises:
        InputError: There are fewer than two domains, or far too many.
    """
    names = sorted(set(counts.domains))
    check_domains(counts, names, by=by)
    label = find_labels(counts, names)
    test = permute_labels(
        counts, label, num_domains=len(names), num_permutations=num_permutations, seed=seed
    )
    sizes_of_layers = [
        choose_sizes(layer, label, sizes or {}, len(names)) for layer in counts.layers
    ]
    layers = _describe_layers(counts, label, sizes_of_layers, test, conditional or {})
    experts = _describe_experts(measure_lift(counts), counts, names, test)
    experts = _add_elsewhere(
        experts, names, conditional or {}, num_permutations=num_permutations, seed=seed
    )
    domains = _domain_sizes(counts, label, names)
    return Specialization(
        domains=domains,
        layers=layers,
        experts=experts,
        most_lifted=find_most_lifted(experts),
        verdict=_reach_verdict(layers, experts),
        divergences=measure_divergences(
            counts,
            label,
            names=names,
            sizes=sizes_of_layers,
            num_permutations=num_permutations,
            seed=seed,
        ),
        repetition=(),
        num_permutations=num_permutations,
        seed=seed,
        by=by,
        notes=(
            *warn_of_few_prompts(domains),
            *counts.notes,
            *warn_of_many_domains(names),
            *explain_unknown(layers, experts),
        ),
    )


def check_domains(counts: ExpertCounts, names: Sequence[str], *, by: str) -> None:
    """Check that domains can be compared.

    Raises:
        InputError: There are fewer than two domains, or far too many.
    """
    if len(names) < 2:
        only = printable(names[0], max_length=60)
        if by == "domain" and only == "(none)":
            raise InputError(
                "No prompt has a domain (column 'domain'): there is nothing to compare.",
                hint="Label each prompt in a column 'domain', or name another column with --by.",
            )
        raise InputError(
            f"All prompts are of one domain, '{only}': there is nothing to compare."
            if by == "domain"
            else f"All prompts have the same {printable(by, max_length=60)}, '{only}': there is "
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


def find_labels(counts: ExpertCounts, names: Sequence[str]) -> NDArray[np.intp]:
    """Return the index of each group's domain among the names."""
    index_of = {name: index for index, name in enumerate(names)}
    return np.array([index_of[domain] for domain in counts.domains], dtype=np.intp)


def _describe_layers(
    counts: ExpertCounts,
    label: NDArray[np.intp],
    sizes: Sequence[Sequence[Sizes] | None],
    test: PermutationTest,
    conditional: Mapping[Place, ConditionalSpecialization],
) -> tuple[LayerSpecialization, ...]:
    ran = np.array([bool(layer.assignments.any()) for layer in counts.layers])
    q_values = find_q_values(np.where(ran, test.p_values, np.nan))
    found = [
        _add_conditional(
            _describe_layer(layer, test, index, float(q_values[index]), label, sizes[index]),
            conditional.get((layer.stack, layer.layer)),
        )
        for index, layer in enumerate(counts.layers)
    ]
    given = np.array([_or_nan(layer.conditional_p_value) for layer in found])
    q_given = find_q_values(given)
    return tuple(
        replace(layer, conditional_q_value=None if np.isnan(q) else float(q))
        for layer, q in zip(found, q_given, strict=True)
    )


def _describe_layer(
    layer: LayerCounts,
    test: PermutationTest,
    index: int,
    q_value: float,
    label: NDArray[np.intp],
    sizes: Sequence[Sizes] | None,
) -> LayerSpecialization:
    facts = (
        layer.stack,
        layer.layer,
        layer.num_experts,
        layer.top_k,
        int(layer.decisions.sum()),
    )
    if not layer.assignments.any():
        return LayerSpecialization(*facts, None, None, None, None, None)
    observed = float(test.information[index])
    null = float(test.null_information[index])
    entropy = _domain_entropy(layer, label)
    return LayerSpecialization(
        *facts,
        mutual_information_nats=observed,
        null_nats=null,
        excess_nats=observed - null,
        normalized=(observed - null) / entropy if entropy > 0 else None,
        p_value=float(test.p_values[index]),
        q_value=q_value,
        baseline=LayerBaseline(
            None if sizes is None else expect_information(layer.num_experts, sizes)
        ),
    )


def _add_conditional(
    layer: LayerSpecialization, given: ConditionalSpecialization | None
) -> LayerSpecialization:
    if given is None:
        return layer
    excess = given.information_nats - given.null_nats
    return replace(
        layer,
        shared_share=given.shared_share,
        conditional_information_nats=given.information_nats,
        conditional_null_nats=given.null_nats,
        conditional_excess_nats=excess,
        conditional_normalized=excess / given.domain_entropy_nats
        if given.domain_entropy_nats > 0
        else None,
        same_domain_overlap=given.same_domain_overlap,
        other_domain_overlap=given.other_domain_overlap,
        conditional_p_value=given.p_value,
        baseline=layer.baseline
        and replace(
            layer.baseline,
            same_domain_overlap=given.same_by_chance,
            other_domain_overlap=given.other_by_chance,
        ),
    )


def _describe_experts(
    cells: Sequence[DomainExpert],
    counts: ExpertCounts,
    names: Sequence[str],
    test: PermutationTest,
) -> tuple[DomainExpertTest, ...]:
    """Return the cells with their p-values, in the same order."""
    place_of = {(layer.stack, layer.layer): index for index, layer in enumerate(counts.layers)}
    row_of = {name: index for index, name in enumerate(names)}
    where = [(place_of[cell.stack, cell.layer], row_of[cell.domain], cell.expert) for cell in cells]
    was_chosen = [layer.assignments.sum(axis=0) > 0 for layer in counts.layers]
    p_values = np.array(
        [
            test.cell_p_values[layer][row, expert] if was_chosen[layer][expert] else np.nan
            for layer, row, expert in where
        ]
    )
    q_values = find_q_values(p_values)
    return tuple(
        DomainExpertTest(
            **vars(cell),
            p_value=None if np.isnan(p_value) else float(p_value),
            q_value=None if np.isnan(p_value) else float(q_value),
            familywise_p_value=None
            if np.isnan(p_value)
            else float(test.familywise_p_values[layer][row, expert]),
        )
        for cell, (layer, row, expert), p_value, q_value in zip(
            cells, where, p_values, q_values, strict=True
        )
    )


def _add_elsewhere(
    experts: tuple[DomainExpertTest, ...],
    names: Sequence[str],
    conditional: Mapping[Place, ConditionalSpecialization],
    *,
    num_permutations: int,
    seed: int,
) -> tuple[DomainExpertTest, ...]:
    """Return the cells with the use of the same token ids in other domains."""
    p_values = find_familywise_p_values(
        [given.use for given in conditional.values()], num_permutations=num_permutations, seed=seed
    )
    found = dict(zip(conditional, p_values, strict=True))
    row_of = {name: index for index, name in enumerate(names)}
    added = []
    for cell in experts:
        place, row = (cell.stack, cell.layer), row_of[cell.domain]
        if place in found and row < len(found[place]):
            use = conditional[place].use
            if not np.isnan(use.share[row, cell.expert]):
                cell = replace(
                    cell,
                    shared_share=float(use.share[row, cell.expert]),
                    share_elsewhere=float(use.share_elsewhere[row, cell.expert]),
                    elsewhere_p_value=float(found[place][row, cell.expert]),
                )
        added.append(cell)
    return tuple(added)


def _reach_verdict(
    layers: Sequence[LayerSpecialization], experts: Sequence[DomainExpertTest]
) -> Verdict:
    beyond = [layer for layer in layers if is_small(layer.conditional_q_value)]
    shares = [
        layer.conditional_normalized for layer in beyond if layer.conditional_normalized is not None
    ]
    numbers = {
        "num_tested_layers": sum(layer.p_value is not None for layer in layers),
        "num_significant_layers": sum(layer.is_significant for layer in layers),
        "num_shared_layers": sum(layer.conditional_p_value is not None for layer in layers),
        "num_layers_beyond_vocabulary": len(beyond),
    }
    most = max(shares) if shares else None
    return Verdict(
        answer=choose_answer(**numbers, most_conditional_normalized=most),
        **numbers,
        least_conditional_normalized=min(shares) if shares else None,
        most_conditional_normalized=most,
        num_experts=_count_experts(cell for cell in experts if cell.p_value is not None),
        num_domain_experts=_count_experts(cell for cell in experts if cell.is_domain_expert),
        num_certain_experts=_count_experts(cell for cell in experts if cell.is_certain_expert),
        num_experts_beyond_vocabulary=_count_experts(
            cell for cell in experts if cell.is_beyond_vocabulary
        ),
    )


def _count_experts(cells: Iterable[DomainExpertTest]) -> int:
    return len({(cell.stack, cell.layer, cell.expert) for cell in cells})


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _domain_entropy(layer: LayerCounts, label: NDArray[np.intp]) -> float:
    sizes = np.bincount(label, weights=layer.assignments.sum(axis=1))
    return float(find_entropy(sizes / max(1, sizes.sum())))


def _domain_sizes(
    counts: ExpertCounts, label: NDArray[np.intp], names: Sequence[str]
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
