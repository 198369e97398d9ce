"""Auxiliary losses against transformers' function, loops over tokens, and logits that are known."""

from __future__ import annotations

from dataclasses import replace
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from moetool.analysis.balance.capacity.batches import BatchCutter
from moetool.analysis.balance.capacity.drops import FACTORS
from moetool.analysis.balance.capacity.expert_choice import ExpertChoiceCounter
from moetool.analysis.balance.losses import LayerLosses, ProbabilityMeter, summarize_losses
from moetool.analysis.statistics.random_choices import draw_choices


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: NDArray[np.float64] = exponents / exponents.sum(axis=1, keepdims=True)
    return result


def lose(
    probabilities: NDArray[np.float64], top_k: int, *, with_logits: bool = False
) -> LayerLosses:
    """Return the losses of a router that chooses the largest probabilities."""
    num_tokens, num_experts = probabilities.shape
    meter = ProbabilityMeter(num_experts, with_logits=with_logits)
    for part in np.array_split(probabilities.astype(np.float16), 3):
        meter.add(part)
    experts = np.argsort(-probabilities, axis=1)[:, :top_k]
    return LayerLosses(
        load=np.bincount(experts.ravel(), minlength=num_experts),
        num_decisions=num_tokens,
        top_k=top_k,
        mean_squared_baseline=0.5,
        mean_probability=meter.find_mean(),
        z_loss=meter.find_z_loss(),
    )


def losses_of(layers: list[LayerLosses]) -> dict[str, float | None]:
    return {loss.name: loss.value for loss in summarize_losses(layers)}


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from([(8, 2), (6, 1), (16, 5), (4, 4)]),
    st.integers(1, 3),
)
def test_the_pooled_loss_is_that_of_transformers(
    seed: int, shape: tuple[int, int], num_layers: int
) -> None:
    num_experts, top_k = shape
    rng = np.random.default_rng(seed)
    bias = rng.normal(size=num_experts)
    logits = [rng.normal(size=(40, num_experts)) + bias for _ in range(num_layers)]
    gates: Any = tuple(torch.tensor(each) for each in logits)
    theirs = load_balancing_loss_func(gates, num_experts, top_k)
    ours = losses_of([lose(softmax(each), top_k) for each in logits])["huggingface"]
    # Probabilities are stored as float16, whose relative rounding is 2**-11.
    assert ours == pytest.approx(float(theirs), rel=2**-10)


def test_the_losses_of_a_layer_are_those_of_loops_over_tokens() -> None:
    rng = np.random.default_rng(0)
    layers, by_hand = [], []
    for _ in range(3):
        probabilities = softmax(rng.normal(size=(50, 8)) * 2).astype(np.float16).astype(np.float64)
        layers.append(lose(probabilities, 2))
        chosen = [sorted(range(8), key=lambda e: -row[e])[:2] for row in probabilities.tolist()]
        loss = 0.0
        for expert in range(8):
            share = sum(expert in each for each in chosen) / (50 * 2)
            mean = sum(row[expert] / sum(row) for row in probabilities.tolist()) / 50
            loss += 8 * share * mean
        by_hand.append(loss)
    found = losses_of(layers)
    assert [layer.switch for layer in layers] == pytest.approx(by_hand)
    assert found["switch"] == pytest.approx(np.mean(by_hand))
    assert found["olmoe"] == pytest.approx(2 * np.mean(by_hand))
    shares = [layer.load / layer.load.sum() for layer in layers]
    assert found["mean_squared"] == pytest.approx(np.mean([(p - 1 / 8) ** 2 for p in shares]))


@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (16, 1)])
def test_an_even_router_has_the_baselines(num_experts: int, top_k: int) -> None:
    # Each expert is the favourite of as many tokens.
    probabilities = np.full((num_experts, num_experts), 0.5)
    for token in range(num_experts):
        for slot in range(top_k):
            probabilities[token, (token + slot) % num_experts] = 1.0
    layer = lose(probabilities, top_k)
    for loss in summarize_losses([layer, layer])[:3]:
        assert loss.value == pytest.approx(loss.baseline)
    assert losses_of([layer])["mean_squared"] == 0


@pytest.mark.parametrize("chance_short", [0.0, 0.6])
def test_a_random_router_lands_on_the_baselines(chance_short: float) -> None:
    """Its choices don't follow its probabilities, and some of its decisions run one expert of two."""
    rng = np.random.default_rng(0)
    runs = []
    for _ in range(60):
        layers = []
        for _ in range(2):
            sizes = 2 - (rng.random(60) < chance_short)
            chosen = draw_choices(rng, 8, sizes)
            load = np.bincount(chosen[chosen >= 0], minlength=8)
            layers.append(replace(lose(softmax(rng.normal(size=(60, 8))), 2), load=load))
        runs.append(summarize_losses(layers)[:3])
    for index, (mean_size, name) in enumerate(
        [((2 - chance_short) / 2, "switch"), (2 - chance_short, "huggingface")]
    ):
        values = [run[index].value for run in runs]
        baselines = [run[index].baseline for run in runs]
        assert runs[0][index].name == name
        excess = np.subtract(values, baselines)  # type: ignore[arg-type]
        assert abs(excess.mean()) < 4 * excess.std(ddof=1) / len(runs) ** 0.5
        assert np.mean(baselines) == pytest.approx(mean_size, rel=0.02)  # type: ignore[arg-type]
    assert [run[2].baseline for run in runs] == pytest.approx([run[1].baseline for run in runs])


def test_collapse_costs_as_much_as_there_are_experts() -> None:
    probabilities = np.zeros((20, 8))
    probabilities[:, 3] = 1
    found = losses_of([lose(probabilities, 1)])
    assert (found["switch"], found["huggingface"], found["olmoe"]) == pytest.approx((8, 8, 8))


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
def test_z_loss_follows_from_sigmoids(scale: float) -> None:
    logits = np.random.default_rng(0).normal(size=(64, 16)) * scale
    layer = lose(1 / (1 + np.exp(-logits)), 2, with_logits=True)
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) ** 2)
    assert layer.z_loss == pytest.approx(expected, rel=0.005)
    if not scale:
        (z_loss,) = [loss for loss in summarize_losses([layer]) if loss.name == "z_loss"]
        assert z_loss.baseline == pytest.approx(log(16) ** 2)
        assert z_loss.value == pytest.approx(log(16) ** 2)


def test_z_loss_is_unknown_where_rounding_hides_the_logits() -> None:
    logits = np.full((10, 4), 12.0)
    assert lose(1 / (1 + np.exp(-logits)), 1, with_logits=True).z_loss is None


def test_z_loss_is_unknown_without_logits() -> None:
    assert lose(softmax(np.ones((10, 4))), 1).z_loss is None


def test_losses_are_unknown_where_a_layer_has_no_probabilities() -> None:
    layer = lose(softmax(np.ones((10, 4))), 1)
    other = LayerLosses(layer.load, 10, 1, 0.5, mean_probability=None, z_loss=None)
    found = losses_of([layer, other])
    assert [found[name] for name in ("switch", "huggingface", "olmoe")] == [None, None, None]
    assert found["mean_squared"] is not None


def test_layers_of_different_sizes_are_not_pooled() -> None:
    layers = [lose(softmax(np.ones((10, size))), 1) for size in (4, 8)]
    found = losses_of(layers)
    assert found["huggingface"] is None
    assert found["olmoe"] is not None


def test_probabilities_that_are_all_zero_have_no_mean() -> None:
    meter = ProbabilityMeter(4, with_logits=False)
    meter.add(np.zeros((3, 4), dtype=np.float16))
    assert meter.find_mean() is None


@pytest.mark.parametrize("tokens_per_batch", [None, 10])
def test_expert_choice_is_that_of_serving_expert_by_expert(tokens_per_batch: int | None) -> None:
    rng = np.random.default_rng(0)
    lengths = [7, 20, 1, 12]
    # Few values, so that many are equal.
    probabilities = rng.choice([0.1, 0.2, 0.5, 0.9], size=(40, 6)).astype(np.float16)
    prompt = np.repeat(np.arange(4), lengths)
    counter, cutter = ExpertChoiceCounter(num_experts=6, top_k=2), BatchCutter(tokens_per_batch)
    for part in np.array_split(np.arange(40), 7):
        counter.add(cutter.cut(prompt[part], (probabilities[part],)))
    counter.add(cutter.finish())
    ends = np.cumsum(lengths).tolist() if tokens_per_batch is None else [10, 20, 30, 40]
    for index, factor in enumerate(FACTORS):
        left, expected = 0, 0.0
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            size = end - start
            room = min(size, int(np.ceil(round(factor * size * 2 / 6, 9))))
            taken: set[int] = set()
            for expert in range(6):
                column = probabilities[start:end, expert].tolist()
                taken.update(sorted(range(size), key=lambda token: -column[token])[:room])
            left += size - len(taken)
            expected += size * (1 - room / size) ** 6
        assert counter.num_left[index] == left
        assert counter.expected_left[index] == pytest.approx(expected)
    assert counter.num_tokens == 40


def test_experts_that_choose_at_random_leave_as_many_tokens_as_expected() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.random((40 * 200, 8)).astype(np.float16)
    counter = ExpertChoiceCounter(num_experts=8, top_k=2)
    counter.add(BatchCutter(40).cut(np.zeros(8000, dtype=np.int64), (probabilities,)))
    share, expected = counter.num_left[0] / 8000, counter.expected_left[0] / 8000
    assert abs(share - expected) < 4 * (expected * (1 - expected) / 8000) ** 0.5
