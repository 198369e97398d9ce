"""Intervals of lift, against another derivation and by their coverage, and cases without one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from moetool.analysis.specialization.lift import DomainExpert, measure_lift
from moetool.analysis.statistics.students_t import CONFIDENCE, find_quantile
from moetool.trace.reading.counts import ExpertCounter, ExpertCounts, LayerCounts
from moetool.trace.reading.prompt_sums import DomainCounter
from tests.trace.examples import describe_layers, make_rows

NUM_DOMAINS = 3


def measure(
    domains: Sequence[str], assignments: ArrayLike, decisions: ArrayLike
) -> list[DomainExpert]:
    rows = np.array(assignments, dtype=np.int64)
    layer = LayerCounts("decoder", 0, 1, rows, np.array(decisions, dtype=np.int64))
    groups = tuple(str(number) for number in range(len(rows)))
    return measure_lift(ExpertCounts(groups, tuple(domains), (layer,)))


def draw_prompts(
    rng: np.random.Generator, preferences: NDArray[np.float64], *, prompts: int, tokens: int
) -> tuple[list[str], NDArray[np.int64]]:
    """Return prompts whose preferences vary around those of their domain."""
    own = [rng.dirichlet(20 * row) for row in preferences for _ in range(prompts)]
    domains = [str(number) for number in range(len(preferences)) for _ in range(prompts)]
    return domains, np.array([rng.multinomial(tokens, row) for row in own])


@pytest.mark.parametrize(
    ("prompts", "tokens", "most"), [(5, 100, 1.0), (30, 50, 0.98), (100, 20, 0.97)]
)
def test_the_interval_holds_the_true_lift_as_often_as_it_says(
    prompts: int, tokens: int, most: float
) -> None:
    """With few prompts they hold it more often."""
    rng = np.random.default_rng(0)
    preferences = np.array([[0.7, 0.2, 0.1], [0.2, 0.2, 0.6], [0.3, 0.5, 0.2]])
    true = preferences / preferences.mean(axis=0)
    num_held = []
    for _ in range(200):
        domains, assignments = draw_prompts(rng, preferences, prompts=prompts, tokens=tokens)
        for cell in measure(domains, assignments, assignments.sum(axis=1)):
            assert cell.lift_low is not None
            assert cell.lift_high is not None
            value = true[int(cell.domain), cell.expert]
            num_held.append(cell.lift_low <= value <= cell.lift_high)
    assert CONFIDENCE - 0.02 < np.mean(num_held) <= most


def test_the_interval_agrees_with_drawing_the_prompts_again() -> None:
    rng = np.random.default_rng(1)
    preferences = rng.dirichlet(np.ones(4), NUM_DOMAINS) + 0.1
    domains, assignments = draw_prompts(rng, preferences, prompts=40, tokens=60)
    domain = np.array(domains, dtype=int)
    logs = []
    for _ in range(2000):
        drawn = np.concatenate(
            [rng.choice(np.flatnonzero(domain == d), 40) for d in range(NUM_DOMAINS)]
        )
        share = np.array([assignments[drawn[domain == d]].mean(axis=0) for d in range(NUM_DOMAINS)])
        logs.append(np.log(share / assignments[drawn].mean(axis=0)))
    drawn_again = np.std(logs, axis=0)
    for cell in measure(domains, assignments, assignments.sum(axis=1)):
        assert cell.lift is not None
        assert cell.lift_high is not None
        error = np.log(cell.lift_high / cell.lift) / find_quantile(39)
        # Wider by the effect of one more prompt.
        assert 0.95 < error / drawn_again[int(cell.domain), cell.expert] < 1.2


@pytest.mark.parametrize("degrees_of_freedom", [1, 2, 3, 4, 7, 29, 500])
def test_the_quantile_is_students(degrees_of_freedom: int) -> None:
    expected = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, degrees_of_freedom)
    assert find_quantile(degrees_of_freedom) == pytest.approx(expected, rel=2e-3)


def test_prompts_that_happen_to_agree_are_not_certain() -> None:
    """Two prompts of one token each, both to expert 0, are weak evidence."""
    cells = measure(["a", "a", "b", "b"], [[1, 0], [1, 0], [1, 1], [1, 1]], [1, 1, 2, 2])
    assert cells[0].lift == pytest.approx(1.5)
    assert cells[0].lift_low is not None
    assert cells[0].lift_low < 0.5


def test_an_expert_that_one_prompt_of_a_domain_chose_has_no_interval() -> None:
    cells = measure(["a", "a", "b", "b"], [[3, 1], [4, 0], [1, 3], [2, 2]], [4] * 4)
    assert [cell.lift_low is None for cell in cells] == [False, True, False, False]
    assert [cell.lift_high is None for cell in cells] == [False, True, False, False]


def test_an_expert_that_a_domain_never_chose_has_no_upper_limit() -> None:
    cells = measure(["a", "a", "b", "b"], [[0, 4], [0, 4], [1, 3], [2, 2]], [4] * 4)
    assert (cells[0].lift, cells[0].lift_low, cells[0].lift_high) == (0, 0, None)


def test_prompts_counted_by_domain_give_the_same_intervals() -> None:
    """The same counts as in route-trace, which keeps no prompts."""
    names = [f"p{number}" for number in range(12)]
    labels = ["x", "y", "z"] * 4
    tables = [
        make_rows(
            (5, 9, 3, 7),
            seed=start,
            prompt_ids=names[start : start + 4],
            domains=labels[start : start + 4],
        )
        for start in (0, 4, 8)
    ]
    by_domain, by_prompt = DomainCounter(), ExpertCounter(by="prompt_id")
    together = DomainCounter()
    for table in tables:
        by_domain.add(table)
        by_prompt.add(table)
        alone = DomainCounter()
        alone.add(table)
        together.add_counter(alone)
    lifts = [
        measure_lift(each.counts(describe_layers())) for each in (by_domain, by_prompt, together)
    ]
    assert lifts[2] == lifts[0]
    for one, other in zip(*lifts[:2], strict=True):
        assert (one.domain, one.layer, one.expert) == (other.domain, other.layer, other.expert)
        assert (one.assignments, one.tokens, one.lift) == (
            other.assignments,
            other.tokens,
            other.lift,
        )
        assert one.lift_low == pytest.approx(other.lift_low)
        assert one.lift_high == pytest.approx(other.lift_high)
