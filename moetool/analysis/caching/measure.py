"""Simulation of experts that stay on the GPU while the others are in the host's memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from moetool.analysis.caching.budgets import Budget
from moetool.analysis.caching.first_pass import read_first_pass
from moetool.analysis.caching.notes import explain_caching
from moetool.analysis.caching.result import Caching
from moetool.analysis.caching.simulation.policies import POLICIES, Policy
from moetool.analysis.caching.simulation.run import CacheRun, CacheShape
from moetool.analysis.caching.summary import (
    Simulated,
    list_groups,
    list_layers,
    list_phases,
    list_policies,
    list_touched,
)
from moetool.analysis.caching.touched import TouchedCounts
from moetool.errors import InputError
from moetool.printable import printable
from moetool.trace.decisions import PHASES
from moetool.trace.reading.layer_shapes import Place
from moetool.trace.windows.reader import DecisionReader
from moetool.wording import number_of

COLUMNS = ("phase",)
# Counts of all groups, of 8 bytes each: 256 MiB; and what else a group takes in their place.
_MOST_CELLS = 2**25
_CELLS_OF_GROUP = 2**12


def simulate_caches(
    reader: DecisionReader,
    *,
    budgets: Sequence[Budget],
    expert_bytes: Mapping[Place, int] | None = None,
    tokens_per_batch: int | None = None,
    policies: Collection[Policy] = POLICIES,
    by: str | None = None,
    notes: Sequence[str] = (),
) -> Caching:
    """Return what keeping some experts of each layer on the GPU is worth.

    A step of the model needs some distinct experts of each layer: a hit is one that is on the GPU
    before the step; any other is moved there once. A generated token takes a step, and the tokens
    of a prompt share steps. Prompts follow each other in the order of the trace, and caches start
    empty and stay warm from one to the next. Experts at work that do not stay have room apart from
    the budget.

    The trace is read twice: the optimum has to know when each expert is needed next.

    Args:
        reader: Reads the trace with `COLUMNS`.
        budgets: At least one.
        expert_bytes: Size of an expert of each layer; None if unknown.
        tokens_per_batch: Consecutive tokens of a prompt that share a step; None for all.
        policies: Those to simulate; the optimum takes longest.
        by: The column by which the reader groups tokens, to count hits by group; None not to.
        notes: Sentences on the arguments, for the result.

    Raises:
        UsageError: A budget can't be met.
        InputError: The trace fails a check, or there are far too many groups.
    """
    # Identity experts have no weights to keep.
    num_experts = [layer.num_experts for layer in reader.layers]
    places = [(layer.stack, layer.layer) for layer in reader.layers]
    sizes = None if expert_bytes is None else [expert_bytes[place] for place in places]
    capacities = [budget.find_capacities(num_experts, sizes) for budget in budgets]
    shape = CacheShape(
        places=places,
        num_experts=num_experts,
        num_ids=[layer.num_experts + layer.num_identity_experts for layer in reader.layers],
        top_k=[layer.top_k for layer in reader.layers],
        capacities=np.array(capacities, dtype=np.int64).T,
    )
    first = read_first_pass(reader, num_experts)
    static_rank = first.rank_experts()
    is_generated = first.num_decoded > 0
    runs = [
        CacheRun(
            shape,
            static_rank=static_rank,
            halves=first.halves,
            tokens_per_batch=tokens_per_batch,
            decodes_all=decodes_all,
            policies=policies,
        )
        # Without generated tokens, those of prompts stand for them in a separate simulation.
        for decodes_all in ((False,) if is_generated else (False, True))
    ]
    touched = TouchedCounts(places, num_experts, shape.num_ids)
    num_tokens = 0
    for window, next_uses in zip(reader, first.next_uses, strict=True):
        if by is not None:
            _check_groups(reader, shape, by=by)
        for run in runs:
            run.add(
                window,
                first_token=num_tokens,
                next_uses=next_uses,
                group=None if by is None else window.group,
            )
        touched.add(window, only_decoded=is_generated)
        num_tokens += len(window.prompt)
    simulated = Simulated(
        shape=shape,
        budgets=budgets,
        expert_bytes=sizes,
        counts=(runs[0].counts, runs[-1].counts),
        groups=(runs[0].groups, runs[-1].groups),
        first_steps=(runs[0].first_steps, runs[-1].first_steps),
        touched=touched,
        first=first,
        policies=policies,
        num_mixed=runs[0].num_mixed,
    )
    random = simulated.find_random_rates()
    return Caching(
        trace=reader.facts,
        by=by,
        tokens_per_batch=tokens_per_batch,
        has_generated_tokens=is_generated,
        phases=list_phases(simulated),
        policies=list_policies(simulated, random),
        groups=list_groups(simulated, random, names=reader.groups),
        touched=list_touched(simulated),
        layers=list_layers(simulated, random),
        notes=explain_caching(reader, simulated, by=by, given=notes),
    )


def _check_groups(reader: DecisionReader, shape: CacheShape, *, by: str) -> None:
    """Refuse more groups than memory should hold the counts of."""
    cells = shape.capacities.size * len(POLICIES) * len(PHASES)
    if len(reader.groups) * (cells + _CELLS_OF_GROUP) > _MOST_CELLS:
        raise InputError(
            f"{len(reader.groups):,} groups of '{printable(by, max_length=60)}' and "
            f"{number_of(len(shape.places), 'layer')} are too many to count.",
            hint="Group by a column with fewer values, or simulate fewer layers or budgets.",
        )
