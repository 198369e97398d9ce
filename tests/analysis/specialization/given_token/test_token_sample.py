"""The sample of prompts: everything if it is little, else as much of each domain."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from moetool.analysis.specialization.given_token import token_sample
from moetool.analysis.specialization.given_token.token_sample import TokenSampler, choose_prompts
from moetool.trace.windows.reader import DecisionReader
from tests.analysis.random_traces import (
    Router,
    describe_router,
    list_decisions,
    make_random_trace,
    open_rows,
)

LAYERS = describe_router(Router()).layers


def choose(
    names: list[str], label: NDArray[np.intp], num_tokens: NDArray[np.int64], *, seed: int = 0
) -> NDArray[np.bool_]:
    return choose_prompts(names, label, num_tokens, layers=LAYERS, seed=seed)


def test_few_prompts_are_all_chosen() -> None:
    assert choose(["a", "b", "c"], np.array([0, 1, 1]), np.array([5, 5, 500])).all()


def test_of_many_prompts_each_domain_gives_as_many() -> None:
    label = np.repeat([0, 1, 2], [2000, 500, 30])
    names = [f"p{number}" for number in range(len(label))]
    chosen = choose(names, label, np.full(len(label), 10))
    assert np.bincount(label[chosen]).tolist() == [512 // 3, 512 // 3, 30]


def test_tokens_are_limited_in_each_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_sample, "_MOST_EXPERT_CELLS", 8 * 1000)
    label = np.repeat([0, 1], 20)
    num_tokens = np.tile([100, 30], 20)
    chosen = choose([f"p{number}" for number in range(40)], label, num_tokens)
    for domain in (0, 1):
        taken = num_tokens[chosen & (label == domain)].sum()
        assert 400 <= taken <= 500


def test_the_choice_depends_on_names_and_seed_not_on_the_order() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, size=1500)
    names = [f"p{number}" for number in range(1500)]
    num_tokens = rng.integers(1, 9, size=1500)
    chosen = choose(names, label, num_tokens)
    order = rng.permutation(1500)
    again = choose([names[one] for one in order], label[order], num_tokens[order])
    assert (again == chosen[order]).all()
    assert (choose(names, label, num_tokens, seed=1) != chosen).any()


def test_every_decision_of_a_chosen_prompt_is_kept() -> None:
    table = make_random_trace((5, 3, 7, 4))
    reader = DecisionReader(open_rows(table), columns=("token_id",))
    sampler = TokenSampler(np.array([True, False, True, False]))
    for window in reader:
        sampler.add(window)
    found = sampler.collect()
    decisions = [each for each in list_decisions(table) if each.prompt_id in ("p0", "p2")]
    assert set(found) == {(each.stack, each.layer) for each in decisions}
    for (_, layer), sample in found.items():
        assert sample.token_id is not None
        kept = zip(sample.token_id, sample.prompt, sample.experts, strict=True)
        assert [
            (int(token), f"p{prompt}", tuple(experts.tolist())) for token, prompt, experts in kept
        ] == [
            (each.token_id, each.prompt_id, each.experts)
            for each in decisions
            if each.layer == layer
        ]
