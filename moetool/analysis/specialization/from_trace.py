"""Specialization measured in a stored trace: counts of every prompt, then tokens of a sample."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moetool.analysis.specialization.given_token.token_sample import (
    LayerSample,
    TokenSampler,
    choose_prompts,
)
from moetool.analysis.specialization.given_token.vocabulary import (
    ConditionalSpecialization,
    SharedTokens,
)
from moetool.analysis.specialization.measure import (
    check_domains,
    find_labels,
    measure_specialization,
)
from moetool.analysis.specialization.notes import (
    describe_sample,
    explain_missing_vocabulary,
    explain_unknown_first,
)
from moetool.analysis.specialization.repetition import RepetitionCounter
from moetool.analysis.specialization.result import Specialization
from moetool.errors import InputError, UsageError
from moetool.printable import printable
from moetool.trace.reading.counts import ExpertCounts, count_experts
from moetool.trace.reading.layer_shapes import Place
from moetool.trace.reading.reader import TraceSource
from moetool.trace.reading.words import encode_words
from moetool.trace.windows.reader import DecisionReader

_DOMAIN = "domain"


@dataclass(frozen=True)
class SpecializationOptions:
    """Options of a specialization.

    Attributes:
        by: Column with the domain of each prompt.
        layers: Layer numbers to read; None for all.
        num_permutations: Permutations of the prompts' labels for each p-value.
        seed: Random seed of everything that is drawn.
        num_experts: Experts per layer, for a trace without metadata; by default inferred.
        top_k: Assignments per decision, for a trace without metadata; by default inferred.
        is_checked: Refuse rows that no trace has.
    """

    by: str = _DOMAIN
    layers: Collection[int] | None = None
    num_permutations: int = 999
    seed: int = 0
    num_experts: int | None = None
    top_k: int | None = None
    is_checked: bool = True


def measure_trace(
    source: TraceSource,
    options: SpecializationOptions,
    *,
    show: Callable[[str], None] = lambda _: None,
) -> Specialization:
    """Return how far the experts of a trace specialize by domain.

    Args:
        source: The trace.
        options: Columns, layers and permutations.
        show: Is given a word on each step.

    Raises:
        InputError: The trace lacks a column, fails a check, has fewer than two domains, or a prompt
            of two.
        UsageError: There is no such column or layer.
    """
    _check_column(source, options.by)
    reader = DecisionReader(
        source,
        by=options.by,
        layers=options.layers,
        num_experts=options.num_experts,
        top_k=options.top_k,
        columns=("token_id",),
        # The rows are checked as they are counted.
        is_checked=False,
    )
    counts = _count(source, options, reader)
    names = sorted(set(counts.domains))
    check_domains(counts, names, by=options.by)
    show("comparing tokens")
    domain_of = dict(zip(counts.groups, find_labels(counts, names).tolist(), strict=True))
    label = np.array([domain_of[name] for name in reader.prompts], dtype=np.intp)
    sampler = TokenSampler(_choose(counts, reader, label, seed=options.seed))
    repetition = RepetitionCounter(label=label, num_domains=len(names), has_first=reader.has_ranks)
    for window in reader:
        sampler.add(window)
        repetition.add(window, reader.layers)
    samples = sampler.collect()
    conditional = _compare_tokens(sampler.collect_with_ids(), label, counts, options)
    show("permuting labels")
    result = measure_specialization(
        counts,
        num_permutations=options.num_permutations,
        seed=options.seed,
        conditional=conditional,
        sizes={
            place: counter.list_sizes(len(names)) for place, counter in repetition.sizes.items()
        },
        by=options.by,
    )
    return replace(
        result,
        repetition=repetition.measure(
            counts,
            samples,
            names=names,
            domain_of_group=find_labels(counts, names),
            seed=options.seed,
        ),
        notes=(
            *result.notes,
            *describe_sample(int(sampler.is_chosen.sum()), len(label)),
            *explain_missing_vocabulary(result.layers, has_token_ids="token_id" in source.columns),
            *explain_unknown_first(has_ranks=reader.has_ranks),
        ),
        trace=reader.facts,
    )


def _check_column(source: TraceSource, by: str) -> None:
    if by == _DOMAIN and by not in source.columns:
        name = "The frame" if source.table is not None else f"'{printable(source.path)}'"
        raise InputError(
            f"{name} has no column 'domain': there are no domains to compare.",
            hint="Label the prompt of each row in a column 'domain', name another with --by (by= in "
            "Python), or ask about tokens, which need no domains: --by token.",
        )
    if by == "prompt_id":
        raise UsageError(
            "Each prompt has its own prompt_id: there is nothing to compare.",
            hint="Choose a column whose values several prompts share, such as domain.",
        )


def _count(
    source: TraceSource, options: SpecializationOptions, reader: DecisionReader
) -> ExpertCounts:
    """Return the counts by prompt of the layers asked for, with each prompt's domain."""
    counts = count_experts(
        source,
        by="prompt_id",
        num_experts=options.num_experts,
        top_k=options.top_k,
        validate=options.is_checked,
    )
    places = {(layer.stack, layer.layer) for layer in reader.layers}
    counts = replace(
        counts,
        layers=tuple(layer for layer in counts.layers if (layer.stack, layer.layer) in places),
    )
    if options.by == _DOMAIN:
        return counts
    labels = read_labels(source, options.by)
    return replace(counts, domains=tuple(labels[name] for name in counts.groups))


def read_labels(source: TraceSource, by: str) -> Mapping[str, str]:
    """Return the value that each prompt has in a column.

    Raises:
        InputError: A prompt has two values.
    """
    labels: dict[str, str] = {}
    for table in source.iter_tables(["prompt_id", by]):
        if not table.num_rows:
            continue
        if not pa.types.is_dictionary(table.schema.field(by).type):
            words = table.column(by).cast(pa.string()).dictionary_encode()
            table = table.set_column(table.column_names.index(by), by, words)
        prompts, prompt = encode_words(table, "prompt_id", default="")
        values, value = encode_words(table, by, default="")
        pairs = np.unique(prompt * len(values) + value)
        for one, code in zip(*np.divmod(pairs, len(values)), strict=True):
            name, word = prompts[one], values[code]
            if labels.setdefault(name, word) != word:
                raise InputError(
                    f"Prompt '{printable(name, max_length=60)}' has two values of "
                    f"'{printable(by, max_length=60)}', '{printable(labels[name], max_length=60)}' "
                    f"and '{printable(word, max_length=60)}'.",
                    hint="Choose a column with one value for each prompt, such as domain.",
                )
    return labels


def _choose(
    counts: ExpertCounts, reader: DecisionReader, label: NDArray[np.intp], *, seed: int
) -> NDArray[np.bool_]:
    """Return which of the reader's prompts to sample."""
    tokens = np.max([layer.decisions for layer in counts.layers], axis=0)
    tokens_of = dict(zip(counts.groups, tokens.tolist(), strict=True))
    return choose_prompts(
        reader.prompts,
        label,
        np.array([tokens_of[name] for name in reader.prompts], dtype=np.int64),
        layers=reader.layers,
        seed=seed,
    )


def _compare_tokens(
    samples: Mapping[Place, LayerSample],
    label: NDArray[np.intp],
    counts: ExpertCounts,
    options: SpecializationOptions,
) -> dict[Place, ConditionalSpecialization]:
    """Return what is left of each layer's specialization when the token id is known."""
    found: dict[Place, ConditionalSpecialization] = {}
    shared: SharedTokens | None = None
    seen: Sequence[NDArray[np.int64]] = ()
    for layer in counts.layers:
        sample = samples.get((layer.stack, layer.layer))
        if sample is None or sample.token_id is None:
            continue
        # Prompts are numbered anew, because most may not be in the sample.
        prompts, prompt = np.unique(sample.prompt, return_inverse=True)
        # Layers of one stack decide for the same tokens as a rule.
        if shared is None or not all(
            np.array_equal(one, other)
            for one, other in zip(seen, (sample.token_id, sample.prompt), strict=True)
        ):
            seen = (sample.token_id, sample.prompt)
            shared = SharedTokens(
                sample.token_id,
                prompt,
                label[prompts],
                num_permutations=options.num_permutations,
                seed=options.seed,
            )
        given = shared.compare(sample.experts, num_experts=layer.num_experts)
        if given is not None:
            found[layer.stack, layer.layer] = given
    return found
