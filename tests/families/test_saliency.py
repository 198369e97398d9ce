"""Recorded norms are those of each expert's own output, recomputed from raw weights, in every family."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from moetool import RoutingRecorder
from moetool.errors import UntraceableError
from moetool.tracing.recording.saliency.sums import SaliencySums
from tests.families.tiny.dense_reference import ObservedExperts, observe_experts, run_expert
from tests.families.tiny.models import build_family, text_inputs
from tests.families.tiny.proof import exact_families, recorded_layers, run

REFUSED = {
    "diffusion_gemma": "it routes more than once in a layer",
    "jetmoe": "its experts are layers that run on sorted rows",
    "llama4_text": "its experts receive inputs that are multiplied by the weights",
    "switch_transformers": "it routes more than once in a layer",
}
MEASURED = [name for name in exact_families() if name not in REFUSED]


@cache
def plain_output(name: str) -> torch.Tensor:
    model = build_family(name)
    with torch.inference_mode():
        return run(model, dict(text_inputs(model)))


def recompute(experts: ObservedExperts, ids: np.ndarray, weights: np.ndarray) -> SaliencySums:
    """Return the sums of a decision, expert by expert and in float64."""
    sums = SaliencySums.empty(int(ids.max()) + 1)
    for expert in range(len(sums.frequency)):
        tokens, slots = np.nonzero(ids == expert)
        if not len(tokens):
            continue
        rows = experts.hidden_states[torch.from_numpy(tokens)].double()
        output = run_expert(experts.experts, expert, rows).detach().numpy()
        norms = np.sqrt((output * output).sum(axis=1))
        sums.frequency[expert] = len(tokens)
        sums.norms[expert] = norms.sum()
        sums.weighted_norms[expert] = (norms * weights[tokens, slots]).sum()
        sums.weights[expert] = weights[tokens, slots].sum()
        sums.largest[expert] = max(0.0, output.max())
    return sums


@pytest.mark.parametrize("name", MEASURED)
def test_sums_are_those_of_a_dense_recomputation_and_the_output_is_bit_equal(name: str) -> None:
    model = build_family(name)
    with (
        torch.inference_mode(),
        RoutingRecorder(model, keep_saliency=True) as recorder,
        observe_experts(model, recorder.layers) as observed,
    ):
        output = run(model, dict(text_inputs(model)))
    assert torch.equal(output, plain_output(name))
    layers = recorded_layers(recorder.calls)
    assert {layer.layer for layer in layers} <= set(recorder.saliency)
    for layer in layers:
        found = recorder.saliency[layer.layer]
        # Identity experts have no weights, and no place in the sums.
        ids = np.where(layer.experts < layer.layer.num_experts, layer.experts, -1)
        expected = recompute(
            observed[layer.layer.experts_path], ids, layer.weights.astype(np.float64)
        )
        num_seen = len(expected.frequency)
        assert found.num_tokens == len(layer.experts)
        assert found.frequency.tolist() == [
            *expected.frequency.tolist(),
            *[0] * (layer.layer.num_experts - num_seen),
        ]
        for field in ("norms", "weighted_norms", "weights", "largest"):
            mine, other = getattr(found, field)[:num_seen], getattr(expected, field)
            np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-7, err_msg=field)


@pytest.mark.parametrize("name", REFUSED)
def test_families_without_separate_outputs_are_refused_by_name(name: str) -> None:
    model = build_family(name)
    with pytest.raises(UntraceableError, match=REFUSED[name]) as caught:
        RoutingRecorder(model, keep_saliency=True)
    assert type(model).__name__ in caught.value.message
