"""Router probabilities: their function is found, and they explain the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moetool import RoutingRecorder
from moetool.errors import UntraceableError
from moetool.tracing.recording.calls import RecordedLayer
from moetool.tracing.windows.probabilities import find_score_function
from tests.tiny_models import FAMILIES, build_model


def record_layer(family: str) -> RecordedLayer:
    ids = torch.randint(3, 250, (2, 9), generator=torch.Generator().manual_seed(0))
    with RoutingRecorder(build_model(family), keep_scores=True) as recorder, torch.inference_mode():
        recorder.model(input_ids=ids)
    return recorder.calls[0].layers[-1]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_score_function_of_every_family_is_found(family: str) -> None:
    expected = "sigmoid" if family == "deepseek_v3" else "softmax"
    assert find_score_function(record_layer(family)).name == expected


def test_probabilities_are_a_distribution_that_explains_the_weights() -> None:
    layer = record_layer("mixtral")
    assert layer.scores is not None
    probabilities = find_score_function(layer).apply(layer.scores).astype(float)
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=2e-3)  # float16
    chosen = np.take_along_axis(probabilities, layer.experts.astype(int), axis=1)
    weights = chosen / chosen.sum(axis=1, keepdims=True)
    assert weights == pytest.approx(layer.weights.astype(float), abs=2e-3)


def test_scores_that_no_known_function_explains_are_refused_not_guessed() -> None:
    layer = record_layer("mixtral")
    assert layer.scores is not None
    strange = RecordedLayer(layer.layer, layer.experts, layer.weights, layer.scores**2)
    with pytest.raises(UntraceableError, match="No known function from scores to probabilities"):
        find_score_function(strange)


def test_a_router_without_scores_is_refused() -> None:
    layer = record_layer("mixtral")
    without = RecordedLayer(layer.layer, layer.experts, layer.weights, None)
    with pytest.raises(UntraceableError, match="returns no score"):
        find_score_function(without)
