"""Tests of the oracle: it finds weights, notices planted errors, and refuses what it can't know."""

from __future__ import annotations

import pytest
import torch

from tests.tracing.oracle import UndeterminedError, find_difference, fit_weights, spread

NUM_TOKENS, HIDDEN_SIZE, NUM_EXPERTS, TOP_K = 12, 16, 6, 2
TOLERANCE = 1e-9


def make_experts(num_experts: int = NUM_EXPERTS) -> torch.Tensor:
    torch.manual_seed(3)
    return torch.randn(num_experts, NUM_TOKENS, HIDDEN_SIZE, dtype=torch.float64)


def make_decision() -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and weights; the last token was dropped by one expert, the first by both."""
    torch.manual_seed(5)
    weights, ids = torch.rand(NUM_TOKENS, NUM_EXPERTS, dtype=torch.float64).topk(TOP_K)
    ids[0], ids[-1, 1] = -1, -1
    return ids, weights.masked_fill(ids < 0, 0)


def add_up(by_expert: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    tokens = torch.arange(len(ids))[:, None].expand_as(ids)
    return (by_expert[ids, tokens] * weights[:, :, None]).sum(dim=1)


def test_the_weights_are_found() -> None:
    by_expert, (ids, weights) = make_experts(), make_decision()
    fit = fit_weights(add_up(by_expert, ids, weights), by_expert)
    assert find_difference(fit, ids, weights) < TOLERANCE
    assert fit.weights[0].abs().max() < TOLERANCE


@pytest.mark.parametrize("token", [1, NUM_TOKENS - 1])
def test_a_wrong_id_is_noticed(token: int) -> None:
    by_expert, (ids, weights) = make_experts(), make_decision()
    fit = fit_weights(add_up(by_expert, ids, weights), by_expert)
    others = set(range(NUM_EXPERTS)) - set(ids[token].tolist())
    ids[token, 0] = others.pop()
    assert find_difference(fit, ids, weights) > weights[token, 0] / 2


def test_swapped_tokens_are_noticed() -> None:
    by_expert, (ids, weights) = make_experts(), make_decision()
    fit = fit_weights(add_up(by_expert, ids, weights), by_expert)
    order = torch.tensor([0, 2, 1, *range(3, NUM_TOKENS)])
    assert find_difference(fit, ids[order], weights[order]) > 0.1


def test_a_weight_that_is_off_by_a_thousandth_is_noticed() -> None:
    by_expert, (ids, weights) = make_experts(), make_decision()
    fit = fit_weights(add_up(by_expert, ids, weights), by_expert)
    weights[3, 1] *= 1.001
    assert find_difference(fit, ids, weights) > 100 * TOLERANCE


def test_a_token_that_is_recorded_although_it_was_dropped_is_noticed() -> None:
    by_expert, (ids, weights) = make_experts(), make_decision()
    fit = fit_weights(add_up(by_expert, ids, weights), by_expert)
    ids[-1, 1], weights[-1, 1] = (int(ids[-1, 0]) + 1) % NUM_EXPERTS, 0.25
    assert find_difference(fit, ids, weights) > 0.2


def test_an_output_with_something_else_in_it_is_noticed() -> None:
    by_expert, (ids, weights) = make_experts(), make_decision()
    output = add_up(by_expert, ids, weights)
    output[4] += 0.01
    assert find_difference(fit_weights(output, by_expert), ids, weights) > 1e-4


def test_an_expert_that_ran_twice_counts_twice() -> None:
    ids, weights = torch.tensor([[2, 2, -1]]), torch.tensor([[0.25, 0.5, 9.0]])
    assert spread(ids, weights, num_experts=4).tolist() == [[0, 0, 0.75, 0]]


@pytest.mark.parametrize("reason", ["more than outputs", "combinations", "not finite"])
def test_outputs_that_do_not_determine_the_weights_are_refused(reason: str) -> None:
    by_expert = make_experts(HIDDEN_SIZE + 1 if reason == "more than outputs" else NUM_EXPERTS)
    if reason == "combinations":
        by_expert[3, 5] = by_expert[2, 5] - 2 * by_expert[1, 5]
    elif reason == "not finite":
        by_expert[3, 5, 0] = torch.nan
    with pytest.raises(UndeterminedError, match=reason):
        fit_weights(by_expert[0], by_expert)


def test_experts_that_return_nothing_are_refused() -> None:
    by_expert = make_experts()
    by_expert[:, 2] = 0
    with pytest.raises(UndeterminedError, match="combinations"):
        fit_weights(by_expert[0], by_expert)
