"""Results for figures: usual ones, the smallest and the largest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from moetool.analysis.balance import measure as balance
from moetool.analysis.balance.result import Balance
from moetool.analysis.coactivation.measure import measure_coactivation
from moetool.analysis.coactivation.result import Coactivation
from moetool.analysis.confidence.measure import measure_confidence
from moetool.analysis.confidence.result import Confidence
from moetool.analysis.specialization.result import Specialization
from moetool.memory.result import Estimate
from moetool.memory.scenario import Scenario
from moetool.trace.windows.reader import DecisionReader
from tests.analysis.random_traces import Router, make_random_trace, open_rows
from tests.report.examples import make_counts, make_result
from tests.report.memory.estimates import GIB, make_estimate, make_fit

# Read as a formula by matplotlib, and as markup by SVG, if they are not escaped.
HOSTILE = ("$\\frac{", "<script>&\x1b[31m", "x" * 300, "a\nb")


@dataclass(frozen=True)
class Results:
    """A result of each kind, of one simulated router."""

    balance: Balance
    confidence: Confidence
    specialization: Specialization
    coactivation: Coactivation


@cache
def make_results(
    *,
    num_layers: int = 3,
    num_experts: int = 8,
    top_k: int = 2,
    domains: tuple[str, ...] = ("code", "prose"),
    first_layer: int = 0,
) -> Results:
    router = Router(
        num_experts=num_experts,
        top_k=top_k,
        num_layers=num_layers,
        first_layer=first_layer,
        popularity=(4.0, *[1.0] * (num_experts - 1)),
    )
    table = make_random_trace((30, 20, 25, 15), router=router, domains=domains)

    def read() -> DecisionReader:
        return DecisionReader(open_rows(table, router=router), columns=balance.COLUMNS)

    # Pairs and permutations of many experts take long, and their figures show one layer.
    places = [("decoder", first_layer + layer) for layer in range(min(num_layers, 3))]
    counts = make_counts(
        domains,
        prompts_per_domain=12 if len(domains) < 10 else 3,
        num_experts=num_experts,
        places=places,
    )
    few = replace(router, num_layers=min(num_layers, 2))
    pairs = make_random_trace((30, 20, 25, 15), router=few)
    return Results(
        balance=balance.measure_balance(read()),
        confidence=measure_confidence(read()),
        specialization=make_result(counts, num_permutations=19),
        coactivation=measure_coactivation(DecisionReader(open_rows(pairs, router=few))),
    )


def make_sweep() -> list[Estimate]:
    """Return estimates of which the largest batch doesn't fit on 40 GiB with the longer prompt."""
    estimates = []
    for batch_size, prompt, total in ((1, 512, 18), (1, 4096, 20), (8, 512, 24), (8, 4096, 52)):
        estimate = make_estimate()
        estimates.append(
            replace(
                estimate,
                gpu="mid",
                scenario=Scenario(batch_size=batch_size, num_prompt_tokens=prompt),
                figures=replace(estimate.figures, total_device_bytes=total * GIB),
                fits=(make_fit("mid", memory_gib=40, needs_gib=total, num_gpus=1),),
            )
        )
    return estimates
